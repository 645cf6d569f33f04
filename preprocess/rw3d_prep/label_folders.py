"""Folders of label images and masks that lie outside the dataset: what `make-labels` wrote, and masks of your own.

A folder of labels holds `labels.json` (dataset, kind, class map, how it was made) and one image per labelled frame,
`<split>/<sequence>/<camera>/<frame id, ten digits>.png`: palette PNGs whose indices are train ids, 255 = unlabelled.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from rw3d_common.errors import UserError
from rw3d_common.images import LabelEncoding
from rw3d_common.manifest import DatasetEntry
from rw3d_prep.frames import Frame

DESCRIPTION = "labels.json"


@dataclass(frozen=True)
class LabelFolder:
    """A finished folder of made labels: `kind` is points, scribbles or coarse."""

    path: Path
    kind: str

    def file(self, frame: Frame) -> Path | None:
        """The label image of a frame, None where it has none."""
        path = image_of(self.path, frame)
        return path if path.is_file() else None


def image_of(folder: Path, frame: Frame) -> Path:
    """Where the image of a frame lies in a folder of labels."""
    return folder / frame.split / frame.sequence / frame.camera / f"{frame.id:010d}.png"


def is_label_folder(labels: str) -> bool:
    """True when a recipe's `dataset.labels` means a folder of made labels, not the dataset's own labels."""
    return "/" in labels or (Path(labels) / DESCRIPTION).is_file()


def open_label_folder(labels: str, dataset: str, entry: DatasetEntry) -> LabelFolder:
    """The folder of made labels at `labels`.

    Raises:
        UserError: it was never finished, or was made for another dataset or other classes.
    """
    path = Path(labels)
    try:
        made = json.loads((path / DESCRIPTION).read_text())
        made_for, kind, class_map = made["dataset"], made["kind"], made["class_map_hash"]
    except FileNotFoundError:
        raise UserError(
            f"{path}: no {DESCRIPTION} there, so no finished labels; make some with "
            f"`rw3d-prep make-labels points --dataset {dataset} --out {path}`"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / DESCRIPTION}: damaged ({error!r}); make the labels again") from None
    if made_for != dataset or class_map != entry.class_map().hash:
        what = f"for dataset '{made_for}'" if made_for != dataset else "with another class map"
        raise UserError(
            f"{path}: these labels were made {what}; make them again with `rw3d-prep make-labels {kind} --dataset {dataset}`"
        )
    return LabelFolder(path, kind)


def label_encoding(labels: str, entry: DatasetEntry) -> LabelEncoding:
    """How the sparse labels of a recipe's `dataset.labels` are stored."""
    return "train_ids" if is_label_folder(labels) else entry.label_encoding


def with_labels(frames: Iterable[Frame], folder: LabelFolder) -> list[Frame]:
    """The frames with the folder's labels in place of the dataset's own."""
    return [replace(frame, label=folder.file(frame)) for frame in frames]


def with_masks(frames: Iterable[Frame], folder: Path) -> list[Frame]:
    """The frames with the masks of `folder`: per frame as labels are, else `<sequence>/<camera>.png` or `<camera>.png`.

    Raises:
        UserError: the folder is not there, or holds no mask of any frame.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; --exclude-mask names a folder of 8-bit masks, non-zero = excluded")
    masked = [replace(frame, exclude=_mask(folder, frame) or frame.exclude) for frame in frames]
    if not any(frame.exclude for frame in masked):
        raise UserError(
            f"{folder}: no mask of any frame; name them <split>/<sequence>/<camera>/<frame id, ten digits>.png, or "
            "<camera>.png for one mask per camera"
        )
    return masked


def _mask(folder: Path, frame: Frame) -> Path | None:
    camera = frame.camera or "mask"
    places = (image_of(folder, frame), folder / frame.sequence / f"{camera}.png", folder / f"{camera}.png")
    return next((path for path in places if path.is_file()), None)
