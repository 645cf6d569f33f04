"""Cityscapes in its official layout (cityscapesScripts, README): `<type>/<split>/<city>/<city>_<seq>_<frame>_<type>.png`.

`dataset.cameras` chooses the pictures: `leftImg8bit` (default), the annotated stills, or `leftImg8bit_sequence`, the
30 frames around each of them, of which one is annotated. Both name a picture alike: sequence `<city>_<seq>`, id
`<frame>`, camera `leftImg8bit`. Label images are the `labelIds` ones. There are no poses: the vehicle's odometry is
not used, and the camera file places the camera in the vehicle only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from rw3d_common.cameras import F64
from rw3d_common.errors import UserError
from rw3d_common.images import image_size, read_label, read_uint16
from rw3d_common.manifest import DatasetEntry
from rw3d_prep.datasets import DatasetConfig, FrameList
from rw3d_prep.datasets.png import encode_png
from rw3d_prep.frames import DepthMap, Frame, StereoPartner
from rw3d_prep.label_folders import is_label_folder

LEFT, RIGHT, DISPARITY, VIDEO = "leftImg8bit", "rightImg8bit", "disparity", "_sequence"
FINE, COARSE = "gtFine", "gtCoarse"
DEPTH_UNIT = 1 / 512  # metres: up to 128 m, farther than `sensor` looks, in steps finer than stereo measures

Key = tuple[int, int]  # sequence and frame number within a city
T = TypeVar("T")


@dataclass(frozen=True)
class Camera:
    """Intrinsics (3, 3) of the rectified pair, in pixels, and its baseline in metres."""

    intrinsics: F64
    baseline: float


@dataclass(frozen=True)
class DisparityDepth:
    """Depth from a disparity image p (16-bit): d = (p − 1) / 256 pixels for p > 0, depth = `scale` / d metres."""

    path: Path
    scale: float
    """Focal length (pixels) × baseline (metres)."""
    member: str = "depth"

    def __str__(self) -> str:
        return f"{self.path}#{self.member}"

    def read_bytes(self) -> bytes:
        """16-bit PNG in `DEPTH_UNIT`; 0 where there is no disparity or the depth exceeds the format.

        Raises:
            UserError: the disparity image is missing, truncated or not 16-bit.
        """
        disparity = (read_uint16(self.path, "disparity image").astype(np.float64) - 1) / 256
        units = np.divide(self.scale / DEPTH_UNIT, disparity, out=np.zeros(disparity.shape), where=disparity > 0)
        return encode_png(np.where(units < 65535, np.rint(units), 0).astype(np.uint16))


@dataclass(frozen=True)
class RigMask:
    """What `ids` mark in a label image: the bonnet and the borders, which the rig shows alike in all of a drive."""

    path: Path
    ids: tuple[int, ...]
    member: str = "mask"

    def __str__(self) -> str:
        return f"{self.path}#{self.member}"

    def read_bytes(self) -> bytes:
        """8-bit PNG, 255 where the label is one of `ids`.

        Raises:
            UserError: the label image is missing, truncated or not 8-bit.
        """
        labels = read_label(self.path, "gray8", image_size(self.path))
        return encode_png(np.where(np.isin(labels, self.ids), 255, 0).astype(np.uint8))


def cityscapes_frames(root: Path, config: DatasetConfig, entry: DatasetEntry) -> FrameList:
    """The pictures of the splits, with camera, right image, disparity, sparse and dense labels where present.

    `dataset.labels` is `gtCoarse`, `gtFine`, or the folder of a copy of `gtFine` with scribbles in place of labels.

    Raises:
        UserError: an unknown camera or split, no split's pictures, converted labels, a malformed camera file.
    """
    video = _video(config.cameras)
    found, absent = FrameList(), []
    for split in config.splits:
        if split not in entry.splits:
            raise UserError(f"unknown split '{split}'; data_manifest.yaml has {', '.join(entry.splits)}")
        folder = root / f"{LEFT}{video}" / split
        if not folder.is_dir():
            absent.append(
                f"{folder}: no such folder, so split '{split}' has no pictures; unpack its package {LEFT}{video} there"
            )
            continue
        for city in sorted(path.name for path in folder.iterdir() if path.is_dir()):
            found.frames += _city_frames(root, video, split, city, config, entry)
    if len(absent) == len(config.splits):
        raise UserError(absent[0])
    found.notes = [*absent, *_missing(root, config.labels, found.frames)]
    return found


def _video(cameras: Sequence[str]) -> str:
    """The suffix of the folders to read."""
    choices = {(): "", (LEFT,): "", (LEFT + VIDEO,): VIDEO}
    if tuple(cameras) not in choices:
        raise UserError(
            f"dataset.cameras is {', '.join(cameras)}; choose one of {LEFT} (stills) and {LEFT}{VIDEO} (30 frames around each)"
        )
    return choices[tuple(cameras)]


def _city_frames(
    root: Path, video: str, split: str, city: str, config: DatasetConfig, entry: DatasetEntry
) -> list[Frame]:
    images = _files(root / f"{LEFT}{video}" / split / city, LEFT + ".png")
    rights = _files(root / f"{RIGHT}{video}" / split / city, RIGHT + ".png")
    disparities = _files(root / f"{DISPARITY}{video}" / split / city, DISPARITY + ".png")
    cameras = {key: read_camera(path) for key, path in _files(root / "camera" / split / city, "camera.json").items()}
    truths = _label_files(root / FINE / split / city, FINE)
    labels = _sparse_labels(root, config.labels, split, city)
    frames = []
    for key, image in images.items():
        sequence = f"{city}_{key[0]:06d}"
        if config.sequences and not {city, sequence} & set(config.sequences):
            continue
        camera, annotated = _nearest(cameras, key), _nearest(truths, key)
        frames.append(
            Frame(
                split=split,
                sequence=sequence,
                id=key[1],
                camera=LEFT,
                image=image,
                intrinsics=camera.intrinsics if camera else None,
                label=labels.get(key),
                truth=truths.get(key),
                exclude=RigMask(annotated, entry.excluded_ids) if annotated and key not in truths else None,
                right=StereoPartner(rights[key], camera.baseline) if camera and key in rights else None,
                depth=_depth(disparities[key], camera) if camera and key in disparities else None,
            )
        )
    return frames


def _depth(disparity: Path, camera: Camera) -> DepthMap:
    scale = float(camera.intrinsics[0, 0]) * camera.baseline
    return DepthMap(DisparityDepth(disparity, scale), DEPTH_UNIT, camera.intrinsics)


def _files(folder: Path, ending: str) -> dict[Key, Path]:
    """The files `<city>_<seq>_<frame>_<ending>` of a city's folder, in order; none where there is no such folder."""
    name = re.compile(rf"{re.escape(folder.name)}_(\d{{6}})_(\d{{6}})_{re.escape(ending)}")
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    found = (name.fullmatch(file) for file in names)
    return {(int(match[1]), int(match[2])): folder / match[0] for match in found if match}


def _sparse_labels(root: Path, labels: str, split: str, city: str) -> dict[Key, Path]:
    """The dataset's own sparse labels of a city; none where a recipe names a folder of made ones, or nothing."""
    if not labels or is_label_folder(labels):
        return {}
    kind = labels if labels in (FINE, COARSE) else FINE
    folder = root / labels if kind == labels else root / labels / kind
    return _label_files(folder / split / city, kind)


def _label_files(folder: Path, kind: str) -> dict[Key, Path]:
    """The labelIds images of a city; the labelTrainIds ones are coded otherwise and never read."""
    files = _files(folder, f"{kind}_labelIds.png")
    converted = _files(folder, f"{kind}_labelTrainIds.png")
    if converted and not files:
        raise UserError(
            f"{next(iter(converted.values()))}: holds train ids, and the {kind}_labelIds.png beside it is missing; unpack "
            f"Cityscapes' package {kind} again"
        )
    return files


def _nearest(of_city: dict[Key, T], key: Key) -> T | None:
    """What belongs to the nearest frame of the same drive: only annotated frames have camera files and labels."""
    drive = [other for other in of_city if other[0] == key[0]]
    return of_city[min(drive, key=lambda other: abs(other[1] - key[1]))] if drive else None


def _missing(root: Path, labels: str, frames: Sequence[Frame]) -> list[str]:
    """One sentence for each kind of thing that was asked for or is usual and is not there."""
    notes = []
    if labels and not is_label_folder(labels) and not any(frame.label for frame in frames):
        notes.append(
            f"{root / labels}: no sparse label of these pictures; dataset.labels is gtCoarse, or a folder that "
            "`rw3d-prep make-labels` made"
        )
    if without := sum(frame.intrinsics is None for frame in frames):
        notes.append(
            f"{root / 'camera'}: no camera file for {without:,} of {len(frames):,} pictures, which only --backend mapanything can use"
        )
    return notes


def read_camera(path: Path) -> Camera:
    """The camera of a `*_camera.json`.

    Raises:
        UserError: no JSON, a value missing, or a focal length or baseline that is not positive.
    """
    try:
        content = json.loads(path.read_text())
        fx, fy, u0, v0 = (float(content["intrinsic"][name]) for name in ("fx", "fy", "u0", "v0"))
        baseline = float(content["extrinsic"]["baseline"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no camera file of Cityscapes ({error!r}); copy the official file again") from None
    if not (min(fx, fy, baseline) > 0 and np.isfinite([fx, fy, u0, v0, baseline]).all()):
        raise UserError(
            f"{path}: focal length {fx}, {fy} or baseline {baseline} is impossible; copy the official file again"
        )
    return Camera(np.array([[fx, 0, u0], [0, fy, v0], [0, 0, 1]]), baseline)
