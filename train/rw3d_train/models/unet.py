"""A small U-Net for CPU demos and tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UNet(nn.Module):  # type: ignore[misc]
    """U-Net (Ronneberger et al., MICCAI 2015), 0.9 M parameters with the default channels, random weights.

    Each level halves the resolution by max-pooling and is added back by bilinear upsampling and concatenation.
    GroupNorm: it needs no large batch, and it works the same in student and teacher, whatever mode either is in.

    Args:
        n_classes: C.
        channels: width of each level, finest first; multiples of 8.
    """

    def __init__(self, n_classes: int, channels: Sequence[int] = (16, 32, 64, 96, 128)) -> None:
        super().__init__()
        self.down = nn.ModuleList(_convolutions(a, b) for a, b in zip((3, *channels), channels, strict=False))
        pairs = zip(channels[1:], channels, strict=False)
        self.up = nn.ModuleList(_convolutions(coarse + fine, fine) for coarse, fine in pairs)
        self.head = nn.Conv2d(channels[0], n_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, C, H, W) of images (B, 3, H, W) of any size from 16 × 16 on; see `images.normalize`."""
        skips = [self.down[0](image)]
        for level in list(self.down)[1:]:
            skips.append(level(F.max_pool2d(skips[-1], 2)))
        features = skips.pop()
        for level, skip in zip(reversed(self.up), reversed(skips), strict=True):
            coarse = F.interpolate(features, skip.shape[-2:], mode="bilinear", align_corners=False)
            features = level(torch.cat((coarse, skip), 1))
        logits: Tensor = self.head(features)
        return logits


def _convolutions(n_in: int, n_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (n_in, n_out):
        layers += [nn.Conv2d(width, n_out, 3, padding=1, bias=False), nn.GroupNorm(8, n_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
