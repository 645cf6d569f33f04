"""Pinhole cameras and the exact map from a reconstruction grid to the source image.

Conventions of the whole project: camera axes are OpenCV's (x right, y down, z forward), `camera_to_world` is 4×4
float64, lengths are metres, and integer pixel coordinates are pixel centres (u = column, v = row).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
NO_PIXEL = np.uint32(2**32 - 1)  # fill value of `points/pixel`


@dataclass(frozen=True)
class PixelMap:
    """Exact affine map from the centres of a (height, width) grid to coordinates in its source image.

    u = column_scale · column + column_offset, v = row_scale · row + row_offset, both in source pixels with integer
    coordinates at pixel centres. Every backend states its own map; nobody guesses it from sizes.
    """

    grid_size: tuple[int, int]  # (height, width) of the reconstruction grid
    image_size: tuple[int, int]  # (height, width) of the source image, EXIF orientation applied
    column_scale: float = 1.0
    column_offset: float = 0.0
    row_scale: float = 1.0
    row_offset: float = 0.0

    @classmethod
    def resize_then_crop(
        cls, image_size: tuple[int, int], resized_size: tuple[int, int], grid_size: tuple[int, int], left: int, top: int
    ) -> PixelMap:
        """The map of an image resized to `resized_size` and then cropped at (top, left) to `grid_size`, all (H, W).

        Resizing maps pixel centres by (x + 0.5)·s − 0.5; MapAnything's loader works in this order.
        """
        rows, columns = image_size[0] / resized_size[0], image_size[1] / resized_size[1]
        return cls(
            grid_size,
            image_size,
            column_scale=columns,
            column_offset=(left + 0.5) * columns - 0.5,
            row_scale=rows,
            row_offset=(top + 0.5) * rows - 0.5,
        )

    def source_coordinates(self) -> tuple[F64, F64]:
        """Exact source coordinates of the grid: u of every column (W,) and v of every row (H,), float64 pixels."""
        height, width = self.grid_size
        u = self.column_scale * np.arange(width, dtype=np.float64) + self.column_offset
        v = self.row_scale * np.arange(height, dtype=np.float64) + self.row_offset
        return u, v

    def nearest_source_pixels(self) -> npt.NDArray[np.uint32]:
        """Flat index row·W + column of the source pixel whose centre is nearest to each grid cell, (H, W) uint32.

        A cell exactly between two centres takes the larger coordinate. Cells outside the image hold NO_PIXEL.
        """
        u, v = self.source_coordinates()
        column, row = np.floor(u + 0.5).astype(np.int64), np.floor(v + 0.5).astype(np.int64)
        height, width = self.image_size
        index = row[:, None] * width + column[None, :]
        outside = (row < 0) | (row >= height)
        index[outside, :] = NO_PIXEL
        index[:, (column < 0) | (column >= width)] = NO_PIXEL
        return index.astype(np.uint32)

    def covered_fraction(self) -> float:
        """Share of the source image's area that lies under the grid, 0..1 (a centre crop loses the rest for good)."""
        if 0 in self.grid_size:
            return 0.0
        u, v = self.source_coordinates()
        height, width = self.image_size

        def covered(first: float, last: float, scale: float, size: int) -> float:
            low, high = max(first - scale / 2, -0.5), min(last + scale / 2, size - 0.5)
            return max(high - low, 0.0) / size

        return covered(u[0], u[-1], self.column_scale, width) * covered(v[0], v[-1], self.row_scale, height)

    def grid_intrinsics(self, intrinsics: F64) -> F64:
        """Intrinsics (3, 3) of the grid, from those of the source image."""
        grid_from_source = np.array(
            [
                [1 / self.column_scale, 0, -self.column_offset / self.column_scale],
                [0, 1 / self.row_scale, -self.row_offset / self.row_scale],
                [0, 0, 1],
            ]
        )
        return grid_from_source @ np.asarray(intrinsics, np.float64)

    def source_intrinsics(self, grid_intrinsics: F64) -> F64:
        """Intrinsics (3, 3) of the source image, from those of the grid."""
        source_from_grid = np.array(
            [
                [self.column_scale, 0, self.column_offset],
                [0, self.row_scale, self.row_offset],
                [0, 0, 1],
            ]
        )
        return source_from_grid @ np.asarray(grid_intrinsics, np.float64)


def unproject_depth(depth: npt.NDArray[np.floating[Any]], intrinsics: F64, camera_to_world: F64) -> F32:
    """World points (H, W, 3) float32 of a depth map (H, W) in metres along the optical axis, pixel centres at integers.

    Zero skew is assumed, as in every dataset here. Computed in float64 per axis and rounded once at the end; pixels
    whose depth is not finite give NaN.
    """
    height, width = depth.shape
    x = (np.arange(width) - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (np.arange(height) - intrinsics[1, 2]) / intrinsics[1, 1]
    rotation, translation = camera_to_world[:3, :3], camera_to_world[:3, 3]
    z = depth.astype(np.float64)
    points = np.empty((height, width, 3), np.float32)
    for axis in range(3):
        direction = (rotation[axis, 0] * x)[None, :] + (rotation[axis, 1] * y + rotation[axis, 2])[:, None]
        points[..., axis] = direction * z + translation[axis]
    return points


def project(points: npt.NDArray[np.floating[Any]], intrinsics: F64, camera_to_world: F64) -> tuple[F64, F64, F64]:
    """Pixel coordinates u, v and depth z, each (N,) float64, of world points (N, 3).

    Points on or behind the image plane have z ≤ 0 and meaningless u, v: test z first.
    """
    rotation, translation = camera_to_world[:3, :3], camera_to_world[:3, 3]
    camera = (np.asarray(points, np.float64) - translation) @ rotation
    z = camera[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        u = intrinsics[0, 0] * camera[:, 0] / z + intrinsics[0, 2]
        v = intrinsics[1, 1] * camera[:, 1] / z + intrinsics[1, 2]
    return u, v, z


def nearest_rigid(camera_to_world: F64) -> F64:
    """The transform with the rotation nearest to that of `camera_to_world` (4, 4), in the Frobenius norm.

    Poses that were written with few digits are slightly skewed; a stored camera has to invert exactly.
    """
    u, _, vt = np.linalg.svd(camera_to_world[:3, :3])
    rigid: F64 = np.array(camera_to_world, np.float64)
    rigid[:3, :3] = u @ vt
    return rigid


def is_rigid(camera_to_world: F64, tolerance: float = 1e-3) -> bool:
    """True for a finite 4×4 matrix with an orthonormal, right-handed rotation and last row (0, 0, 0, 1)."""
    if camera_to_world.shape != (4, 4) or not np.isfinite(camera_to_world).all():
        return False
    rotation = camera_to_world[:3, :3]
    return (
        np.allclose(rotation @ rotation.T, np.eye(3), atol=tolerance)
        and np.linalg.det(rotation) > 0
        and np.allclose(camera_to_world[3], [0, 0, 0, 1], atol=1e-9)
    )
