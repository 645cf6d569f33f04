"""Samples → one ragged batch of tensors, checked on the CPU before the first step on a GPU.

An index out of range on a GPU ends the process without saying which item it came from: here every check names the
sample. Images and labels stay uint8, a quarter to an eighth of the bytes to copy; cast them on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from rw3d_common.errors import UserError
from rw3d_common.labels import IGNORE, U8
from rw3d_common.log import log
from rw3d_train.data.sample import Sample
from rw3d_train.models.ptv3.serialization import MOST_BITS
from rw3d_train.models.ptv3.voxelize import smallest_voxel

Record = TypeVar("Record")
MOST_WARNINGS = 5
_unlabelled: set[str] = set()  # keys that this process has warned of


@dataclass(frozen=True, eq=False)
class Correspondences:
    """M pairs of a pixel and a point, one entry each per tensor: pixel (`row`, `column`) of image `image` shows `point`.

    `image` (M,) int64 index into the batch; `row` and `column` (M,) float32, exact, integer coordinates at pixel
    centres; `point` (M,) int64 row of the concatenated points.
    """

    image: Tensor
    row: Tensor
    column: Tensor
    point: Tensor

    def __len__(self) -> int:
        return len(self.point)

    def pin_memory(self) -> Correspondences:
        """The same in page-locked memory."""
        return _mapped(self, _pinned)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Correspondences:
        """The same on `device`."""
        return _mapped(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))


@dataclass(frozen=True, eq=False)
class Batch:
    """B samples. Images one shape, points concatenated: those of sample b are rows [offset[b − 1], offset[b]).

    `image` (B, 3, H, W) uint8 RGB, channels last; `label` (B, H, W) uint8 sparse train ids, 255 = unlabelled; `truth` (B, H, W) uint8
    or None where no sample has dense labels (255 where only this one has none). N points in all: `position` (N, 3)
    float32 metres; `color` (N, 3) uint8; `confidence` (N,) float32, raw; `point_label` (N,) uint8 train ids and
    `point_truth` (N,) uint8 or None alike; `offset` (B,) int64, the number of points up to and including each sample.
    `keys` name the samples; `camera_to_world` (B, 4, 4) float64.
    """

    keys: tuple[str, ...]
    image: Tensor
    label: Tensor
    truth: Tensor | None
    position: Tensor
    color: Tensor
    confidence: Tensor
    point_label: Tensor
    point_truth: Tensor | None
    offset: Tensor
    correspondences: Correspondences
    camera_to_world: Tensor

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.keys)

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, from which copies to a GPU overlap with work on it; itself without a GPU."""
        return _mapped(self, _pinned)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same on `device`; with `non_blocking`, copies from pinned memory go on in the background."""
        return _mapped(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))


def collate(samples: Sequence[Sample], n_classes: int | None = None, voxel_size: float | None = None) -> Batch:
    """One batch of `samples`, after `check_sample` of each with `n_classes` and `voxel_size` (metres).

    Give a DataLoader `functools.partial(collate, n_classes=…, voxel_size=…)`.

    Raises:
        UserError: no samples, images of different sizes, or what `check_sample` refuses.
    """
    if not samples:
        raise UserError("a batch of no samples; give at least one")
    for sample in samples:
        check_sample(sample, n_classes, voxel_size)
        _refuse_other_size(sample, samples[0])
    counts = [len(sample.position) for sample in samples]
    return Batch(
        keys=tuple(sample.key for sample in samples),
        image=_images(samples),
        label=torch.from_numpy(np.stack([sample.label for sample in samples])),
        truth=_optional([sample.truth for sample in samples], [sample.label.shape for sample in samples], np.stack),
        position=_concatenated([sample.position for sample in samples]),
        color=_concatenated([sample.color for sample in samples]),
        confidence=_concatenated([sample.confidence for sample in samples]),
        point_label=_concatenated([sample.point_label for sample in samples]),
        point_truth=_optional([sample.point_truth for sample in samples], [(n,) for n in counts], np.concatenate),
        offset=torch.from_numpy(np.cumsum(counts, dtype=np.int64)),
        correspondences=_correspondences(samples, np.cumsum([0, *counts])),
        camera_to_world=torch.from_numpy(np.stack([sample.camera_to_world for sample in samples])),
    )


def collate_pairs(
    pairs: Sequence[tuple[Sample, Sample]], n_classes: int | None = None, voxel_size: float | None = None
) -> tuple[Batch, Batch]:
    """Two batches of (student, teacher) items; see `collate`."""
    students, teachers = zip(*pairs, strict=True)
    return collate(students, n_classes, voxel_size), collate(teachers, n_classes, voxel_size)


def check_sample(sample: Sample, n_classes: int | None = None, voxel_size: float | None = None) -> None:
    """Refuse what would fail, or silently go wrong, on the device; warn of an image without any label.

    Args:
        sample: the item.
        n_classes: labels must be below it, or 255; None leaves them unchecked.
        voxel_size: metres per cell of the grid that points are sorted into; None: no network takes the points, so there
            may be none, of any extent.

    Raises:
        UserError: naming the sample and the value.
    """
    if n_classes is not None:
        for name in ("label", "truth", "point_label", "point_truth"):
            _check_ids(sample.key, name, getattr(sample, name), n_classes)
    if not np.isfinite(sample.position).all():
        bad = np.count_nonzero(~np.isfinite(sample.position).all(axis=1))
        raise UserError(
            f"{sample.key}: {bad:,} of its points are not finite; run `rw3d-prep verify`, and check the augmentation"
        )
    if voxel_size is not None:
        _check_extent(sample, voxel_size)
    _check_pixels(sample)
    if sample.truth is None and not (sample.label != IGNORE).any():  # with dense labels it serves for scores
        _warn_unlabelled(sample.key)


def _check_ids(key: str, name: str, ids: U8 | None, n_classes: int) -> None:
    if ids is None or ids.size == 0:
        return
    wrong = (ids >= n_classes) & (ids != IGNORE)
    if wrong.any():
        found = ", ".join(map(str, np.unique(ids[wrong])))
        raise UserError(
            f"{key}: its {name} holds train id {found}, but there are {n_classes} classes (0 to {n_classes - 1}) and 255; "
            "train with the class map of these stores"
        )


def _check_extent(sample: Sample, voxel_size: float) -> None:
    if len(sample.position) == 0:
        raise UserError(f"{sample.key}: has no points; run `rw3d-prep verify`, and leave this view out if it has none")
    extent = max(float(axis.max()) - float(axis.min()) for axis in sample.position.T)
    if extent / voxel_size < 2**MOST_BITS:
        return
    raise UserError(
        f"{sample.key}: its points extend over {extent:,.1f} m, more than {2**MOST_BITS:,} cells of {voxel_size} m; "
        f"take a grid of at least {smallest_voxel(extent):.3g} m, or drop outliers with a smaller --radius of sample-views"
    )


def _check_pixels(sample: Sample) -> None:
    """Correspondences must lie in the image, whose edges are half a pixel beyond the outermost centres, or be NaN."""
    if sample.n_own > len(sample.position):
        raise UserError(
            f"{sample.key}: {sample.n_own:,} correspondences for {len(sample.position):,} points; run `rw3d-prep verify`"
        )
    (row, column), (height, width) = sample.pixel.T, sample.image.shape[:2]  # column by column: rows of two are slow
    outside = (row < -0.5) | (row >= height - 0.5) | (column < -0.5) | (column >= width - 0.5)  # NaN compares false
    if outside.any():
        raise UserError(
            f"{sample.key}: {np.count_nonzero(outside):,} correspondences lie outside its {sample.image.shape[1]}×"
            f"{sample.image.shape[0]} image; give points that leave the image NaN pixels"
        )


def _warn_unlabelled(key: str) -> None:
    if key in _unlabelled or len(_unlabelled) > MOST_WARNINGS:
        return
    _unlabelled.add(key)
    if len(_unlabelled) > MOST_WARNINGS:
        log.warning("more images without any labelled pixel follow; they are not listed")
    else:
        log.warning(f"{key}: its image has no labelled pixel and adds nothing to the supervised loss")


def _refuse_other_size(sample: Sample, first: Sample) -> None:
    for name, shape in (("image", sample.image.shape[:2]), ("label", sample.label.shape)):
        if shape != first.image.shape[:2]:
            raise UserError(
                f"{sample.key}: its {name} is {shape[1]}×{shape[0]}, the image of {first.key} in the same batch is "
                f"{first.image.shape[1]}×{first.image.shape[0]}; crop to one size, or take a batch size of 1"
            )


def _images(samples: Sequence[Sample]) -> Tensor:
    """(B, 3, H, W) uint8 in channels-last order, which is how images (H, W, 3) lie in memory."""
    return torch.from_numpy(np.stack([sample.image for sample in samples])).permute(0, 3, 1, 2)


def _concatenated(arrays: Sequence[Any]) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays))


def _optional(arrays: Sequence[U8 | None], shapes: Sequence[tuple[int, ...]], join: Any) -> Tensor | None:
    """`arrays` joined, 255 for those that are missing; None where all are."""
    if all(array is None for array in arrays):
        return None
    filled = (np.full(shape, IGNORE, np.uint8) if a is None else a for a, shape in zip(arrays, shapes, strict=True))
    return torch.from_numpy(join(list(filled)))


def _correspondences(samples: Sequence[Sample], start: Any) -> Correspondences:
    """Pairs of all samples whose pixel is in the image; `start` (B + 1,) are the first points of the samples."""
    masks = [np.isfinite(sample.pixel[:, 0]) & np.isfinite(sample.pixel[:, 1]) for sample in samples]
    inside = [np.flatnonzero(mask) for mask in masks]
    row, column = (
        np.concatenate([sample.pixel[mask, axis] for sample, mask in zip(samples, masks, strict=True)])
        for axis in (0, 1)
    )
    point = np.concatenate([rows + first for rows, first in zip(inside, start[:-1], strict=True)])
    return Correspondences(
        image=torch.from_numpy(np.repeat(np.arange(len(samples)), [len(rows) for rows in inside])),
        row=torch.from_numpy(row),
        column=torch.from_numpy(column),
        point=torch.from_numpy(point),
    )


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if torch.cuda.is_available() else tensor


def _mapped(record: Record, function: Callable[[Tensor], Tensor]) -> Record:
    """A copy of a batch or of its correspondences with every tensor passed through `function`."""
    values = dict(vars(record))
    for name, value in values.items():
        if isinstance(value, Correspondences):
            values[name] = _mapped(value, function)
        elif isinstance(value, Tensor):
            values[name] = function(value)
    return type(record)(**values)
