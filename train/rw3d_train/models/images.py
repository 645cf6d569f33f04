"""What every 2D network expects of images, and what is done with its logits.

All 2D networks are called alike: `model(image)` takes (B, 3, H, W) float32 from `normalize` and gives logits
(B, C, h, w) at the network's own stride. Normalisation is no part of them, as in transformers, so that an exported
network works with the usual image processors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize(image: Tensor) -> Tensor:
    """RGB (B, 3, H, W) uint8 → float32 in units of ImageNet's standard deviation around its mean, same memory format."""
    scale = torch.tensor(IMAGENET_STD, device=image.device)[:, None, None] * 255
    mean = torch.tensor(IMAGENET_MEAN, device=image.device)[:, None, None] * 255
    return (image - mean) / scale


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (B, C, h, w) at `size` (height, width), bilinear between pixel centres; as they are if they fit."""
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)
