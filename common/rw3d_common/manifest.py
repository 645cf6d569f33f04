"""`data_manifest.yaml`: what rw3d knows of each dataset. Class tables live there, never in code."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from rw3d_common.config import Section, did_you_mean, read_yaml, validate
from rw3d_common.errors import UserError
from rw3d_common.images import LabelEncoding
from rw3d_common.labels import ClassMap, LabelClass

MANIFESTS = (Path(__file__).parents[2] / "data_manifest.yaml", Path(__file__).parent / "data_manifest.yaml")


class ClassEntry(Section):
    train_id: int = Field(ge=0, lt=255)
    name: str
    ids: tuple[int, ...]
    """Raw label ids, 0..255, that become this class."""
    color: tuple[int, int, int]
    in_3d: bool = True
    """False for what has no surface, such as sky: its pixels never become points."""
    movable: bool = False
    """True for what may be elsewhere a moment later: `accumulate` carries its labels between simultaneous views only.
    A rule of that step and no part of a label's meaning, so it is not in the class map that stores hold."""


class SplitEntry(Section):
    sequences: tuple[str, ...] = ()
    """Official sequence names; empty means every sequence that is found."""
    list: str | None = None
    """File, relative to the root, that names the split's frames."""
    folder: str = ""
    """Folder, relative to the root, that holds the split, where it is not named like it."""
    without: tuple[str, ...] = ()
    """Adapter `folder`: lines of `list` that are left out all the same, such as frames too near to another split."""


class PartEntry(Section):
    glob: str
    """Files of this part, relative to the root; `*` stays within one folder."""
    what: str
    required: bool = True


class DatasetEntry(Section):
    title: str
    source: str
    licence: str
    adapter: Literal["kitti360", "rgbd", "scannet", "s3dis", "cityscapes", "nyuv2", "waymo", "folder"]
    layout: tuple[PartEntry, ...]
    """What lies where below the root; `rw3d-prep datasets check` counts it."""
    splits: dict[str, SplitEntry]
    label_encoding: LabelEncoding = "gray8"
    """How sparse label images store ids: one 8-bit channel, an 8-bit palette's indices, or three equal channels."""
    truth_encoding: LabelEncoding = "gray8"
    dense_labels: bool = False
    """Adapter `folder`: the label images cover whole images, so they are the truth too, whatever is trained on."""
    depth_unit: float | None = None
    """Metres per unit of a depth image."""
    ignored_ids: tuple[int, ...] = ()
    """Raw ids that mean unlabelled or void: they become 255."""
    excluded_ids: tuple[int, ...] = ()
    """Raw ids, among the ignored ones, of what is no part of the world: their pixels never become points."""
    ignored_in_truth: tuple[int, ...] = ()
    """Raw ids that label training images but are left out of evaluation."""
    classes: tuple[ClassEntry, ...] = ()
    checksums: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of files whose content is known, by path below the root."""

    @model_validator(mode="after")
    def _ids_are_unique(self) -> DatasetEntry:
        ids = [raw for item in self.classes for raw in item.ids] + list(self.ignored_ids)
        if repeated := {raw for raw in ids if ids.count(raw) > 1}:
            raise ValueError(f"raw label ids {sorted(repeated)} are given to two classes; give each to one")
        if [item.train_id for item in self.classes] != list(range(len(self.classes))):
            raise ValueError("train ids must be 0, 1, 2, … in the order of the classes")
        return self

    def class_map(self) -> ClassMap:
        """The class map of sparse labels."""
        classes = (LabelClass(c.train_id, c.name, c.ids, c.color, c.in_3d) for c in self.classes)
        return ClassMap(tuple(classes), self.ignored_ids)

    def truth_map(self) -> ClassMap:
        """The class map of dense labels: `ignored_in_truth` ids become 255."""
        return self.class_map().ignoring(self.ignored_in_truth)


class DataManifest(Section):
    datasets: dict[str, DatasetEntry]


@cache
def load_manifest(path: Path | None = None) -> DataManifest:
    """The manifest at `path`, by default `$RW3D_MANIFEST` or the one that ships with rw3d.

    Raises:
        UserError: a file that is missing or does not fit the model.
    """
    chosen = path or _default_path()
    return validate(DataManifest, read_yaml(chosen), str(chosen))


def _default_path() -> Path:
    if given := os.environ.get("RW3D_MANIFEST"):
        return Path(given)
    return next((path for path in MANIFESTS if path.is_file()), MANIFESTS[0])


def dataset_entry(name: str) -> DatasetEntry:
    """The manifest's entry of a dataset.

    Raises:
        UserError: an unknown name; the message lists the known ones.
    """
    known = load_manifest().datasets
    if name not in known:
        raise UserError(f"unknown dataset '{name}'{did_you_mean(name, known)}; known: {', '.join(sorted(known))}")
    return known[name]


def default_root(name: str) -> Path:
    """Where the dataset's files are looked for without `--root`: `$RW3D_DATA/<name>` or `data/<name>`."""
    return Path(os.environ.get("RW3D_DATA", "data")) / name
