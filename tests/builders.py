"""Tiny datasets in the official byte formats, written from the layout documents and not from the adapters.

Everything is seeded: the same call writes the same bytes. A whole `reconstruct` of the default trees takes well under
a second. Geometry is one slanted wall per frame, so that colour, depth, scan and both stereo images agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]
Size = tuple[int, int]

# KITTI-360: rectified perspective cameras of 1408×376, about 552.6 px focal length, 0.594 m baseline.
KITTI_WIDTH, KITTI_HEIGHT = 1408, 376
KITTI_FOCAL, KITTI_CENTRE, KITTI_BASELINE = 552.55, (682.05, 238.77), 0.594
KITTI_ORIGIN = (3639.2, 1708.2, 122.1)  # metres: worlds are large
ROAD, BUILDING, POLE, SKY, CAR = 7, 11, 17, 23, 26  # ids of KITTI-360's helpers/labels.py
DEPTH_UNIT = 0.001  # metres per unit of a depth PNG


def kitti_sequence(number: int) -> str:
    """KITTI-360's name of a drive."""
    return f"2013_05_28_drive_{number:04d}_sync"


def kitti360_tree(
    root: Path,
    sequences: Sequence[int] = (0,),
    frames: Iterable[int] = range(4),
    size: Size = (32, 64),
    val_sequences: Sequence[int] = (),
    seed: int = 0,
) -> Path:
    """KITTI-360: `sequences` belong to the split train, `val_sequences` to val; every frame has a scribble."""
    rng = np.random.default_rng(seed)
    _write(root / "calibration" / "perspective.txt", _perspective(size))
    _write(root / "calibration" / "calib_cam_to_pose.txt", _cam_to_pose())
    _write(root / "calibration" / "calib_cam_to_velo.txt", _numbers(_cam_to_velo()[:3]) + "\n")
    ids = list(frames)
    for split, members in (("train", sequences), ("val", val_sequences)):
        names = [kitti_sequence(number) for number in members]
        lines = [f"{_kitti_image(name, frame)} {_kitti_label(name, frame)}\n" for name in names for frame in ids]
        _write(root / "data_2d_semantics" / "train" / f"2013_05_28_drive_{split}_frames.txt", "".join(lines))
        for name in names:
            _kitti_drive(root, name, ids, size, rng)
    return root


def kitti_files(root: Path, sequence: int, frame: int) -> dict[str, Path]:
    """The files of one frame, by what they hold: left, right, scribble, semantic, scan."""
    name, png = kitti_sequence(sequence), f"{frame:010d}.png"
    raw, semantics = root / "data_2d_raw" / name, root / "data_2d_semantics" / "train" / name / "image_00"
    return {
        "left": raw / "image_00" / "data_rect" / png,
        "right": raw / "image_01" / "data_rect" / png,
        "scribble": semantics / "scribble" / png,
        "semantic": semantics / "semantic" / png,
        "scan": root / "data_3d_raw" / name / "velodyne_points" / "data" / f"{frame:010d}.bin",
    }


def kitti_poses(root: Path, sequence: int) -> Path:
    """poses.txt of a drive."""
    return root / "data_poses" / kitti_sequence(sequence) / "poses.txt"


def rgbd_tree(root: Path, frames: Iterable[int] = range(4), size: Size = (24, 32), seed: int = 0) -> Path:
    """7-Scenes: flat names, colour and depth of one size, millimetres, 0 and 65535 where nothing was measured."""
    rng = np.random.default_rng(seed)
    intrinsics = _pinhole(size, 0.9)
    _write(root / "camera-intrinsics.txt", _matrix(intrinsics))
    for index, frame in enumerate(frames):
        stem = root / f"frame-{frame:06d}"
        millimetres = np.round(_wall(size, 1.0, 2.0) / DEPTH_UNIT).astype(np.uint16)
        millimetres[:, 0], millimetres[0, :] = 0, 65535
        save_image(stem.with_name(f"{stem.name}.color.jpg"), _texture(size, rng))
        save_image(stem.with_name(f"{stem.name}.depth.png"), millimetres)
        _write(stem.with_name(f"{stem.name}.pose.txt"), _matrix(_indoor_pose(index)))
    return root


def scannet_tree(
    root: Path,
    frames: Iterable[int] = range(4),
    lost: Sequence[int] = (),
    color_size: Size = (48, 64),
    depth_size: Size = (24, 32),
    seed: int = 0,
) -> Path:
    """ScanNet's exporter: folders, names without leading zeros, -inf poses for frames in `lost`."""
    rng = np.random.default_rng(seed)
    for camera, size in (("color", color_size), ("depth", depth_size)):
        intrinsics = np.eye(4)
        intrinsics[:3, :3] = _pinhole(size, 0.9)
        _write(root / "intrinsic" / f"intrinsic_{camera}.txt", _matrix(intrinsics))
        _write(root / "intrinsic" / f"extrinsic_{camera}.txt", _matrix(np.eye(4)))
    for index, frame in enumerate(frames):
        millimetres = np.round(_wall(depth_size, 1.0, 2.0) / DEPTH_UNIT).astype(np.uint16)
        millimetres[:2] = 0
        save_image(root / "color" / f"{frame}.jpg", _texture(color_size, rng))
        save_image(root / "depth" / f"{frame}.png", millimetres)
        pose = np.full((4, 4), -np.inf) if frame in lost else _indoor_pose(index)
        _write(root / "pose" / f"{frame}.txt", _matrix(pose))
    return root


def camvid_tree(root: Path, frames: int = 3) -> Path:
    """Sequence folders of images and dense labels (road below building, 11 = unlabelled at the left), lists of the splits."""
    label = np.full((36, 48), 3, np.uint8)
    label[:18], label[:, :4] = 1, 11
    rng = np.random.default_rng(0)
    for split, sequence in (("train", "0001TP"), ("val", "0016E5")):
        for index in range(frames):
            stem = f"{sequence}_{index:05d}"
            image = np.repeat(60 * label[..., None] % 251, 3, axis=2) + rng.integers(0, 5, (36, 48, 3), dtype=np.uint8)
            save_image(root / sequence / "image" / f"{stem}.jpg", image)
            save_image(root / sequence / "label" / f"{stem}.png", label)
        _write(root / "splits" / f"{split}.txt", "".join(f"{sequence}/{sequence}_{i:05d}\n" for i in range(frames)))
    return root


def save_image(path: Path, pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> Path:
    """Write (H, W, 3) uint8, (H, W) uint8 or (H, W) uint16 as the format that the name asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def cut_short(path: Path, keep: float = 0.6) -> Path:
    """Truncate a file, as an interrupted copy does."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def _kitti_image(name: str, frame: int) -> str:
    return f"data_2d_raw/{name}/image_00/data_rect/{frame:010d}.png"


def _kitti_label(name: str, frame: int) -> str:
    return f"data_2d_semantics/train/{name}/image_00/semantic/{frame:010d}.png"


def _kitti_drive(root: Path, name: str, ids: Sequence[int], size: Size, rng: np.random.Generator) -> None:
    number = int(name.split("_")[-2])
    poses = []
    for index, frame in enumerate(ids):
        files = kitti_files(root, number, frame)
        left, depth, labels = _texture(size, rng), _wall(size, 6.0, 16.0), _street(size)
        save_image(files["left"], left)
        save_image(files["right"], _seen_from_the_right(left, depth))
        save_image(files["semantic"], labels)
        save_image(files["scribble"], np.repeat(_scribble(labels)[..., None], 3, axis=2))
        files["scan"].parent.mkdir(parents=True, exist_ok=True)
        _scan(depth, rng).tofile(files["scan"])
        poses.append(f"{frame} {_numbers(_imu_pose(number, index)[:3])}\n")
    _write(root / "data_poses" / name / "poses.txt", "".join(poses))


def _kitti_intrinsics(size: Size) -> F64:
    """Those of the real cameras for images of another size: x' = (x + 0.5) · s − 0.5."""
    columns, rows = size[1] / KITTI_WIDTH, size[0] / KITTI_HEIGHT
    centre = (KITTI_CENTRE[0] + 0.5) * columns - 0.5, (KITTI_CENTRE[1] + 0.5) * rows - 0.5
    return np.array([[KITTI_FOCAL * columns, 0, centre[0]], [0, KITTI_FOCAL * columns, centre[1]], [0, 0, 1]])


RECTIFY = (("00", (0.0032, 0.0001, -0.0071)), ("01", (-0.0032, 0.0172, -0.0121)))


def _perspective(size: Size) -> str:
    lines = []
    intrinsics = _kitti_intrinsics(size)
    for index, (camera, angles) in enumerate(RECTIFY):
        shift = np.array([[-intrinsics[0, 0] * KITTI_BASELINE * index], [0], [0]])
        lines.append(f"S_rect_{camera}: {size[1]} {size[0]}")
        lines.append(f"R_rect_{camera}: {_numbers(_rotation(*angles))}")
        lines.append(f"P_rect_{camera}: {_numbers(np.hstack([intrinsics, shift]))}")
    return "\n".join(lines) + "\n"


def _rectified_to_imu() -> F64:
    """Orientation that both rectified cameras share: camera z is the car's x, seen from a slightly tilted mount."""
    return np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]) @ _rotation(-0.0975, 0.004, 0.038)


def _unrectified_to_imu(index: int) -> F64:
    """Unrectified camera → IMU (4, 4): its rectified orientation times R_rect."""
    out = np.eye(4)
    out[:3, :3] = _rectified_to_imu() @ _rotation(*RECTIFY[index][1])
    out[:3, 3] = np.array([1.575, 0.004, -0.65]) + _rectified_to_imu() @ [KITTI_BASELINE * index, 0, 0]
    return out


def _cam_to_pose() -> str:
    cameras = [f"image_{index:02d}: {_numbers(_unrectified_to_imu(min(index, 1))[:3])}\n" for index in range(4)]
    return "".join(cameras)


def _cam_to_velo() -> F64:
    """Unrectified camera 0 → velodyne (4, 4): x forward, y left, z up."""
    out = np.eye(4)
    out[:3, :3] = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]) @ _rotation(0.088, 0.044, 0.012)
    out[:3, 3] = 0.8044, 0.2993, -0.1770
    return out


def _imu_pose(number: int, index: int) -> F64:
    """IMU → world (4, 4): 0.8 m per frame on a gentle curve, z down, drives kilometres from the origin."""
    out = np.eye(4)
    out[:3, :3] = _rotation(0.002 * index, 0.003, 0.7 + 0.01 * index) @ np.diag([1.0, -1.0, -1.0])
    out[:3, 3] = np.add(KITTI_ORIGIN, [150.0 * number + 0.6 * index, -90.0 * number + 0.5 * index, 0.01 * index])
    return out


def _scan(depth: F64, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Half the pixels of rectified camera 0 at their depth, and some returns behind the car, in the velodyne's frame."""
    intrinsics = _kitti_intrinsics((depth.shape[0], depth.shape[1]))
    row, column = np.nonzero(rng.random(depth.shape) < 0.5)
    z = depth[row, column]
    rays = np.stack(
        [(column - intrinsics[0, 2]) / intrinsics[0, 0], (row - intrinsics[1, 2]) / intrinsics[1, 1], np.ones(len(z))]
    )
    rectified = np.hstack([rays * z, rays[:, :20] * -5.0])
    unrectified = _rotation(*RECTIFY[0][1]).T @ rectified
    scanner = _cam_to_velo()
    points = (scanner[:3, :3] @ unrectified).T + scanner[:3, 3]
    return np.column_stack([points, rng.random(len(points))]).astype(np.float32)


def _wall(size: Size, near: float, far: float) -> F64:
    """Depth (H, W) in metres: a wall that recedes from left to right."""
    return np.broadcast_to(np.linspace(near, far, size[1]), size).copy()


def _seen_from_the_right(left: U8, depth: F64) -> U8:
    """The right image: pixel u shows what the left shows at u + disparity."""
    focal = _kitti_intrinsics((depth.shape[0], depth.shape[1]))[0, 0]
    shift = np.round(focal * KITTI_BASELINE / depth).astype(int)
    column = np.clip(np.arange(depth.shape[1]) + shift, 0, depth.shape[1] - 1)
    return left[np.arange(depth.shape[0])[:, None], column]


def _texture(size: Size, rng: np.random.Generator) -> U8:
    return rng.integers(0, 256, (*size, 3), dtype=np.uint8)


def _street(size: Size) -> U8:
    """Dense ids (H, W): sky, buildings, road, one car and a pole."""
    height, width = size
    labels = np.full(size, BUILDING, np.uint8)
    labels[: height // 4] = SKY
    labels[3 * height // 4 :] = ROAD
    labels[height // 2 : 3 * height // 4, width // 8 : width // 3] = CAR
    labels[height // 4 : 3 * height // 4, 3 * width // 4] = POLE
    return labels


def _scribble(labels: U8) -> U8:
    """Ids on a few strokes, 0 elsewhere: what Scribbles4All writes."""
    out = np.zeros_like(labels)
    height, width = labels.shape
    for row in (height // 8, 5 * height // 8, 7 * height // 8):
        out[row, width // 8 : width // 2] = labels[row, width // 8 : width // 2]
    return out


def _indoor_pose(index: int) -> F64:
    """Camera → world (4, 4) of a hand-held camera that walks and turns a little."""
    out = np.eye(4)
    out[:3, :3] = _rotation(0.01 * index, 0.02 * index, 0.005)
    out[:3, 3] = 0.05 * index, 0.01, 1.2
    return out


def _pinhole(size: Size, focal_share: float) -> F64:
    height, width = size
    return np.array([[focal_share * width, 0, (width - 1) / 2], [0, focal_share * width, (height - 1) / 2], [0, 0, 1]])


def _rotation(x: float, y: float, z: float) -> F64:
    """Rotation (3, 3) by angles in radians about x, then y, then z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos([x, y, z]), np.sin([x, y, z])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _numbers(values: F64) -> str:
    return " ".join(f"{value:.10f}" for value in np.asarray(values).ravel())


def _matrix(values: F64) -> str:
    return "".join(" ".join(f"{value:.8f}" for value in row) + "\n" for row in values)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
