"""The image, labels and mask of one frame, read and checked together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rw3d_common.errors import UserError
from rw3d_common.images import ImageSource, LabelEncoding, LabelFile, read_image, read_label
from rw3d_common.labels import U8
from rw3d_common.manifest import DatasetEntry
from rw3d_prep.frames import Frame


@dataclass(frozen=True)
class Sources:
    """(H, W, 3) uint8 `image`; (H, W) uint8 train ids `label` and `truth`, None where the frame has none.

    `excluded` (H, W) bool: pixels that never become points, None where there are none.
    """

    image: U8
    label: U8 | None
    truth: U8 | None
    excluded: npt.NDArray[np.bool_] | None


def read_sources(frame: Frame, entry: DatasetEntry, encoding: LabelEncoding, size: tuple[int, int]) -> Sources:
    """Read what belongs to the pixels of a frame whose geometry was made for an image of `size` (height, width).

    Raises:
        UserError: a file that cannot be used, or whose size is another.
    """
    image = read_image(frame.image)
    if image.shape[:2] != size:
        raise UserError(
            f"{frame.image}: is {image.shape[1]}×{image.shape[0]}, its geometry was made for another size; "
            "do not edit images during a run"
        )
    label = LabelFile(frame.label, encoding, entry.class_map()).read(size) if frame.label else None
    truth = LabelFile(frame.truth, entry.truth_encoding, entry.truth_map()).read(size) if frame.truth else None
    masks = []
    if frame.exclude:
        masks.append(read_label(frame.exclude, "gray8", size) != 0)
    if entry.excluded_ids:
        masks += [_has_id(frame.label, encoding, size, entry)] if frame.label and encoding != "train_ids" else []
        masks += [_has_id(frame.truth, entry.truth_encoding, size, entry)] if frame.truth else []
    return Sources(image, label, truth, np.logical_or.reduce(masks) if masks else None)


def _has_id(
    source: ImageSource, encoding: LabelEncoding, size: tuple[int, int], entry: DatasetEntry
) -> npt.NDArray[np.bool_]:
    table = np.zeros(256, bool)
    table[list(entry.excluded_ids)] = True
    return table.take(read_label(source, encoding, size))
