"""`rw3d-train predict`: label images and overlays for images, folders of images, or a video."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from rw3d_common.errors import UserError, disk_errors
from rw3d_common.images import read_image
from rw3d_common.labels import U8, ClassMap
from rw3d_common.log import progress
from rw3d_train.trained import Segmenter

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")
OVERLAY = 0.5


def predict_all(segmenter: Segmenter, sources: list[Path], out: Path) -> int:
    """Predict every image of `sources`; returns how many.

    Writes `ids/<name>.png` (one 8-bit channel of raw label ids, as the dataset's own labels), `color/<name>.png` (a
    palette image whose indices are train ids) and `overlay/<name>.jpg`.

    Raises:
        UserError: a source that is missing or cannot be read, or two images or videos of one name.
    """
    items = dict(_named(sources))
    images = {name: path for name, path in items.items() if not _is_video(path)}
    done = len(images)
    with disk_errors(out), progress("predict", len(images), "images") as advance:
        for kind in ("ids", "color", "overlay"):
            (out / kind).mkdir(parents=True, exist_ok=True)
        for name, path in images.items():
            _write(segmenter, name, read_image(path), out)
            advance()
        for name, path in items.items():
            for number, image in enumerate(video_frames(path) if _is_video(path) else ()):
                _write(segmenter, f"{name}_{number:06d}", image, out)
                done += 1
    return done


def _write(segmenter: Segmenter, name: str, image: U8, out: Path) -> None:
    labels = segmenter.predict(image)
    Image.fromarray(raw_ids(segmenter.classes).take(labels)).save(out / "ids" / f"{name}.png")
    color = Image.fromarray(labels)
    color.putpalette(segmenter.classes.palette.tobytes())
    color.save(out / "color" / f"{name}.png")
    Image.fromarray(overlay(image, labels, segmenter.classes)).save(out / "overlay" / f"{name}.jpg", quality=90)


def raw_ids(classes: ClassMap) -> U8:
    """(256,) uint8: train id → the first raw id of its class; 255 stays."""
    table = np.full(256, 255, np.uint8)
    for item in classes.classes:
        table[item.train_id] = item.raw_ids[0]
    return table


def overlay(image: U8, labels: U8, classes: ClassMap, opacity: float = OVERLAY) -> U8:
    """The image (H, W, 3) under the colours of its labels (H, W); pixels labelled 255 stay as they are."""
    colors = classes.palette[labels].astype(np.float32)
    mixed = (1 - opacity) * image + opacity * colors
    return np.where((labels != 255)[..., None], np.rint(mixed), image).astype(np.uint8)


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS


def _named(sources: list[Path]) -> Iterator[tuple[str, Path]]:
    """(name, path) of every image and video; those of a folder are named by their path below it.

    Raises:
        UserError: a missing file, a folder without images, or two files of one name.
    """
    seen: dict[str, Path] = {}
    for source in sources:
        for name, path in _below(source) if source.is_dir() else [(source.stem, source)]:
            if not path.is_file():
                raise UserError(f"{path}: no such file; give images, folders of images, or videos")
            if name in seen:
                raise UserError(f"{path}: would be written as {name}, and so would {seen[name]}; predict them apart")
            seen[name] = path
            yield name, path


def _below(folder: Path) -> list[tuple[str, Path]]:
    known = (*IMAGES, *VIDEOS)
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in known)
    if not found:
        raise UserError(f"{folder}: no image or video in this folder ({', '.join(known)}); name another one")
    return [("_".join(path.relative_to(folder).with_suffix("").parts), path) for path in found]


def video_frames(path: Path) -> Iterator[U8]:
    """RGB images (H, W, 3) of every frame of a video.

    Raises:
        UserError: OpenCV is missing, or the file is no video.
    """
    try:
        import cv2
    except ImportError:
        raise UserError(
            f"{path}: reading video needs OpenCV: pip install opencv-python-headless; or give its frames"
        ) from None
    video = cv2.VideoCapture(str(path))
    try:
        there, frame = video.read()
        if not there:
            raise UserError(f"{path}: no frame can be decoded; give another video, or its frames as images")
        while there:
            yield np.ascontiguousarray(frame[..., ::-1])
            there, frame = video.read()
    finally:
        video.release()
