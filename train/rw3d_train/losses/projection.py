"""Values of points at the pixels that show them, and of pixels at the points they show."""

from __future__ import annotations

import torch
from torch import Tensor

from rw3d_train.data.collate import Correspondences


def points_at_pixels(correspondences: Correspondences, shape: tuple[int, int, int]) -> Tensor:
    """The point that each pixel shows, (B, H, W) int64 rows of the concatenated points, −1 where none.

    Of several points at one pixel (images shrink in augmentation) the last one counts, on every device. A position
    exactly between two pixel centres takes the larger index, as the augmentation of labels does.

    Args:
        correspondences: M pairs of a pixel of image `image` and a point.
        shape: (B, H, W) of the images.
    """
    _, height, width = shape
    row, column = _nearest_pixel(correspondences)
    pixel = (correspondences.image * height + row) * width + column
    empty = torch.full((shape[0] * height * width,), -1, dtype=torch.int64, device=pixel.device)
    return empty.scatter_reduce(0, pixel, correspondences.point, "amax").view(shape)


def project_to_pixels(values: Tensor, points: Tensor, fill: float) -> Tensor:
    """`values` (N,) of points as a map (B, H, W) of the same dtype, `fill` where a pixel shows no point.

    Args:
        values: one per point, for example pseudo-labels (fill 255) or weights (fill 0).
        points: (B, H, W) of `points_at_pixels`.
        fill: the value of pixels without point.
    """
    return torch.where(points >= 0, values[points.clamp(min=0)], values.new_full((), fill))


def gather_from_pixels(values: Tensor, correspondences: Correspondences, n_points: int, fill: float) -> Tensor:
    """`values` (B, H, W) of pixels at the points they show, (n_points,) of the same dtype; `fill` where no pixel does.

    Args:
        values: one per pixel, for example pseudo-labels (fill 255) or their probability (fill 0).
        correspondences: M pairs; each point is in one of them at most.
        n_points: number of points of the batch.
        fill: the value of points without pixel: those of other views, and those that left the image.
    """
    row, column = _nearest_pixel(correspondences)
    found = values[correspondences.image, row, column]
    return values.new_full((n_points,), fill).scatter(0, correspondences.point, found)


def _nearest_pixel(correspondences: Correspondences) -> tuple[Tensor, Tensor]:
    """Rows and columns (M,) int64; inside the image wherever the positions are, −0.5 ≤ x < n − 0.5, for n > 1."""
    return (correspondences.row + 0.5).floor().long(), (correspondences.column + 0.5).floor().long()
