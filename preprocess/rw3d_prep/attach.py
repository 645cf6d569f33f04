"""Gives labelled pixels that no point came from to the nearest point of their view.

Point annotations label single pixels, of which most have no point: their depth was invalid, their confidence low, or
the reconstruction grid is coarser than the image.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rw3d_common.labels import IGNORE, U8

REACH = 2  # pixels
_FAR = np.iinfo(np.int64).max
# (row, column, squared distance) of every place within reach
_AROUND = [
    (row, column, row * row + column * column)
    for row in range(-REACH, REACH + 1)
    for column in range(-REACH, REACH + 1)
    if row * row + column * column <= REACH * REACH
]


def attach_labels(
    image: U8, attachable: npt.NDArray[np.bool_], pixel: npt.NDArray[np.integer], index: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.int64], U8]:
    """Labels for points from labelled pixels within 2 pixels of them.

    Every labelled pixel goes to the nearest of the points by Euclidean pixel distance, the one with the lowest `index`
    among equals. A point that several pixels go to takes the nearest one's label, the lowest pixel's among equals.

    Args:
        image: (H, W) train ids, 255 = unlabelled.
        attachable: (256,) by train id; pixels of other classes go to no point.
        pixel: (n,) flat source pixels of the points.
        index: (n,) what tells the points apart, such as rows of `points/`.

    Returns:
        Positions (m,) in `pixel`, rising, and their labels (m,). Points of labelled pixels are among them.
    """
    height, width = image.shape
    order = np.argsort(index)
    lowest = np.full(height * width, -1, np.int64)  # rank by index of the point at each pixel
    lowest[pixel[order][::-1]] = np.arange(len(order))[::-1]
    labelled = np.flatnonzero((image != IGNORE) & attachable[image])
    rank, squared = _nearest(lowest.reshape(height, width), len(order), labelled)
    found = np.flatnonzero(rank >= 0)
    by_point = found[np.lexsort((labelled[found], squared[found], rank[found]))]
    _, first = np.unique(rank[by_point], return_index=True)
    chosen = by_point[first]
    place = order[rank[chosen]]
    rising = np.argsort(place)
    return place[rising], image.ravel()[labelled[chosen]][rising]


def _nearest(
    lowest: npt.NDArray[np.int64], ranks: int, labelled: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rank (< `ranks`) of the nearest point of every labelled pixel, −1 beyond reach, and its squared distance."""
    rows, columns = np.divmod(labelled, lowest.shape[1])
    best = np.full(len(labelled), _FAR)
    padded = np.pad(lowest, REACH, constant_values=-1)
    for row, column, distance in _AROUND:
        there = padded[rows + row + REACH, columns + column + REACH]
        key = np.where(there >= 0, distance * ranks + there, _FAR)
        np.minimum(best, key, out=best)
    squared, rank = np.divmod(best, max(ranks, 1))
    rank[best == _FAR] = -1
    return rank, squared
