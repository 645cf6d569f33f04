"""A tiny Cityscapes in the official layout, written from its documentation and not from the adapter.

One slanted wall per picture, so that the left and right image and the disparity agree.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

WIDTH, HEIGHT = 2048, 1024  # of the real pictures; the builder's are smaller
SIZE = (64, 128)
BASELINE = 0.209313
FX, FY, U0, V0 = 2262.52, 2265.3017905988554, 1096.98, 513.137  # the real file of Aachen
UNLABELLED, EGO, BORDER, OUT_OF_ROI, STATIC, ROAD, BUILDING, POLE, SKY, CAR = 0, 1, 2, 3, 4, 7, 11, 17, 23, 26
STILLS = (("aachen", 0, 19), ("aachen", 1, 19), ("hamburg", 0, 42), ("hamburg", 0, 106))
VIDEO = range(17, 22)  # numbers of the frames around aachen's picture 19; the real snippets have 30

U8 = npt.NDArray[np.uint8]


def cityscapes_tree(
    root: Path,
    stills: Iterable[tuple[str, int, int]] = STILLS,
    split: str = "train",
    video: Iterable[int] = (),
    size: tuple[int, int] = SIZE,
) -> Path:
    """Stills with all that comes with them; `video` are frames of aachen's drive 0, without labels or camera files."""
    for number, (city, drive, frame) in enumerate(stills):
        _pair(root, "", split, (city, drive, frame), size, seed=number)
        labels = dense_labels(size)
        files = {kind: label_file(root, kind, split, city, drive, frame) for kind in ("gtFine", "gtCoarse")}
        save(files["gtFine"], labels)
        save(files["gtCoarse"], coarse_labels(size))
        stem = str(files["gtFine"]).removesuffix("labelIds.png")
        save(Path(f"{stem}labelTrainIds.png"), train_id_image(labels))
        save(Path(f"{stem}instanceIds.png"), np.where(labels == CAR, CAR * 1000, labels).astype(np.uint16))
        Path(f"{stem}polygons.json").write_text('{"imgHeight": 1024, "imgWidth": 2048, "objects": []}')
        camera = file_of(root, "camera", split, city, drive, frame, ".json")
        camera.parent.mkdir(parents=True, exist_ok=True)
        camera.write_text(json.dumps(camera_json(size), indent=4))
    for frame in video:
        _pair(root, "_sequence", split, ("aachen", 0, frame), size, seed=100 + frame)
    return root


def file_of(root: Path, kind: str, split: str, city: str, drive: int, frame: int, ending: str, video: str = "") -> Path:
    """`<kind><video>/<split>/<city>/<city>_<drive>_<frame>_<kind><ending>`."""
    return root / f"{kind}{video}" / split / city / f"{city}_{drive:06d}_{frame:06d}_{kind}{ending}"


def label_file(root: Path, kind: str, split: str, city: str, drive: int, frame: int) -> Path:
    """The labelIds image of `gtFine` or `gtCoarse`."""
    return file_of(root, kind, split, city, drive, frame, "_labelIds.png")


def camera_json(size: tuple[int, int]) -> dict[str, dict[str, float]]:
    """The camera file for pictures of `size`."""
    across, down = size[1] / WIDTH, size[0] / HEIGHT
    return {
        "extrinsic": {"baseline": BASELINE, "pitch": 0.038, "roll": 0.0, "x": 1.7, "y": 0.1, "yaw": -0.0195, "z": 1.22},
        "intrinsic": {"fx": FX * across, "fy": FY * down, "u0": U0 * across, "v0": V0 * down},
    }


def wall(size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Depth (H, W) in metres."""
    return np.broadcast_to(np.linspace(4.0, 9.0, size[1]), size).copy()


def dense_labels(size: tuple[int, int]) -> U8:
    """Ids (H, W): sky, buildings, road, a car, a pole, something static; the rig's bonnet and borders."""
    height, width = size
    labels = np.full(size, BUILDING, np.uint8)
    labels[: height // 4], labels[3 * height // 4 :] = SKY, ROAD
    labels[height // 2 : 3 * height // 4, width // 8 : width // 3] = CAR
    labels[height // 4 : 3 * height // 4, 3 * width // 4] = POLE
    labels[height // 2 : height // 2 + 4, width // 2 : width // 2 + 4] = STATIC
    labels[-height // 8 :, width // 4 :] = EGO
    labels[:, :3] = BORDER
    labels[0] = OUT_OF_ROI
    return labels


def coarse_labels(size: tuple[int, int]) -> U8:
    """Ids (H, W) within boxes that stay clear of most outlines, 0 elsewhere; the rig's parts as in the dense labels."""
    labels, (height, width) = dense_labels(size), size
    out = np.where(np.isin(labels, (EGO, BORDER, OUT_OF_ROI)), labels, UNLABELLED).astype(np.uint8)
    for row in (height // 8, 5 * height // 8, 7 * height // 8):
        box = np.s_[row - 2 : row + 2, width // 8 : width // 4]
        out[box] = labels[box]
    return out


def train_id_image(labels: U8) -> U8:
    """What csCreateTrainIdLabelImgs makes of ids: cityscapesScripts' own train ids, 255 for the rest."""
    out = np.full_like(labels, 255)
    for train_id, raw in enumerate((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)):
        out[labels == raw] = train_id
    return out


def save(path: Path, pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> Path:
    """Write an image, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def _pair(root: Path, video: str, split: str, key: tuple[str, int, int], size: tuple[int, int], seed: int) -> None:
    disparity = camera_json(size)["intrinsic"]["fx"] * BASELINE / wall(size)
    left = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    column = np.clip(np.arange(size[1]) + np.rint(disparity).astype(int), 0, size[1] - 1)
    right = left[np.arange(size[0])[:, None], column]
    stored = np.rint(disparity * 256 + 1).astype(np.uint16)
    stored[:, 5], stored[5, 6] = 0, 1  # not measured, and infinitely far
    for kind, pixels in (("leftImg8bit", left), ("rightImg8bit", right), ("disparity", stored)):
        save(file_of(root, kind, split, *key, ".png", video), pixels)
