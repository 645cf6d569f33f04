"""Per-view health numbers, measured while a view streams past; they cost about a millisecond."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rw3d_common.cameras import F32, project
from rw3d_prep.fuse import usable_cells
from rw3d_prep.reconstruct.base import ViewGeometry

PROBES = 2_000  # points per view that are re-projected; their median is stable to a few per cent


@dataclass(frozen=True)
class Health:
    """`depth_range`: 1 % and 99 % quantile of depth in metres; `reprojection_residual`: see `residual_against`."""

    depth_range: tuple[float, float]
    reprojection_residual: float


def view_health(geometry: ViewGeometry, position: F32, previous: ViewGeometry | None) -> Health:
    """Health of a view from its kept points (n, 3) and the geometry of the view before it in the batch."""
    probes = position[:: max(len(position) // PROBES, 1)]
    if len(probes) == 0:
        return Health((float("nan"), float("nan")), float("nan"))
    depth = project(probes, geometry.intrinsics, geometry.camera_to_world)[2]
    low, high = np.quantile(depth, [0.01, 0.99])
    residual = float("nan") if previous is None else residual_against(probes, previous)
    return Health((float(low), float(high)), residual)


def residual_against(points: F32, view: ViewGeometry) -> float:
    """Median of |z − z'| / z' over points (n, 3) that fall on a valid cell of `view`, z' being that cell's depth.

    Occluded points count too, so a scene seen from two sides has a floor above 0; NaN when no point falls in.
    """
    grid = view.pixel_map.grid_intrinsics(view.intrinsics)
    u, v, z = project(points, grid, view.camera_to_world)
    height, width = view.valid.shape
    seen = (z > 0) & (u > -0.5) & (v > -0.5) & (u < width - 0.5) & (v < height - 0.5)
    row, column = np.floor(v[seen] + 0.5).astype(int), np.floor(u[seen] + 0.5).astype(int)
    usable = usable_cells(view)[row, column]
    if not usable.any():
        return float("nan")
    there = project(view.points[row, column][usable], grid, view.camera_to_world)[2]
    return float(np.median(np.abs(z[seen][usable] - there) / np.maximum(there, 1e-6)))
