"""People's own data: a folder of images, a folder of such folders (= sequences), or one video file.

Images lie in a sequence folder itself or in its `image/` or `images/`; sparse labels lie in a sibling folder (`label/`,
`labels/`, or what `dataset.labels` names) as PNGs with the image's stem. Order is natural (2 before 10); the frame
id is the last number in the name, or the position where names hold none. Where the manifest says that a dataset's labels
are dense, they are its truth too.
"""

from __future__ import annotations

import re
from pathlib import Path

from rw3d_common.errors import UserError
from rw3d_common.manifest import DatasetEntry
from rw3d_prep.datasets import DatasetConfig, FrameList
from rw3d_prep.frames import Frame

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")
_NUMBER = re.compile(r"(\d+)")


def folder_frames(root: Path, config: DatasetConfig, entry: DatasetEntry) -> FrameList:
    """One frame per image. A video is first unpacked into `<video name>_frames/` beside it.

    Raises:
        UserError: an empty folder, an unreadable video, two images with one frame id, a list naming a missing image.
    """
    if root.is_file():
        from rw3d_prep.datasets.video import unpack_video

        root = unpack_video(root)
    found = FrameList()
    for split in config.splits:
        listed = _listed(root, split, entry, found.notes)
        for sequence, images in _sequences(root).items():
            if not config.sequences or sequence in config.sequences:
                _add_sequence(found, split, sequence, images, config, listed, entry.dense_labels)
    if not found.frames:
        raise UserError(
            f"{root}: no image found here, in image/ or images/, nor in a sub-folder; rw3d reads {', '.join(IMAGES)} "
            f"and video files {', '.join(VIDEOS)}"
        )
    return found


def _listed(root: Path, split: str, entry: DatasetEntry, notes: list[str]) -> set[str] | None:
    """'sequence/stem' of the split's frames where the manifest names a list, else None for all; `notes` what it drops."""
    listing = entry.splits[split].list if split in entry.splits else None
    if listing is None:
        return None
    if not (root / listing).is_file():
        raise UserError(
            f"{root / listing}: no such file; it names the frames of split '{split}', one sequence/stem per line"
        )
    names = {line.strip() for line in (root / listing).read_text().splitlines() if line.strip()}
    if dropped := names & {*entry.splits[split].without}:
        notes.append(
            f"{len(dropped)} of {len(names)} frames of split {split} are left out, {min(dropped)} and others: "
            "data_manifest.yaml says why, under `without`"
        )
    return names - dropped


def _sequences(root: Path) -> dict[str, list[Path]]:
    """Images by sequence name, in natural order; the root's own images are a sequence named like the root."""
    folders = {root.resolve().name: root} | {path.name: path for path in sorted(root.iterdir()) if path.is_dir()}
    by_sequence = {}
    for name, folder in folders.items():
        for place in (folder, folder / "image", folder / "images"):
            images = [path for path in place.glob("*") if path.suffix.lower() in IMAGES]
            if images and not (folder != root and name in ("image", "images", "label", "labels")):
                by_sequence[name] = sorted(images, key=natural_key)
                break
    return by_sequence


def natural_key(path: Path) -> list[tuple[int, int | str]]:
    """Sorts frame2 before frame10, and names before their longer relatives."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in _NUMBER.split(path.name) if part]


def _add_sequence(
    found: FrameList,
    split: str,
    sequence: str,
    images: list[Path],
    config: DatasetConfig,
    listed: set[str] | None,
    dense: bool,
) -> None:
    seen: dict[int, Path] = {}
    for position, image in enumerate(images):
        if listed is not None and f"{sequence}/{image.stem}" not in listed:
            continue
        numbers = _NUMBER.findall(image.stem)
        frame_id = int(numbers[-1]) if numbers else position
        if frame_id in seen:
            raise UserError(f"{image}: frame id {frame_id} is also {seen[frame_id].name}; rename one, or remove it")
        seen[frame_id] = image
        label, truth = _label_of(image, config.labels), _label_of(image, "label") if dense else None
        found.frames.append(Frame(split, sequence, frame_id, "image", image, label=label, truth=truth))


def _label_of(image: Path, labels: str) -> Path | None:
    base = image.parent.parent if image.parent.name in ("image", "images") else image.parent
    for folder in (labels, "label", "labels"):
        path = base / folder / f"{image.stem}.png"
        if path.is_file():
            return path
    return None
