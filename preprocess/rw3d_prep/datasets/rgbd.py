"""RGB-D sequences as 7-Scenes and ScanNet export them.

Two layouts, told apart by what lies there, for the root itself or for each of its sub-folders (= sequences):
- flat (7-Scenes): `frame-000000.color.{jpg,png}`, `frame-000000.depth.png`, `frame-000000.pose.txt`, and
  `camera-intrinsics.txt` (3×3) in the sequence or the root;
- folders (ScanNet): `color/0.jpg`, `depth/0.png`, `pose/0.txt`, `intrinsic/intrinsic_{color,depth}.txt` (4×4).
Depth is uint16, 0 = not measured; poses are 4×4 camera → world with OpenCV axes, lost ones hold −inf or NaN.
Optional sparse labels lie in a folder named like `--set dataset.labels`, with the colour image's stem.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from rw3d_common.cameras import F64, is_rigid, nearest_rigid
from rw3d_common.errors import UserError
from rw3d_common.manifest import DatasetEntry
from rw3d_prep.datasets import DatasetConfig, FrameList
from rw3d_prep.frames import DepthMap, Frame

_NUMBER = re.compile(r"\d+")


def rgbd_frames(root: Path, config: DatasetConfig, entry: DatasetEntry) -> FrameList:
    """Every frame of every sequence with its depth, pose and intrinsics; frames without a depth image are left out.

    Raises:
        UserError: missing or malformed intrinsics or poses, or two images with one frame id.
    """
    found = FrameList()
    for folder in [root, *sorted(path for path in root.iterdir() if path.is_dir())]:
        sequence = folder.name if folder != root else root.resolve().name
        if not config.sequences or sequence in config.sequences:
            _add_sequence(found, folder, sequence, config, float(entry.depth_unit or 0.001))
    return found


def _add_sequence(found: FrameList, folder: Path, sequence: str, config: DatasetConfig, unit: float) -> None:
    images = color_images(folder)
    if not images:
        return
    color_intrinsics, depth_intrinsics = _intrinsics(folder)
    without_depth, without_pose = [], []
    for frame_id, image in images.items():
        depth, pose_file, stem = _companions(folder, image)
        if not depth.is_file():
            without_depth.append(depth)
            continue
        pose = read_pose(pose_file) if pose_file.is_file() else None
        if pose is None:
            without_pose.append(pose_file)
        found.frames.append(
            Frame(
                split=config.splits[0],
                sequence=sequence,
                id=frame_id,
                camera="color",
                image=image,
                camera_to_world=pose,
                intrinsics=color_intrinsics,
                label=_existing(folder / config.labels / f"{stem}.png"),
                truth=_existing(folder / "truth" / f"{stem}.png"),
                depth=DepthMap(depth, unit, depth_intrinsics),
            )
        )
    for missing, what in ((without_depth, "depth image"), (without_pose, "usable pose")):
        if missing:
            found.notes.append(f"{missing[0]}: {len(missing):,} of {len(images):,} frames have no {what}")


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


def color_images(folder: Path) -> dict[int, Path]:
    """Colour images of a sequence by frame id, in numerical order; empty where there are none.

    Raises:
        UserError: a name without number, or two images with one frame id.
    """
    flat = [*folder.glob("*.color.jpg"), *folder.glob("*.color.png")]
    in_folder = [*(folder / "color").glob("*.jpg"), *(folder / "color").glob("*.png")]
    images: dict[int, Path] = {}
    for path in sorted(flat or in_folder):
        digits = _NUMBER.findall(path.name.split(".")[0])
        if not digits:
            raise UserError(
                f"{path}: no frame number in its name; name colour images like frame-000000.color.jpg or 0.jpg"
            )
        frame_id = int(digits[-1])
        if frame_id in images:
            raise UserError(f"{path}: frame id {frame_id} is also {images[frame_id].name}; remove one of the two")
        images[frame_id] = path
    return dict(sorted(images.items()))


def _companions(folder: Path, image: Path) -> tuple[Path, Path, str]:
    """Depth image, pose file and stem of a colour image."""
    if image.parent.name == "color":
        return folder / "depth" / f"{image.stem}.png", folder / "pose" / f"{image.stem}.txt", image.stem
    stem = image.name.split(".")[0]
    return folder / f"{stem}.depth.png", folder / f"{stem}.pose.txt", stem


def _intrinsics(folder: Path) -> tuple[F64, F64]:
    """Intrinsics (3, 3) of the colour and of the depth camera."""
    scannet = folder / "intrinsic"
    if scannet.is_dir():
        return read_matrix(scannet / "intrinsic_color.txt")[:3, :3], read_matrix(scannet / "intrinsic_depth.txt")[
            :3, :3
        ]
    name = "camera-intrinsics.txt"
    path = folder / name if (folder / name).is_file() else folder.parent / name
    if not path.is_file():
        raise UserError(
            f"{folder / name}: no such file; write the 3×3 pinhole matrix there, in pixels of the depth image"
        )
    matrix = read_matrix(path)[:3, :3]
    return matrix, matrix


def read_pose(path: Path) -> F64 | None:
    """A 4×4 camera → world pose, or None where the tracker lost it (not finite or not rigid).

    Raises:
        UserError: the file does not hold 4×4 numbers.
    """
    pose = read_matrix(path)
    if pose.shape != (4, 4):
        raise UserError(f"{path}: holds {pose.shape[0]}×{pose.shape[1]} numbers where 4×4 belong")
    return nearest_rigid(pose) if is_rigid(pose, tolerance=5e-3) else None


def read_matrix(path: Path) -> F64:
    """A matrix of numbers, at least 3×3, one row per line.

    Raises:
        UserError: the file is missing or holds something else.
    """
    try:
        rows = [[float(word) for word in line.split()] for line in path.read_text().splitlines() if line.strip()]
        matrix = np.array(rows)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; export it with the sequence") from None
    except ValueError as error:
        raise UserError(f"{path}: not a matrix of numbers ({error}); export it again") from None
    if matrix.ndim != 2 or min(matrix.shape) < 3:
        raise UserError(f"{path}: not a 3×3 or 4×4 matrix; export it again")
    return matrix
