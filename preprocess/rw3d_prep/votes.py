"""From the votes of other views to one label per point, and from the points of a view to its label image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rw3d_common.cameras import F32, F64
from rw3d_common.labels import IGNORE, U8

I32 = npt.NDArray[np.int32]


def decide(votes: F32, min_share: float, min_weight: float) -> U8:
    """(n,) uint8 train ids from `votes` (n, C): the class with at least `min_share` of a point's votes, else 255.

    255 as well where all its votes together weigh less than `min_weight`, or nothing. Of equal classes the lower wins.
    """
    if not votes.shape[1]:
        return np.full(len(votes), IGNORE, np.uint8)
    winner = votes.argmax(axis=1)
    most, total = votes[np.arange(len(votes)), winner], votes.sum(axis=1)
    accepted = (total > 0) & (total >= min_weight) & (most >= min_share * total)
    return np.where(accepted, winner, IGNORE).astype(np.uint8)


def contested(votes: F32, min_share: float, min_weight: float) -> int:
    """Number of points with votes enough whose classes disagree too much: they stay 255."""
    total = votes.sum(axis=1)
    heavy = (total > 0) & (total >= min_weight)
    return int(np.count_nonzero(votes[heavy].max(axis=1, initial=0) < min_share * total[heavy]))


def paint(label: U8, pixel: npt.NDArray[np.uint32], size: tuple[int, int]) -> U8:
    """Train ids (H, W): the labels (n,) of points at their own source pixels, 255 elsewhere."""
    image = np.full(size[0] * size[1], IGNORE, np.uint8)
    image[pixel] = label
    return image.reshape(size)


def paint_cells(label: U8, cell: I32, grid_size: tuple[int, int], to_image: F64, size: tuple[int, int]) -> U8:
    """Train ids (H, W): every pixel takes the label (n,) of the point in its nearest grid cell (n, 2), else 255.

    Where the grid is as fine as the image this is `paint`. `to_image` (4,): column scale and offset, row scale and
    offset from grid to image, pixels.
    """
    grid = np.full((grid_size[0] + 1, grid_size[1] + 1), IGNORE, np.uint8)  # the last row and column: outside
    grid[cell[:, 0], cell[:, 1]] = label
    column = _nearest(size[1], to_image[0], to_image[1], grid_size[1])
    row = _nearest(size[0], to_image[2], to_image[3], grid_size[0])
    return grid[row[:, None], column[None, :]]


def _nearest(pixels: int, scale: float, offset: float, cells: int) -> npt.NDArray[np.int64]:
    """The cell nearest to each pixel along one axis; `cells` where that lies outside the grid."""
    cell = np.floor((np.arange(pixels) - offset) / scale + 0.5).astype(np.int64)
    return np.where((cell >= 0) & (cell < cells), cell, cells)


def with_own(own: U8 | None, carried: U8) -> U8:
    """The view's own annotation where it has one, carried labels elsewhere; both (H, W)."""
    return carried if own is None else np.where(own != IGNORE, own, carried)
