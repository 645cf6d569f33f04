"""KITTI-360 in its official layout (cvlibs.net documentation page, autonomousvision/kitti360Scripts).

Rectified perspective cameras image_00 (left) and image_01 (right); `data_poses/…/poses.txt` joins poses to frames by
frame id (13 columns: id and the 3×4 IMU pose); a rectified camera k sits at pose · cam_to_pose[k] · R_rect[k]⁻¹
(kitti360Scripts, helpers/project.py). Sparse labels are Scribbles4All's `scribble/` folders beside `semantic/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rw3d_common.cameras import F64, is_rigid, nearest_rigid
from rw3d_common.errors import UserError
from rw3d_common.manifest import DatasetEntry
from rw3d_prep.datasets import DatasetConfig, FrameList
from rw3d_prep.datasets.kitti360_windows import Window, find_windows, window_of
from rw3d_prep.frames import Frame, LidarScan, StereoPartner

CAMERAS = ("image_00", "image_01")


@dataclass(frozen=True)
class Calibration:
    """Intrinsics (3, 3) and camera → IMU (4, 4) of both rectified cameras, the baseline in metres, LiDAR → camera."""

    intrinsics: dict[str, F64]
    camera_to_imu: dict[str, F64]
    baseline: float
    lidar_to_camera: dict[str, F64]


def kitti360_frames(root: Path, config: DatasetConfig, entry: DatasetEntry) -> FrameList:
    """Frames of the official splits whose images exist, with poses, calibration, labels and LiDAR where present.

    Raises:
        UserError: calibration, pose or split files that are missing or malformed; an unknown camera or split.
    """
    cameras = config.cameras or CAMERAS[:1]
    if unknown := set(cameras) - set(CAMERAS):
        raise UserError(
            f"unknown camera {', '.join(sorted(unknown))}; KITTI-360's perspective cameras are image_00 and image_01"
        )
    calibration = read_calibration(root / "calibration")
    found = FrameList()
    for split in config.splits:
        for sequence, ids in _split_frames(root, split, entry).items():
            if not config.sequences or sequence in config.sequences:
                poses, notes = read_poses(root / "data_poses" / sequence / "poses.txt")
                found.notes += notes
                _add_sequence(found, root, split, sequence, ids, cameras, poses, calibration, config.labels)
    return found


def _split_frames(root: Path, split: str, entry: DatasetEntry) -> dict[str, list[int]]:
    """Frame ids per sequence, from the split's official list of 'image path, label path' lines."""
    if split not in entry.splits:
        raise UserError(f"unknown split '{split}'; data_manifest.yaml has {', '.join(entry.splits)}")
    listing = root / str(entry.splits[split].list)
    if not listing.is_file():
        raise UserError(
            f"{listing}: no such file; it names the frames of split '{split}' and comes with KITTI-360's 2D semantics"
        )
    ids: dict[str, set[int]] = {}
    for number, line in enumerate(listing.read_text().splitlines(), 1):
        if not line.strip():
            continue
        image = Path(line.split()[0])
        try:
            ids.setdefault(image.parts[-4], set()).add(int(image.stem))
        except (IndexError, ValueError):
            raise UserError(
                f"{listing}: line {number} is '{line}', not data_2d_raw/<sequence>/image_00/data_rect/<frame>.png <label>.png"
            ) from None
    return {sequence: sorted(members) for sequence, members in sorted(ids.items())}


def _add_sequence(
    found: FrameList,
    root: Path,
    split: str,
    sequence: str,
    ids: list[int],
    cameras: tuple[str, ...],
    poses: dict[int, F64],
    calibration: Calibration,
    labels: str,
) -> None:
    raw = root / "data_2d_raw" / sequence
    semantics = root / "data_2d_semantics" / "train" / sequence
    if not raw.is_dir():
        found.notes.append(f"{raw}: not there; its {len(ids)} frames of split '{split}' are left out")
        return
    windows = find_windows(root, sequence)
    missing = unposed = 0
    for frame_id in ids:
        name = f"{frame_id:010d}.png"
        for camera in cameras:
            image = raw / camera / "data_rect" / name
            if not image.is_file():
                missing += 1
                continue
            pose = poses.get(frame_id)
            camera_to_world = None if pose is None else nearest_rigid(pose @ calibration.camera_to_imu[camera])
            unposed += pose is None
            right = raw / "image_01" / "data_rect" / name
            scan = root / "data_3d_raw" / sequence / "velodyne_points" / "data" / f"{frame_id:010d}.bin"
            found.frames.append(
                Frame(
                    split=split,
                    sequence=sequence,
                    id=frame_id,
                    camera=camera,
                    image=image,
                    camera_to_world=camera_to_world,
                    intrinsics=calibration.intrinsics[camera],
                    label=_existing(semantics / camera / labels / name),
                    truth=_existing(semantics / camera / "semantic" / name),
                    right=StereoPartner(right, calibration.baseline)
                    if camera == "image_00" and right.is_file()
                    else None,
                    lidar=LidarScan(scan, calibration.lidar_to_camera[camera]) if scan.is_file() else None,
                    accumulated=_accumulated(window_of(windows, frame_id), camera_to_world),
                )
            )
    total = len(ids) * len(cameras)
    if missing:
        found.notes.append(f"{raw}: {missing:,} of {total:,} listed images of split '{split}' are missing and left out")
    if unposed:
        found.notes.append(f"{sequence}: {unposed:,} of {total:,} frames of split '{split}' have no usable pose")


def _accumulated(window: Window | None, camera_to_world: F64 | None) -> LidarScan | None:
    if window is None or camera_to_world is None:
        return None
    return LidarScan(window, np.asarray(np.linalg.inv(camera_to_world), np.float64), accumulated=True)


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


def read_calibration(folder: Path) -> Calibration:
    """Calibration of the rectified cameras.

    Raises:
        UserError: a missing file or line, or a line with the wrong count of numbers.
    """
    perspective = _named_rows(folder / "perspective.txt")
    to_imu = _named_rows(folder / "calib_cam_to_pose.txt")
    intrinsics, camera_to_imu, unrectified = {}, {}, {}
    for camera in CAMERAS:
        index = camera[-2:]
        rectification = np.eye(4)
        rectification[:3, :3] = _numbers(perspective, f"R_rect_{index}", 9, folder / "perspective.txt").reshape(3, 3)
        projection = _numbers(perspective, f"P_rect_{index}", 12, folder / "perspective.txt").reshape(3, 4)
        intrinsics[camera] = projection[:, :3].copy()
        unrectified[camera] = _rigid(_numbers(to_imu, camera, 12, folder / "calib_cam_to_pose.txt"))
        camera_to_imu[camera] = unrectified[camera] @ np.linalg.inv(rectification)
        if camera == "image_01":
            baseline = -projection[0, 3] / projection[0, 0]
    lidar_file = folder / "calib_cam_to_velo.txt"
    camera_0_to_lidar = _rigid(_numbers({"": _text(lidar_file).split()}, "", 12, lidar_file))
    lidar_to_imu = unrectified["image_00"] @ np.linalg.inv(camera_0_to_lidar)
    lidar_to_camera = {camera: np.linalg.inv(camera_to_imu[camera]) @ lidar_to_imu for camera in CAMERAS}
    return Calibration(intrinsics, camera_to_imu, float(baseline), lidar_to_camera)


def read_poses(path: Path) -> tuple[dict[int, F64], list[str]]:
    """IMU poses (4, 4) float64 by frame id, and a sentence per kind of row left out.

    Rows that are not finite or not rigid are left out, and so are frame ids that stand there twice with different
    poses: which one is right cannot be known.

    Raises:
        UserError: the file is missing, or a line does not hold 13 numbers.
    """
    poses: dict[int, F64] = {}
    broken, contradictory = set(), set()
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        values = _floats(line.split(), 13, f"{path}: line {number}")
        if not values[0].is_integer():
            raise UserError(f"{path}: line {number} starts with {line.split()[0]}, not a frame id; mend that line")
        frame_id, pose = int(values[0]), _rigid(values[1:])
        if not is_rigid(pose):
            broken.add(frame_id)
        elif frame_id in poses and not np.array_equal(poses[frame_id], pose):
            contradictory.add(frame_id)
        else:
            poses[frame_id] = pose
    for frame_id in broken | contradictory:
        poses.pop(frame_id, None)
    notes = []
    if broken:
        notes.append(f"{path}: pose {_some(broken)} is not a finite rigid transform and is left out")
    if contradictory:
        notes.append(f"{path}: pose {_some(contradictory)} stands there twice with different values; all are left out")
    return poses, notes


def _some(ids: set[int]) -> str:
    shown = ", ".join(f"{frame_id:010d}" for frame_id in sorted(ids)[:3])
    return shown if len(ids) <= 3 else f"{shown} and {len(ids) - 3:,} more"


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; it belongs to KITTI-360's layout (`rw3d-prep datasets check kitti360` lists it)"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error}); copy the official file again") from None


def _named_rows(path: Path) -> dict[str, list[str]]:
    rows = (line.split(":", 1) for line in _text(path).splitlines() if ":" in line)
    return {key.strip(): values.split() for key, values in rows}


def _numbers(rows: dict[str, list[str]], key: str, count: int, path: Path) -> F64:
    if key not in rows:
        raise UserError(f"{path}: line '{key}:' is missing; copy the official file again")
    return _floats(rows[key], count, f"{path}: '{key}'")


def _floats(words: list[str], count: int, where: str) -> F64:
    try:
        values = np.array([float(word) for word in words])
    except ValueError as error:
        raise UserError(f"{where}: {error}; copy the official file again") from None
    if len(values) != count:
        raise UserError(f"{where} holds {len(values)} numbers where {count} belong; copy the official file again")
    return values


def _rigid(values: F64) -> F64:
    """12 row-major numbers as a 4×4 transform."""
    return np.vstack([values.reshape(3, 4), [0, 0, 0, 1]])
