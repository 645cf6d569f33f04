"""Which labels of one view a surface point of another view may take: projection with depth checks in both directions.

All points of a view, labelled or not, make its depth map: what hides a surface need not be labelled to hide it. Depth
maps have the size of the reconstruction grid, so that a coarse grid has no holes; labels keep the image's resolution.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from rw3d_common.cameras import F32, F64, PixelMap
from rw3d_common.labels import IGNORE, U8
from rw3d_common.scene import Scene

I32 = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]
REACH = 2.5  # × spread: a label farther from the projection than this weighs nothing
_kernel = numba.njit(cache=True, nogil=True)


class Maps(NamedTuple):
    """One view as others look it up; h × w is its reconstruction grid, H × W its image.

    `pinhole` (4,) float64 fx, fy, cx, cy of the grid and `to_image` (4,) float64 column scale and offset, row scale and
    offset from grid to image, pixels; `rotation` (3, 3) and `center` (3,) float64 metres, camera to world; `depth`
    (h, w) float32 metres along the optical axis, 0 where there is no point; `trust` (h, w) float32 rank of the
    confidence within the view, 0 to 1; `label` (H, W) uint8 train ids, 255 = none; `near_label` (H, W) bool: one may be
    within reach; `gap` cells to the next point that
    have to be expected: 1, or more where the points are sparse, as LiDAR returns are.
    """

    pinhole: F64
    to_image: F64
    rotation: F64
    center: F64
    depth: F32
    trust: F32
    label: U8
    near_label: Flags
    gap: int


class Points(NamedTuple):
    """The points of one view: `position` (n, 3) float32 metres in the world, `cell` (n, 2) int32 row and column in the
    grid, `trust` (n,) float32 rank of the confidence, `clear` (n,) bool: the view measures nothing nearer beside it.
    """

    position: F32
    cell: I32
    trust: F32
    clear: Flags


class Limits(NamedTuple):
    """When two views see the same surface: the options of `rw3d_prep.carry.CarryConfig` with these names."""

    spread: float
    depth_absolute: float
    depth_relative: float
    reprojection: float


def read_view(scene: Scene, index: int, label: U8 | None, limits: Limits) -> tuple[Points, Maps]:
    """The points and maps of a view; `label` (H, W) uint8 train ids that other views may take, None for none.

    Raises:
        UserError: the view's points cannot be read.
    """
    view, table = scene.view(index), scene.view_table
    height, width = (int(n) for n in table["grid_size"][index])
    to_image = np.asarray(table["pixel_map"][index], np.float64)
    grid = PixelMap((height, width), view.image_size, *to_image)
    intrinsics = grid.grid_intrinsics(view.intrinsics)
    cell = nearest_cells(view.rows_columns, to_image, (height, width))
    trust = ranks(view.confidence)
    depth, trust_map = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
    depth[cell[:, 0], cell[:, 1]] = view.depth
    trust_map[cell[:, 0], cell[:, 1]] = trust
    labels = np.full(view.image_size, IGNORE, np.uint8) if label is None else np.ascontiguousarray(label)
    maps = Maps(
        pinhole=np.array([intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]]),
        to_image=to_image,
        rotation=np.ascontiguousarray(view.camera_to_world[:3, :3]),
        center=np.ascontiguousarray(view.camera_to_world[:3, 3]),
        depth=depth,
        trust=trust_map,
        label=labels,
        near_label=_dilated(labels != IGNORE, int(np.ceil(REACH * limits.spread)) + 1),
        gap=max(int(np.sqrt(height * width / max(len(cell), 1))), 1),
    )
    return Points(np.ascontiguousarray(view.position), cell, trust, _clear(maps, cell, limits)), maps


def _dilated(mask: Flags, pixels: int) -> Flags:
    import cv2

    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8)).astype(np.bool_)


def ranks(confidence: F32) -> F32:
    """Share of the view's points with no higher confidence, (n,) in (0, 1]: raw confidences have no common scale."""
    return (np.searchsorted(np.sort(confidence), confidence, side="right") / max(len(confidence), 1)).astype(np.float32)


def nearest_cells(rows_columns: npt.NDArray[np.int64], to_image: F64, size: tuple[int, int]) -> I32:
    """(n, 2) int32 row and column of the grid cell nearest to each source pixel (n, 2)."""
    column_scale, column_offset, row_scale, row_offset = to_image
    row = np.floor((rows_columns[:, 0] - row_offset) / row_scale + 0.5)
    column = np.floor((rows_columns[:, 1] - column_offset) / column_scale + 0.5)
    return np.stack([np.clip(row, 0, size[0] - 1), np.clip(column, 0, size[1] - 1)], axis=1).astype(np.int32)


def cast_votes(points: Points, target: Maps, source: Maps, allowed: Flags, limits: Limits, votes: F32) -> None:
    """Add what `source` says about the points of `target` to `votes` (n, C) float32; `allowed` (256,) by train id.

    A point takes the label nearest to its projection if that label lies on the same surface: `source` measures the
    point's depth there and nothing nearer beside it, and what `source` measures projects back to the point's own place
    in `target`. The vote weighs the geometric mean of both trusts × exp(−depth difference / tolerance) × cosine of the
    angle between the lines of sight × exp(−d² / 2 spread²) for d pixels between label and projection.
    """
    _cast(points, target, source, allowed, limits, votes)


@_kernel
def _cast(points, target, source, allowed, limits, votes):  # type: ignore[no-untyped-def]
    height, width = source.label.shape
    a = source.to_image
    for i in range(len(points.position)):
        x, y, z = _into(source, points.position[i, 0], points.position[i, 1], points.position[i, 2])
        if z <= 0 or not points.clear[i]:
            continue
        u = source.pinhole[0] * x / z + source.pinhole[2]
        v = source.pinhole[1] * y / z + source.pinhole[3]
        row, column = int(np.floor(a[2] * v + a[3] + 0.5)), int(np.floor(a[0] * u + a[1] + 0.5))
        if not (0 <= row < height and 0 <= column < width and source.near_label[row, column]):
            continue
        tolerance = limits.depth_absolute + limits.depth_relative * z
        row, column = _agreeing(source, u, v, z, tolerance)
        if row < 0:
            continue
        label, squared = _nearest_label(source, u, v, z, tolerance, allowed, REACH * limits.spread)
        if label == IGNORE:
            continue
        depth = source.depth[row, column]
        if not _lands(source, target, row, column, depth, points.cell[i], limits):
            continue
        weight = np.sqrt(points.trust[i] * source.trust[row, column]) * np.exp(-abs(depth - z) / tolerance)
        weight *= np.exp(-squared / (2 * limits.spread**2))
        votes[i, label] += weight * _cosine(points.position[i], source.center, target.center)


@_kernel
def _into(view, px, py, pz):  # type: ignore[no-untyped-def]
    """A world point in the camera axes of `view`, metres."""
    dx, dy, dz = px - view.center[0], py - view.center[1], pz - view.center[2]
    r = view.rotation
    return (
        r[0, 0] * dx + r[1, 0] * dy + r[2, 0] * dz,
        r[0, 1] * dx + r[1, 1] * dy + r[2, 1] * dz,
        r[0, 2] * dx + r[1, 2] * dy + r[2, 2] * dz,
    )


@_kernel
def _nearest_label(view, u, v, z, tolerance, allowed, reach):  # type: ignore[no-untyped-def]
    """The allowed label nearest to grid coordinates (u, v) that lies at depth `z`, 255 = none within `reach` image
    pixels, and its squared distance in pixels."""
    a = view.to_image
    height, width = view.label.shape
    x, y = a[0] * u + a[1], a[2] * v + a[3]
    best, label = reach * reach, IGNORE
    for row in range(max(int(np.ceil(y - reach)), 0), min(int(np.floor(y + reach)), height - 1) + 1):
        for column in range(max(int(np.ceil(x - reach)), 0), min(int(np.floor(x + reach)), width - 1) + 1):
            squared = (row - y) ** 2 + (column - x) ** 2
            if view.label[row, column] == IGNORE or not allowed[view.label[row, column]] or squared > best:
                continue
            found, _ = _agreeing(view, (column - a[1]) / a[0], (row - a[3]) / a[2], z, tolerance)
            if found >= 0:
                best, label = squared, view.label[row, column]
    return label, best


@_kernel
def _agreeing(view, u, v, z, tolerance):  # type: ignore[no-untyped-def]
    """Row and column of the cell nearest to (u, v) within the gap whose depth is z; −1 if none, or if one is nearer."""
    height, width = view.depth.shape
    row, column = int(np.floor(v + 0.5)), int(np.floor(u + 0.5))
    if not (0 <= row < height and 0 <= column < width):
        return -1, -1
    best, found_row, found_column = np.inf, -1, -1
    for r in range(max(row - view.gap, 0), min(row + view.gap, height - 1) + 1):
        for c in range(max(column - view.gap, 0), min(column + view.gap, width - 1) + 1):
            depth = view.depth[r, c]
            if depth == 0:
                continue
            if depth < z - tolerance:
                return -1, -1
            squared = (r - v) ** 2 + (c - u) ** 2
            if depth <= z + tolerance and squared < best:
                best, found_row, found_column = squared, r, c
    return found_row, found_column


@_kernel
def _clear(view, cells, limits):  # type: ignore[no-untyped-def]
    """(n,) bool: the view measures nothing nearer beside a cell. Sensors beside the camera see past edges."""
    clear = np.zeros(len(cells), np.bool_)
    for i in range(len(cells)):
        depth = view.depth[cells[i, 0], cells[i, 1]]
        tolerance = limits.depth_absolute + limits.depth_relative * depth
        clear[i] = _agreeing(view, cells[i, 1], cells[i, 0], depth, tolerance)[0] >= 0
    return clear


@_kernel
def _lands(source, target, row, column, depth, cell, limits):  # type: ignore[no-untyped-def]
    """Does what `source` measures at a cell project back to `cell` of `target`, at the depth measured there?"""
    x = (column - source.pinhole[2]) / source.pinhole[0] * depth
    y = (row - source.pinhole[3]) / source.pinhole[1] * depth
    r, o = source.rotation, source.center
    px = r[0, 0] * x + r[0, 1] * y + r[0, 2] * depth + o[0]
    py = r[1, 0] * x + r[1, 1] * y + r[1, 2] * depth + o[1]
    pz = r[2, 0] * x + r[2, 1] * y + r[2, 2] * depth + o[2]
    x, y, z = _into(target, px, py, pz)
    if z <= 0:
        return False
    u = target.pinhole[0] * x / z + target.pinhole[2]
    v = target.pinhole[1] * y / z + target.pinhole[3]
    reach = limits.reprojection + source.gap
    measured = target.depth[cell[0], cell[1]]
    close = abs(z - measured) <= limits.depth_absolute + limits.depth_relative * measured
    return close and (u - cell[1]) ** 2 + (v - cell[0]) ** 2 <= reach * reach


@_kernel
def _cosine(point, a, b):  # type: ignore[no-untyped-def]
    """Cosine of the angle at `point` between the directions to `a` and `b`, not below 0."""
    dot = aa = bb = 0.0
    for axis in range(3):
        p, q = a[axis] - point[axis], b[axis] - point[axis]
        dot, aa, bb = dot + p * q, aa + p * p, bb + q * q
    return max(dot / np.sqrt(aa * bb), 0.0)
