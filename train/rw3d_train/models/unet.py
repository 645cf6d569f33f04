"""A small U-Net for CPU demos and tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UNet(nn.Module):  # type: ignore[misc]
    """U-Net (Ronneberger et al., MICCAI 2015) at half resolution, 0.4 M parameters by default, random weights.

    A convolution of stride 2 comes first, which makes a step four times cheaper than at full resolution. Each further
    level halves the resolution by max-pooling and is added back by bilinear upsampling and concatenation. GroupNorm: it
    needs no large batch, and it works the same in student and teacher, whatever mode either is in.

    Args:
        n_classes: C.
        channels: width of each level, finest first; multiples of 8.
    """

    def __init__(self, n_classes: int, channels: Sequence[int] = (16, 32, 64, 96)) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_convolution(3, channels[0], 5, 2))
        self.down = nn.ModuleList(_level(a, b) for a, b in zip((channels[0], *channels), channels, strict=False))
        pairs = zip(channels[1:], channels, strict=False)
        self.up = nn.ModuleList(_level(coarse + fine, fine) for coarse, fine in pairs)
        self.head = nn.Conv2d(channels[0], n_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, C, ⌈H / 2⌉, ⌈W / 2⌉) of images (B, 3, H, W) of any size from 16 × 16 on; see `images.normalize`."""
        skips = [self.down[0](self.stem(image))]
        for level in list(self.down)[1:]:
            skips.append(level(F.max_pool2d(skips[-1], 2)))
        features = skips.pop()
        for level, skip in zip(reversed(self.up), reversed(skips), strict=True):
            coarse = F.interpolate(features, skip.shape[-2:], mode="bilinear", align_corners=False)
            features = level(torch.cat((coarse, skip), 1))
        logits: Tensor = self.head(features)
        return logits


def _level(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(*_convolution(n_in, n_out), *_convolution(n_out, n_out))


def _convolution(n_in: int, n_out: int, size: int = 3, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(n_in, n_out, size, stride, padding=size // 2, bias=False)
    return [convolution, nn.GroupNorm(8, n_out), nn.ReLU(inplace=True)]
