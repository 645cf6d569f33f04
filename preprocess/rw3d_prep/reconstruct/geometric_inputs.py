"""What a dataset knows about a view, as MapAnything takes it beside the picture, and the way back to its world.

The rules are those of `MapAnything.infer` (v1.1.1), observed by running it: float32 throughout, with a batch axis; depth
along the optical axis with 0 for missing, never without intrinsics; poses in any world, but never without that of the
first view; one NaN makes every view NaN. Results are predictions still, in a world near the first view's camera.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rw3d_common.cameras import F32, F64, PixelMap, is_rigid, nearest_rigid
from rw3d_common.errors import UserError
from rw3d_prep.frames import Frame
from rw3d_prep.reconstruct.base import RawView
from rw3d_prep.reconstruct.sensor import SensorBackend, SensorConfig

GeometricInput = Literal["intrinsics", "poses", "depth"]
NEEDS: dict[GeometricInput, str] = {"intrinsics": "intrinsics", "poses": "camera_to_world", "depth": "depth|lidar"}


def inputs_of(
    frame: Frame, use: Sequence[GeometricInput], pixel_map: PixelMap, world_offset: F64
) -> dict[str, npt.NDArray[Any]]:
    """What `infer` takes beside the picture of one frame, by its key, on the grid of `pixel_map`.

    `intrinsics` (1, 3, 3) of the grid; `depth_z` (1, H, W) metres, left out where nothing was measured at all, which the
    model would take for a scale of zero; `camera_poses` (1, 4, 4) in the dataset's world minus `world_offset` (3,)
    metres; all float32; and `is_metric_scale` (1,) bool.

    Raises:
        UserError: the frame lacks what `use` names, or its value or file cannot be used.
    """
    given: dict[str, npt.NDArray[Any]] = {}
    if "intrinsics" in use:
        given["intrinsics"] = pixel_map.grid_intrinsics(_intrinsics(frame)).astype(np.float32)[None]
    if "poses" in use:
        given["camera_poses"] = recentred_pose(frame, world_offset).astype(np.float32)[None]
    if "depth" in use:
        depth = depth_on_grid(frame, pixel_map)
        if depth.any():
            given["depth_z"] = depth[None]
    if given:
        given["is_metric_scale"] = np.ones(1, bool)
    assert all(np.isfinite(values).all() for values in given.values()), "one NaN makes every view NaN"
    return given


def recentred_pose(frame: Frame, world_offset: F64) -> F64:
    """The frame's `camera_to_world` (4, 4) in the dataset's world minus `world_offset` (3,) metres.

    Raises:
        UserError: there is none, or it is no rigid transform.
    """
    if frame.camera_to_world is None:
        raise _lacks(frame, "pose", "poses")
    if not is_rigid(frame.camera_to_world):
        raise UserError(
            f"{frame}: its pose is no rigid transform ({frame.camera_to_world.tolist()}); mend it, or run without --use poses"
        )
    pose = nearest_rigid(frame.camera_to_world)
    pose[:3, 3] -= world_offset
    return pose


def depth_on_grid(frame: Frame, pixel_map: PixelMap) -> F32:
    """Measured depth (H, W) in metres on the grid of `pixel_map`, 0 where there is none.

    Of a depth image each cell takes the pixel nearest to its centre; of a LiDAR scan, the nearest of the returns that
    fall into it. Depths count within the limits of the `sensor` backend's defaults.

    Raises:
        UserError: the frame has neither, or a file cannot be used.
    """
    sensor = SensorBackend(SensorConfig())
    intrinsics = _intrinsics(frame)
    if frame.depth is not None:
        measured, to_image, _ = sensor.from_depth_map(frame.depth, intrinsics, pixel_map.image_size)
        depth = _nearest(measured, to_image, pixel_map)
    elif frame.lidar is not None:
        depth, _, _ = sensor.from_scan(frame.lidar, pixel_map.grid_intrinsics(intrinsics), pixel_map.grid_size)
    else:
        raise _lacks(frame, "depth image and no LiDAR scan", "depth")
    depth[(depth < sensor.config.nearest) | (depth > sensor.config.farthest)] = 0
    return depth


def _nearest(measured: F32, to_image: PixelMap, pixel_map: PixelMap) -> F32:
    """Depth pixels (h, w) on the cells of `pixel_map`; both maps lead to the same image."""
    u, v = pixel_map.source_coordinates()
    column = np.floor((u - to_image.column_offset) / to_image.column_scale + 0.5).astype(np.int64)
    row = np.floor((v - to_image.row_offset) / to_image.row_scale + 0.5).astype(np.int64)
    columns = np.flatnonzero((column >= 0) & (column < measured.shape[1]))
    rows = np.flatnonzero((row >= 0) & (row < measured.shape[0]))
    depth = np.zeros(pixel_map.grid_size, np.float32)
    depth[np.ix_(rows, columns)] = measured[np.ix_(row[rows], column[columns])]
    return depth


def anchor(given: F64, predicted: npt.NDArray[np.floating[Any]]) -> F64:
    """The transform (4, 4) from a predicted world to the given one, from the same camera's pose in both."""
    return np.asarray(given @ np.linalg.inv(nearest_rigid(np.asarray(predicted, np.float64))), np.float64)


def moved(raw: RawView, transform: F64) -> RawView:
    """The view in another world; `transform` (4, 4) is rigid."""
    with np.errstate(invalid="ignore"):  # what is masked out may be infinite
        points = raw.points @ transform[:3, :3].T.astype(np.float32) + transform[:3, 3].astype(np.float32)
    return replace(raw, points=points, camera_to_world=(transform @ raw.camera_to_world).astype(np.float32))


def _intrinsics(frame: Frame) -> F64:
    if frame.intrinsics is None:
        raise _lacks(frame, "intrinsics", "intrinsics")
    if not np.isfinite(frame.intrinsics).all():
        raise UserError(
            f"{frame}: its intrinsics are not finite ({frame.intrinsics.tolist()}); mend them, or run without --use intrinsics"
        )
    return frame.intrinsics


def _lacks(frame: Frame, what: str, name: str) -> UserError:
    return UserError(f"{frame}: has no {what}, which --use {name} asks for; leave {name} out of --use")
