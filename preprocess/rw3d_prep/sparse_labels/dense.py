"""Which label images of a dataset are the dense ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rw3d_common.errors import UserError
from rw3d_common.images import LabelFile, image_size
from rw3d_common.labels import IGNORE
from rw3d_common.log import log
from rw3d_common.manifest import DatasetEntry
from rw3d_prep.datasets import DatasetConfig, read_frames
from rw3d_prep.frames import Frame
from rw3d_prep.label_folders import is_label_folder

LEAST_SHARE = 0.5  # labels that cover less of their image are taken for sparse ones
DenseFrame = tuple[Frame, LabelFile]


def dense_frames(root: Path, config: DatasetConfig, entry: DatasetEntry) -> list[DenseFrame]:
    """Every frame below `root` that has a dense label, with that label.

    Dense labels are the dataset's truth; where no frame has one, its labels, as for CamVid's human annotations. Ids
    that only evaluation leaves out keep their class.

    Raises:
        UserError: the data cannot be read, no frame has a dense label, or the labels are sparse ones.
    """
    if is_label_folder(config.labels):  # perhaps the very one that is about to be made
        config = config.model_copy(update={"labels": "label" if entry.adapter == "folder" else ""})
    read = read_frames(root, config)
    frames = read.frames
    for note in read.notes:
        log.warning(note)
    classes = entry.class_map()
    found = [(frame, LabelFile(frame.truth, entry.truth_encoding, classes)) for frame in frames if frame.truth]
    if not found:
        found = [(frame, LabelFile(frame.label, entry.label_encoding, classes)) for frame in frames if frame.label]
        _refuse_sparse(found)
    if not found:
        raise UserError(
            f"{root}: none of the {len(frames):,} frames has a dense label; put them where `rw3d-prep datasets check {config.name} "
            f"--root {root}` looks for them"
        )
    if len(found) < len(frames):
        log.info(f"{len(frames) - len(found):,} of {len(frames):,} frames have no dense label and get no sparse one")
    return found


def _refuse_sparse(found: Sequence[DenseFrame]) -> None:
    """Look at three labels spread over the dataset."""
    for _, file in [found[len(found) * part // 4] for part in (1, 2, 3) if found]:
        share = float(np.mean(file.read(image_size(file.path)) != IGNORE))
        if share < LEAST_SHARE:
            raise UserError(
                f"{file.path}: labels only {share:.1%} of its pixels, so it is a sparse label; sparse labels are made from "
                "dense ones, which this copy of the dataset lacks"
            )
