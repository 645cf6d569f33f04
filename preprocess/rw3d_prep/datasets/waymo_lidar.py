"""Waymo's range images as points (waymo-research/waymo-open-dataset, `utils/range_image_utils.py`).

A range image is what one LiDAR returned in one turn: row = beam from the highest down, column = azimuth from +180° to
−180° of the vehicle. The vehicle drives on during a turn; the top LiDAR has a vehicle pose per pixel to undo that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rw3d_common.cameras import F32, F64
from rw3d_common.errors import UserError
from rw3d_prep.datasets.waymo_cells import read_row
from rw3d_prep.datasets.waymo_tables import Component, Key, column_name, read_component

if TYPE_CHECKING:
    import pyarrow as pa

RETURN = "range_image_return1"
TOP = "TOP"


@dataclass(frozen=True, eq=False)
class Laser:
    """Calibration of one LiDAR: `to_vehicle` (4, 4), and its beams' inclinations in radians, from the lowest up.

    Without `beams` they are spread evenly from `lowest` to `highest`, at the middles of equal intervals.
    """

    to_vehicle: F64
    lowest: float
    highest: float
    beams: F64 | None

    def inclinations(self, height: int) -> F64:
        """Inclination (H,) of every row, row 0 the highest."""
        if self.beams is not None:
            return self.beams[::-1]
        return (self.lowest + (np.arange(height) + 0.5) / height * (self.highest - self.lowest))[::-1]

    def azimuths(self, width: int) -> F64:
        """Azimuth (W,) of every column in the LiDAR's own frame, radians."""
        heading = np.arctan2(self.to_vehicle[1, 0], self.to_vehicle[0, 0])
        return ((width - np.arange(width) - 0.5) / width * 2 - 1) * np.pi - heading


@dataclass(frozen=True, eq=False)
class RangeImages:
    """The first returns of all LiDARs of one time, as points in the vehicle's frame at that time.

    `rows` are rows of `path` with their LiDAR; `pose_row` is that of the top LiDAR's poses in `pose_path`.
    """

    path: Path
    pose_path: Path
    rows: tuple[tuple[int, str, Laser], ...]
    pose_row: int | None
    vehicle_to_world: F64

    def read_points(self) -> F32:
        """Returns (N, 3) float32 metres: x forward, y left, z up. A LiDAR without a range image has none.

        Raises:
            UserError: a file that cannot be read, or an image whose shape does not fit its values or calibration.
        """
        return _points(self)


@lru_cache(maxsize=1)  # all cameras of a time share the scan
def _points(scan: RangeImages) -> F32:
    points = [np.empty((0, 3))]
    for row, name, laser in sorted(scan.rows, key=lambda item: item[0]):
        image = _image(scan.path, row, "lidar", 4)
        if image is None:
            continue
        if laser.beams is not None and len(laser.beams) != len(image):
            raise UserError(
                f"{scan.path}: row {row}: {len(image)} beams where lidar_calibration has {len(laser.beams)}; copy both again"
            )
        moved, returned = vehicle_points(image[..., 0], laser)
        if name == TOP and scan.pose_row is not None:
            pose = _image(scan.pose_path, scan.pose_row, "lidar_pose", 6)
            if pose is None or pose.shape[:2] != image.shape[:2]:
                raise UserError(f"{scan.pose_path}: row {scan.pose_row} does not fit its range image; copy it again")
            moved = at_frame_time(moved, pose[returned], scan.vehicle_to_world)
        points.append(moved)
    together = np.concatenate(points).astype(np.float32)
    together = together[np.isfinite(together).all(axis=1)]
    together.flags.writeable = False
    return together


def vehicle_points(distance: npt.NDArray, laser: Laser) -> tuple[F64, npt.NDArray[np.bool_]]:
    """Points (n, 3) of a range image (H, W) in metres, in the vehicle's frame of their own time; (H, W) bool: returned.

    Pixels without a return hold 0 or −1. With azimuth a and inclination i in the LiDAR's frame:
    point = to_vehicle · distance · (cos i cos a, cos i sin a, sin i).
    """
    returned = distance > 0
    row, column = np.nonzero(returned)
    inclination = laser.inclinations(distance.shape[0])[row]
    azimuth = laser.azimuths(distance.shape[1])[column]
    flat = np.cos(inclination)
    direction = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(inclination)], axis=1)
    points = direction * distance[returned].astype(np.float64)[:, None]
    return points @ laser.to_vehicle[:3, :3].T + laser.to_vehicle[:3, 3], returned


def at_frame_time(points: F64, pose: npt.NDArray, vehicle_to_world: F64) -> F64:
    """Points (n, 3) moved from the vehicle's frame of their own time into that of `vehicle_to_world` (4, 4).

    `pose` (n, 6) is each point's vehicle → world: roll, pitch, yaw (R = Rz Ry Rx, radians), x, y, z (metres).
    """
    cosine, sine = np.cos(pose[:, :3].astype(np.float64)).T, np.sin(pose[:, :3].astype(np.float64)).T
    x, y, z = points.T
    y, z = cosine[0] * y - sine[0] * z, sine[0] * y + cosine[0] * z
    x, z = cosine[1] * x + sine[1] * z, cosine[1] * z - sine[1] * x
    x, y = cosine[2] * x - sine[2] * y, sine[2] * x + cosine[2] * y
    world = np.stack([x, y, z], axis=1) + pose[:, 3:].astype(np.float64)
    return (world - vehicle_to_world[:3, 3]) @ vehicle_to_world[:3, :3]


def read_scans(
    folder: Path, segment: str, times: Iterable[int], vehicle: Component
) -> tuple[dict[int, RangeImages], dict[int, Path]]:
    """Scans of a segment at `times`; for times without a usable scan, the file that lacks a row.

    Raises:
        UserError: a table that cannot be used.
    """
    lidar = read_component(folder, "lidar", segment)
    pixel_pose = read_component(folder, "lidar_pose", segment)
    calibration = read_component(
        folder,
        "lidar_calibration",
        segment,
        ("extrinsic.transform", "beam_inclination.min", "beam_inclination.max"),
        optional=("beam_inclination.values",),
    )
    lasers = _lasers(calibration)
    poses = vehicle.transforms("world_from_vehicle.transform")
    of_time: dict[int, list[tuple[int, str]]] = {}
    for (time, name), row in lidar.rows.items():
        of_time.setdefault(time, []).append((row, name))
    scans: dict[int, RangeImages] = {}
    lacking: dict[int, Path] = {}
    for time in times:
        rows = of_time.get(time)
        pose_row = pixel_pose.rows.get((time, TOP))
        if rows is None:
            lacking[time] = lidar.path
        elif (time,) not in poses:
            lacking[time] = vehicle.path
        elif any((name,) not in lasers for _, name in rows):
            lacking[time] = calibration.path
        elif pose_row is None and any(name == TOP for _, name in rows):
            lacking[time] = pixel_pose.path
        else:
            members = tuple((row, name, lasers[(name,)]) for row, name in rows)
            scans[time] = RangeImages(lidar.path, pixel_pose.path, members, pose_row, poses[(time,)])
    return scans, lacking


def _lasers(calibration: Component) -> Mapping[Key, Laser]:
    to_vehicle = calibration.transforms("extrinsic.transform")
    lowest, highest = (calibration.values(f"beam_inclination.{end}") for end in ("min", "max"))
    beams = calibration.values("beam_inclination.values")
    return {
        key: Laser(matrix, lowest[key], highest[key], np.array(beams[key]) if beams.get(key) else None)
        for key, matrix in to_vehicle.items()
    }


def _image(path: Path, row: int, component: str, channels: int) -> npt.NDArray[np.float32] | None:
    """A range image (H, W, channels) float32, None where the cell is empty."""
    names = tuple(column_name(component, f"{RETURN}.{part}") for part in ("values", "shape"))
    batch: pa.RecordBatch = read_row(path, row, names)
    values, shape = batch.column(names[0])[0], batch.column(names[1])[0].as_py()
    if not values.is_valid or len(values) == 0:
        return None
    numbers = values.values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    if not shape or len(shape) != 3 or shape[2] != channels or int(np.prod(shape)) != len(numbers):
        raise UserError(f"{path}: row {row}: {len(numbers)} values are no range image of shape {shape}; copy it again")
    return numbers.reshape(shape)
