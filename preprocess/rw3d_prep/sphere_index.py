"""A scene's points in blocks with bounding spheres: which points lie in a sphere, without looking at all of them.

Points of a view are stored pixel row after pixel row, so consecutive points lie near each other. A block is
`block_size` consecutive points (the last may be shorter, and a block may straddle two views); a query discards blocks
by their bounding spheres alone, and only points of the remaining ones are measured.

Every decision "inside or not" is one float64 expression of float32 values, (x−cx)² + (y−cy)² + (z−cz)² ≤ r², summed in
this order: whoever repeats it from the stored centre and radius gets the same set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

U32 = npt.NDArray[np.uint32]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
_kernel = numba.njit(cache=True, nogil=True)
# Block radii are computed in float32 (relative error below 1e-6), squares of tiny numbers underflow to 0.
_INFLATE, _INFLATE_BY = np.float32(1 + 1e-5), np.float32(1e-18)


@dataclass(frozen=True)
class Region:
    """Where points may come from: inner < distance to `center` ≤ outer (metres), but not rows [first, last).

    `center` is (3,) float64 holding float32 values; an `inner` below 0 excludes nothing, an infinite `outer` is the
    whole scene.
    """

    center: F64
    inner: float
    outer: float
    first: int
    last: int

    @property
    def limits(self) -> tuple[F64, float, float, int, int]:
        """What the kernels take: centre, squared inner (−1: none) and outer radius, excluded rows."""
        return self.center, -1.0 if self.inner < 0 else self.inner**2, self.outer**2, self.first, self.last


@dataclass(frozen=True)
class SceneIndex:
    """Points of a scene with the bounding spheres of their blocks. Threads may share it: nothing in it changes.

    `position` (N, 3) float32 metres, finite; points of view v are rows [point_offset[v], point_offset[v + 1]).
    `block_center` (B, 3) float32 and `block_radius` (B,) float32, metres: every point of a block is inside.
    """

    position: F32
    point_offset: npt.NDArray[np.int64]
    block_size: int
    block_center: F32
    block_radius: F32

    @classmethod
    def build(cls, position: F32, point_offset: npt.NDArray[np.int64], block_size: int = 512) -> SceneIndex:
        """Index `position` (N, 3) float32 of views bounded by `point_offset` (V + 1,) int64, in one pass.

        Raises:
            ValueError: shapes that do not fit, offsets that do not ascend from 0 to N, or rows beyond uint32.
        """
        points = np.ascontiguousarray(position, np.float32).view()
        offset = np.array(point_offset, np.int64)
        if points.ndim != 2 or points.shape[1] != 3 or block_size < 1:
            raise ValueError(f"position {points.shape}, block_size {block_size}: need (N, 3) and at least 1")
        if len(offset) < 1 or offset[0] != 0 or offset[-1] != len(points) or (np.diff(offset) < 0).any():
            raise ValueError(f"point_offset has to ascend from 0 to the {len(points)} rows of position")
        if len(points) >= 2**32 - block_size:
            raise ValueError(f"{len(points)} points: rows are uint32")
        # Kernels are compiled per type, and read-only is part of it: one type for memory maps and arrays.
        points.flags.writeable = offset.flags.writeable = False
        return cls(points, offset, block_size, *_bound_blocks(points, block_size))

    def blocks_of(self, region: Region) -> U32:
        """Blocks that may hold points of the region, ascending."""
        return _blocks_of(self.block_center, self.block_radius, self.block_size, *region.limits)

    def points_of(self, region: Region, blocks: U32) -> U32:
        """Rows of all points of the region that lie in `blocks`, ascending."""
        return _points_of(self.position, blocks, self.block_size, *region.limits)

    def hits(self, region: Region, blocks: U32, words: U32) -> tuple[U32, int]:
        """Every word's uniformly random slot of `blocks`: rows of those that are points of the region, and the number
        of slots tried. Rows may repeat; each point of the region is equally likely at each try."""
        return _hits(self.position, blocks, self.block_size, words, *region.limits)

    def sphere_of(self, view: int) -> tuple[F64, F64]:
        """Centroid (3,) of the view's points, rounded to float32, and the points' squared distances (n,) to it, m²."""
        first, last = self.point_offset[view : view + 2]
        center = _centroid(self.position[first:last]).astype(np.float32).astype(np.float64)
        return center, _squared_distances(self.position[first:last], center)


@_kernel
def _bound_blocks(position: F32, size: int) -> tuple[F32, F32]:
    count = (len(position) + size - 1) // size
    centers, radii = np.empty((count, 3), np.float32), np.empty(count, np.float32)
    half = np.float32(0.5)
    for block in range(count):
        rows = position[block * size : min((block + 1) * size, len(position))]
        low_x = high_x = rows[0, 0]
        low_y = high_y = rows[0, 1]
        low_z = high_z = rows[0, 2]
        for row in range(1, len(rows)):
            x, y, z = rows[row, 0], rows[row, 1], rows[row, 2]
            low_x, high_x = min(low_x, x), max(high_x, x)
            low_y, high_y = min(low_y, y), max(high_y, y)
            low_z, high_z = min(low_z, z), max(high_z, z)
        x, y, z = half * low_x + half * high_x, half * low_y + half * high_y, half * low_z + half * high_z
        largest = np.float32(0)
        for row in range(len(rows)):
            dx, dy, dz = rows[row, 0] - x, rows[row, 1] - y, rows[row, 2] - z
            largest = max(largest, dx * dx + dy * dy + dz * dz)
        centers[block, 0], centers[block, 1], centers[block, 2] = x, y, z
        radii[block] = np.sqrt(largest) * _INFLATE + _INFLATE_BY
    return centers, radii


@_kernel
def _squared(position: F32, row: int, center: F64) -> float:
    dx, dy, dz = position[row, 0] - center[0], position[row, 1] - center[1], position[row, 2] - center[2]
    return dx * dx + dy * dy + dz * dz


@_kernel
def _blocks_of(
    centers: F32, radii: F32, size: int, center: F64, inner: float, outer: float, first: int, last: int
) -> U32:
    found, count, reach = np.empty(len(radii), np.uint32), 0, np.sqrt(outer)
    slack = 1 + 1e-9  # the rounding of these few operations
    for block in range(len(radii)):
        squared, radius = _squared(centers, block, center), np.float64(radii[block])
        near = squared <= (reach + radius) ** 2 * slack
        # A block is out as well where the inner sphere holds all of it, or where all its rows are excluded.
        within = inner > 0 and np.sqrt(squared) * slack + radius < np.sqrt(inner)
        excluded = block * size >= first and (block + 1) * size <= last
        found[count] = block
        count += near and not within and not excluded
    return found[:count].copy()


@_kernel
def _points_of(
    position: F32, blocks: U32, size: int, center: F64, inner: float, outer: float, first: int, last: int
) -> U32:
    found, count = np.empty(len(blocks) * size, np.uint32), 0
    for block in blocks:
        start = int(block) * size
        for row in range(start, min(start + size, len(position))):
            squared = _squared(position, row, center)
            found[count] = row
            count += (squared > inner) & (squared <= outer) & ((row < first) | (row >= last))
    return found[:count].copy()


@_kernel
def _hits(
    position: F32, blocks: U32, size: int, words: U32, center: F64, inner: float, outer: float, first: int, last: int
) -> tuple[U32, int]:
    rows, tries = _rows_of(words, blocks, size)
    # Loops of their own: the shorter the loop, the more far points the processor fetches at the same time.
    points = np.empty((len(rows), 3), np.float32)
    for place in range(len(rows)):
        row = min(int(rows[place]), len(position) - 1)
        for axis in range(3):
            points[place, axis] = position[row, axis]
    found, count = np.empty(len(rows), np.uint32), 0
    for place in range(len(rows)):
        row, squared = int(rows[place]), _squared(points, place, center)
        exists = row < len(position)  # slots behind the last point are tries without a hit: all points weigh the same
        inside = (squared > inner) & (squared <= outer) & ((row < first) | (row >= last))
        found[count] = row
        count += int(exists & inside)
    return found[:count].copy(), tries


@_kernel
def _rows_of(words: U32, blocks: U32, size: int) -> tuple[U32, int]:
    """The slot of each word as a row, in the order of the words, and how many there are."""
    rows, count, slots = np.empty(len(words), np.uint32), 0, np.uint64(len(blocks) * size)
    unfair, length = np.uint64(2**32) % slots, np.uint32(size)
    for word in words:
        # Lemire's multiply-and-shift: slot is uniform once the few words that would favour some slots are thrown away.
        product = np.uint64(word) * slots
        slot = np.uint32(product >> np.uint64(32))
        block = slot // length
        rows[count] = blocks[block] * length + (slot - block * length)
        count += int((product & np.uint64(0xFFFFFFFF)) >= unfair)
    return rows[:count], count


@_kernel
def _centroid(rows: F32) -> F64:
    x = y = z = 0.0
    for row in range(len(rows)):
        x += rows[row, 0]
        y += rows[row, 1]
        z += rows[row, 2]
    return np.array([x, y, z]) / max(len(rows), 1)


@_kernel
def _squared_distances(rows: F32, center: F64) -> F64:
    squared = np.empty(len(rows))
    for row in range(len(rows)):
        squared[row] = _squared(rows, row, center)
    return squared


def radius_from(squared: F64, share: float) -> float:
    """Distance in metres below which `share` of the points lie (`squared`: (n,) m², n ≥ 1), as `np.quantile` has it."""
    place = share * (len(squared) - 1)
    low = int(place)
    high = min(low + 1, len(squared) - 1)
    ordered: Any = np.partition(squared, (low, high))
    near, far = np.sqrt(ordered[low]), np.sqrt(ordered[high])
    return float(near + (far - near) * (place - low))
