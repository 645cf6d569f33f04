"""Health: numbers per view, measured while it streams past at about a millisecond, and what they say of a scene."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from rw3d_common.cameras import F32, F64, project
from rw3d_common.scene import Scene
from rw3d_prep.fuse import usable_cells
from rw3d_prep.reconstruct.base import ViewGeometry
from rw3d_prep.sim3 import absolute_trajectory_error, relative_pose_error

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


@dataclass(frozen=True)
class SceneHealth:
    """One scene at a glance; NaN where something does not apply.

    `finite_share` of valid grid cells that nine of ten views exceed; `depth_ratio`: median over views of the 99 % over
    the 1 % quantile of depth; `residual`: median `reprojection_residual`; `jitter`: see `pose_jitter`. Against the
    dataset's own poses, after the best Sim(3): `given_poses` how many views have one, `scale` that brings predicted
    lengths to metres, `ate` in metres, `rpe` of neighbouring frames in metres and `rpe_degrees`.
    """

    views: int
    finite_share: float
    depth_ratio: float
    residual: float
    jitter: float
    given_poses: int
    scale: float
    ate: float
    rpe: float
    rpe_degrees: float

    def to_json(self) -> dict[str, Any]:
        """All numbers, None where they are not finite, and the faults."""
        numbers = {name: value if np.isfinite(value) else None for name, value in asdict(self).items()}
        return {**numbers, "faults": self.faults()}

    def faults(self) -> list[str]:
        """What is out of bounds, one phrase each; nothing in a healthy scene, and never because of NaN."""
        limits = (
            (self.finite_share < LEAST_FINITE, f"a tenth of the views have under {LEAST_FINITE:.1%} valid cells"),
            (self.depth_ratio > MOST_DEPTH_RATIO, f"depths span 1 : {self.depth_ratio:,.0f}"),
            (self.residual > MOST_RESIDUAL, f"neighbouring views disagree by {self.residual:.0%} of the depth"),
            (self.jitter > MOST_JITTER, f"the camera path is jagged ({self.jitter:.2f})"),
            (
                self.scale > MOST_SCALE or self.scale < 1 / MOST_SCALE,
                f"lengths are off by a factor of {self.scale:.2f} against the given poses",
            ),
        )
        return [phrase for broken, phrase in limits if broken]


# Limits beyond which a scene is flagged. They are wide: a flag means "look at it", and costs hours where it is wrong.
LEAST_FINITE = 0.01  # a LiDAR scan fills 4 to 8 % of its image; a view below 1 % is as good as empty
MOST_DEPTH_RATIO = 1000.0  # streets span 1 : 30, rooms 1 : 10; more is flying points that blow up voxel grids
MOST_RESIDUAL = 0.1  # sound RGB-D, LiDAR and stereo scenes have 0.5 to 2 %; at 10 % surfaces appear twice
MOST_JITTER = 0.5  # 0: even motion, 0.3: hand-held at one image a second, 0.7: independent random steps
MOST_SCALE = 1.5  # voxel sizes and radii are metres
STILL = 1e-3  # of the nearest depths: a mean step below this is a camera that stands, and its path is noise
STANDING = 0.05  # metres: given poses that span less say nothing of the scale


def scene_health(scene: Scene) -> SceneHealth:
    """The health of a finished scene, from its `views/`; of a point cloud without views nothing is known."""
    table = scene.view_table
    poses, given, cameras = table["camera_to_world"], table["given_camera_to_world"], table["camera"]
    low, high = table["depth_range"].T
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(low > 0, high / low, np.where(np.isnan(low), np.nan, np.inf))
    empty = not len(scene)
    return SceneHealth(
        views=len(scene),
        finite_share=float("nan") if empty else float(np.quantile(table["finite_share"], 0.1)),
        depth_ratio=_median(ratio),
        residual=_median(table["reprojection_residual"]),
        jitter=pose_jitter(poses, cameras, still=STILL * np.nan_to_num(_median(low))),
        given_poses=int(np.isfinite(given).all(axis=(1, 2)).sum()),
        **_against_given(poses, given, cameras),
    )


def unhealthy(scenes: Iterable[Scene]) -> dict[str, list[str]]:
    """Name of every scene that is out of bounds → what is."""
    found = {scene.name: scene_health(scene).faults() for scene in scenes}
    return {name: faults for name, faults in found.items() if faults}


def pose_jitter(camera_to_world: F64, cameras: npt.NDArray[np.uint8], still: float) -> float:
    """Σ |a − b| / Σ (|a| + |b|) over neighbouring steps a, b of each camera's centre: 0 even motion, 1 to and fro.

    Sums, because the steps of a camera that waits are noise. NaN where there are no two steps, or they are shorter
    than `still` metres on average.
    """
    change = total = count = 0.0
    for camera in np.unique(cameras):
        steps = np.diff(camera_to_world[cameras == camera, :3, 3], axis=0)
        length = np.linalg.norm(steps, axis=1)
        change += np.linalg.norm(np.diff(steps, axis=0), axis=1).sum()
        total += (length[1:] + length[:-1]).sum()
        count += 2 * max(len(steps) - 1, 0)
    return float(change / total) if total > still * count else float("nan")


def _against_given(poses: F64, given: F64, cameras: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Scale, ATE and RPE of predicted against given poses (V, 4, 4), over the views that have one."""
    known = np.flatnonzero(np.isfinite(given).all(axis=(1, 2)))
    names = ("scale", "ate", "rpe", "rpe_degrees")
    poses, given, cameras = poses[known], given[known], cameras[known]
    if len(known) < 2 or np.linalg.norm(np.ptp(given[:, :3, 3], axis=0)) < STANDING:
        return dict.fromkeys(names, float("nan"))
    if not np.ptp(poses[:, :3, 3], axis=0).any():  # the camera moved, its prediction did not
        return dict.fromkeys(names, float("inf"))
    sim3, ate = absolute_trajectory_error(poses, given)
    pairs = [pair for camera in np.unique(cameras) for pair in pairwise(np.flatnonzero(cameras == camera))]
    rpe, degrees = relative_pose_error(poses, given, np.asarray(pairs, np.int64).reshape(-1, 2), sim3.scale)
    return dict(zip(names, (sim3.scale, ate, rpe, degrees), strict=True))


def _median(values: npt.NDArray[Any]) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else float("nan")
