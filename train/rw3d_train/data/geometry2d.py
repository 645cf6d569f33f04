"""Crop, resize and flip as one 3×3 matrix that moves image, labels and correspondences alike.

A matrix maps homogeneous source pixels (row, column, 1) to output pixels, float64, integer coordinates at pixel centres.
Libraries that flip in index convention and resize from the corner put points and pixels in different places; here
nothing but the matrix says where anything is. It is always a scale (negative: a flip) and a shift per axis, so that
resampling is done per axis, in float64 coordinates, and identity and flips are exact to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
Index = npt.NDArray[np.int64]
Size = tuple[int, int]  # (height, width)

_SNAP = 9  # decimals of a pixel: rounding of composed matrices must not decide a tie


def resize_matrix(size: Size, new_size: Size) -> F64:
    """Matrix that resizes `size` to `new_size`, both (height, width) pixels: x ↦ (x + 0.5)·s − 0.5 per axis."""
    scale = np.array(new_size, np.float64) / np.array(size, np.float64)
    return _matrix(scale, (scale - 1) / 2)


def crop_matrix(top: int, left: int) -> F64:
    """Matrix of a crop whose first pixel is (top, left); negative values pad."""
    return _matrix(np.ones(2), np.array([-top, -left], np.float64))


def flip_matrix(width: int) -> F64:
    """Matrix that mirrors left and right in an image `width` pixels wide: column ↦ width − 1 − column."""
    return _matrix(np.array([1.0, -1.0]), np.array([0.0, width - 1.0]))


def compose(matrices: Sequence[F64]) -> F64:
    """The one matrix that does `matrices` in the order given (the first acts first)."""
    total = np.eye(3)
    for matrix in matrices:
        total = matrix @ total
    return total


def source_coordinates(matrix: F64, size: Size) -> tuple[F64, F64]:
    """Source rows (H,) and source columns (W,) of an output of `size`, float64 pixels, rounded to 1e-9.

    Raises:
        ValueError: the matrix rotates, shears or projects, so that rows and columns do not separate.
    """
    if np.any(matrix[[0, 1, 2, 2], [1, 0, 0, 1]]) or matrix[2, 2] != 1 or not matrix[0, 0] * matrix[1, 1]:
        raise ValueError(f"matrix {matrix.tolist()} is not one scale and shift per axis; compose crops, resizes, flips")
    rows, columns = ((np.arange(n) - matrix[axis, 2]) / matrix[axis, axis] for axis, n in enumerate(size))
    return np.round(rows, _SNAP), np.round(columns, _SNAP)


def warp_image(image: U8, matrix: F64, size: Size, fill: int = 0) -> U8:
    """`image` (h, w, 3) uint8 resampled bilinearly to (H, W, 3) uint8; `fill` where `size` leaves the image.

    The image's area reaches half a pixel beyond its outer pixel centres; there the border value counts. No
    anti-aliasing filter: bilinear from four neighbours is what the released code does, the scales drawn in training
    stay above 1/2, and a filter would make an image whose sharpness tells the network its scale.
    """
    rows, columns = source_coordinates(matrix, size)
    (low, high, down), (left, right, across) = (_taps(x, n) for x, n in zip((rows, columns), image.shape, strict=False))
    first, last = left.min(initial=0 if not size[1] else image.shape[1]), right.max(initial=0) + 1
    strip = image[:, first:last]
    if not down.any() and not across.any():
        warped: U8 = strip[low][:, left - first]
    else:
        tall = _blend(strip[low], strip[high], down[:, None, None])
        wide = _blend(np.take(tall, left - first, axis=1), np.take(tall, right - first, axis=1), across[:, None])
        wide += np.float32(0.5)
        warped = wide.astype(np.uint8)
    return _pad(warped, rows, columns, (image.shape[0], image.shape[1]), fill)


def warp_labels(labels: U8, matrix: F64, size: Size, fill: int = 255) -> U8:
    """`labels` (h, w) uint8 at the nearest source pixel, (H, W) uint8; `fill` where `size` leaves the image.

    A position exactly between two pixel centres takes the larger index, as in reconstruction.
    """
    rows, columns = source_coordinates(matrix, size)
    near_row, near_column = (
        np.clip(np.floor(x + 0.5).astype(np.int64), 0, n - 1)
        for x, n in zip((rows, columns), labels.shape, strict=True)
    )
    warped: U8 = labels[near_row][:, near_column]
    return _pad(warped, rows, columns, (labels.shape[0], labels.shape[1]), fill)


def warp_pixels(pixel: F32, matrix: F64, size: Size) -> F32:
    """Correspondences (n, 2) float32 (row, column) moved by the matrix; NaN for those outside an image of `size`.

    Inside means −0.5 ≤ x < n − 0.5, tested after rounding to float32: the nearest pixel of what is returned exists.
    """
    moved = np.empty(pixel.shape, np.float32)
    inside = np.ones(len(pixel), np.bool_)
    for axis, n in enumerate(size):
        x = pixel[:, axis] * matrix[axis, axis] + matrix[axis, 2]  # float64 until here
        moved[:, axis] = x
        inside &= (moved[:, axis] >= -0.5) & (moved[:, axis] < n - 0.5)
    moved[~inside] = np.nan
    return moved


def _matrix(scale: F64, shift: F64) -> F64:
    matrix = np.diag([*scale, 1.0])
    matrix[:2, 2] = shift
    return matrix


def _taps(x: F64, n: int) -> tuple[Index, Index, F32]:
    """The two source indices around each coordinate and the weight of the second, clamped to [0, n − 1]."""
    clamped = np.clip(x, 0, n - 1)
    low = np.floor(clamped).astype(np.int64)
    return low, np.minimum(low + 1, n - 1), (clamped - low).astype(np.float32)


def _blend(first: F32 | U8, second: F32 | U8, weight: F32) -> F32:
    """first + (second − first) · weight, written into fresh memory once (these arrays exceed the cache)."""
    mixed: F32 = np.subtract(second, first, dtype=np.float32)
    mixed *= weight
    mixed += first
    return mixed


def _pad(warped: U8, rows: F64, columns: F64, size: Size, fill: int) -> U8:
    warped[(rows < -0.5) | (rows >= size[0] - 0.5)] = fill
    warped[:, (columns < -0.5) | (columns >= size[1] - 0.5)] = fill
    return warped
