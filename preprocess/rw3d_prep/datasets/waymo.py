"""Waymo Open Dataset (perception), v2: `{root}/{training|validation|testing}/{component}/{segment}.parquet`.

Rows are joined by their keys (segment, time, camera). A sequence is a segment, a frame id its timestamp in
microseconds. A camera sits at pose · extrinsic · (OpenCV → Waymo camera axes), with the vehicle's pose at that camera's
exposure. Lens distortion (k1, k2, p1, p2, k3) and the rolling shutter are not modelled: with the published sample's
calibration, projected LiDAR points are up to 31 of 1920 pixels off in the image's corners and 10 at its sides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rw3d_common.cameras import F64
from rw3d_common.errors import UserError
from rw3d_common.manifest import DatasetEntry
from rw3d_prep.datasets import DatasetConfig, FrameList
from rw3d_prep.datasets.waymo_cells import CameraImage, PanopticLabel
from rw3d_prep.datasets.waymo_lidar import RangeImages, read_scans
from rw3d_prep.datasets.waymo_tables import CAMERA, NAMES, Component, Key, read_component
from rw3d_prep.frames import Frame, LidarScan

CAMERAS = NAMES[CAMERA]
# Waymo's camera axes (x forward, y left, z up) of a point given in OpenCV's (x right, y down, z forward).
WAYMO_FROM_OPENCV = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])


def waymo_frames(root: Path, config: DatasetConfig, entry: DatasetEntry) -> FrameList:
    """A frame per image of the chosen cameras (default: the front three), with panoptic labels as truth, and LiDAR.

    Raises:
        UserError: an unknown camera or split, no data at all, or a table that cannot be used.
    """
    cameras = config.cameras or CAMERAS[:3]
    if unknown := set(cameras) - set(CAMERAS):
        raise UserError(f"unknown camera {', '.join(sorted(unknown))}; Waymo's are {', '.join(CAMERAS)}")
    found = FrameList()
    for split in config.splits:
        folder = root / _split_folder(split, entry)
        lacks = _Lacks()
        frames = []
        for path in sorted((folder / "camera_image").glob("*.parquet")):
            if not config.sequences or path.stem in config.sequences:
                segment = _read_segment(folder, path.stem)
                keys = sorted(key for key in segment.images.rows if key[1] in cameras)
                frames += [_frame(split, segment, time, camera, lacks) for time, camera in keys]
        if not frames:
            found.notes.append(f"{folder / 'camera_image'}: holds no segment of split '{split}'")
        found.frames += frames
        found.notes += lacks.notes(split, len(frames))
    if not found.frames:
        raise UserError(f"{found.notes[0]}; download the components camera_image and camera_calibration of v2 there")
    return found


def _split_folder(split: str, entry: DatasetEntry) -> str:
    if split not in entry.splits:
        raise UserError(f"unknown split '{split}'; data_manifest.yaml has {', '.join(entry.splits)}")
    return entry.splits[split].folder or split


@dataclass
class _Lacks:
    """What frames lack, by the file that should have it: a sentence per kind and component, not per segment."""

    found: dict[tuple[Path, str], list[tuple[Path, str]]] = field(default_factory=dict)

    def add(self, path: Path, what: str, member: str) -> None:
        self.found.setdefault((path.parent, what), []).append((path, member))

    def notes(self, split: str, total: int) -> list[str]:
        sentences = []
        for (_, what), lacking in self.found.items():
            path, frame = lacking[0]
            files = len({item[0] for item in lacking})
            where = f"{path}{f' and {files - 1:,} more' if files > 1 else ''}"
            state = "lacks usable rows" if path.is_file() else "is missing"
            sentences.append(
                f"{where}: {state}; {len(lacking):,} of {total:,} frames of split '{split}' have no {what} (first: {frame})"
            )
        return sentences


@dataclass(frozen=True)
class _Segment:
    """The tables of one segment by key: (time, camera), (camera,) or time; and where what is missing should be."""

    name: str
    images: Component
    poses: dict[Key, F64]
    pose_path: Path
    to_vehicle: dict[Key, F64]
    intrinsics: dict[Key, F64]
    calibration_path: Path
    truth: dict[Key, PanopticLabel]
    scans: dict[int, RangeImages]
    without_scan: dict[int, Path]


def _read_segment(folder: Path, name: str) -> _Segment:
    images = read_component(folder, "camera_image", name, optional=("pose.transform",))
    vehicle = read_component(folder, "vehicle_pose", name, ("world_from_vehicle.transform",))
    poses, pose_path = _poses(images, vehicle)
    calibration = read_component(
        folder,
        "camera_calibration",
        name,
        ("extrinsic.transform", *(f"intrinsic.{number}" for number in ("f_u", "f_v", "c_u", "c_v"))),
    )
    times = {key[0] for key in images.rows} if (folder / "lidar").is_dir() else ()
    scans, without_scan = read_scans(folder, name, times, vehicle)
    return _Segment(
        name=name,
        images=images,
        poses=poses,
        pose_path=pose_path,
        to_vehicle=calibration.transforms("extrinsic.transform"),
        intrinsics=_intrinsics(calibration),
        calibration_path=calibration.path,
        truth=_labels(read_component(folder, "camera_segmentation", name, ("panoptic_label_divisor",))),
        scans=scans,
        without_scan=without_scan,
    )


def _poses(images: Component, vehicle: Component) -> tuple[dict[Key, F64], Path]:
    """World from vehicle at each image's exposure, or at its time where images carry no pose; and whose they are."""
    if images.has("pose.transform"):
        return images.transforms("pose.transform"), images.path
    of_time = vehicle.transforms("world_from_vehicle.transform")
    return {key: of_time[key[:1]] for key in images.rows if key[:1] in of_time}, vehicle.path


def _intrinsics(calibration: Component) -> dict[Key, F64]:
    f_u, f_v, c_u, c_v = (calibration.values(f"intrinsic.{number}") for number in ("f_u", "f_v", "c_u", "c_v"))
    matrices = {}
    for key in calibration.rows:
        numbers = (f_u[key], f_v[key], c_u[key], c_v[key])
        if None in numbers or not np.isfinite(numbers).all() or min(numbers[:2]) <= 0:
            raise UserError(
                f"{calibration.path}: intrinsics of {key[0]} are f_u, f_v, c_u, c_v = {numbers}; copy the file again"
            )
        matrices[key] = np.array([[numbers[0], 0, numbers[2]], [0, numbers[1], numbers[3]], [0, 0, 1]])
    return matrices


def _labels(segmentation: Component) -> dict[Key, PanopticLabel]:
    divisors = segmentation.values("panoptic_label_divisor")
    labels = {}
    for (time, camera), row in segmentation.rows.items():
        divisor, member = divisors[time, camera], f"{time}/{camera}"
        if not divisor or divisor < 0:
            raise UserError(
                f"{segmentation.path}: panoptic_label_divisor of {member} is {divisor}; copy the file again, or remove "
                "it to go without dense labels"
            )
        labels[time, camera] = PanopticLabel(segmentation.path, member, row, divisor)
    return labels


def _frame(split: str, segment: _Segment, time: int, camera: str, lacks: _Lacks) -> Frame:
    key, member = (time, camera), f"{time}/{camera}"
    pose, extrinsic, intrinsics = (
        segment.poses.get(key),
        segment.to_vehicle.get((camera,)),
        segment.intrinsics.get((camera,)),
    )
    scan = segment.scans.get(time)
    camera_to_world = None if pose is None or extrinsic is None else pose @ extrinsic @ WAYMO_FROM_OPENCV
    if pose is None:
        lacks.add(segment.pose_path, "vehicle pose", member)
    if extrinsic is None or intrinsics is None:
        lacks.add(segment.calibration_path, "calibration", member)
    if time in segment.without_scan:
        lacks.add(segment.without_scan[time], "LiDAR", member)
    lidar = None
    if scan is not None and camera_to_world is not None:
        lidar = LidarScan(scan, np.linalg.inv(camera_to_world) @ scan.vehicle_to_world)
    return Frame(
        split=split,
        sequence=segment.name,
        id=time,
        camera=camera,
        image=CameraImage(segment.images.path, member, segment.images.rows[key]),
        camera_to_world=camera_to_world,
        intrinsics=intrinsics,
        truth=segment.truth.get(key),
        lidar=lidar,
    )
