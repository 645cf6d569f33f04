"""Evaluation in 2D and 3D: predictions at full label resolution, one confusion matrix over all images or points."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from rw3d_common.config import Section
from rw3d_common.errors import UserError
from rw3d_common.labels import IGNORE, U8
from rw3d_train.data.collate import Batch
from rw3d_train.data.views import LabelledView
from rw3d_train.distributed import sum_over_ranks
from rw3d_train.metrics import Absent, Confusion
from rw3d_train.models.images import normalize, upsample
from rw3d_train.models.points import point_features

Network = Callable[[Tensor], Tensor]
Windows = list[tuple[slice, slice]]


class EvaluateConfig(Section):
    """How whole images are predicted and scored."""

    scale: float = Field(1.0, gt=0, le=1)
    """Images are shrunk by this factor before they are predicted; predictions are scored at the labels' own size."""
    window: tuple[int, int] | None = None
    """Height and width of the windows that a network sees, pixels of the shrunken image; null: the whole image."""
    overlap: float = Field(0.5, ge=0, lt=1)
    """Least share of a window that its neighbour covers as well."""
    lefts: tuple[int, ...] | None = None
    """Left edges of the windows, pixels; null: evenly spread with at least `overlap`. The released code lists them."""
    combine: Literal["average", "sum"] = "average"
    """Logits of overlapping windows are brought to image size and averaged there; or (`sum`, as in the released code)
    summed at the network's own stride and upsampled once."""
    label_scale: float = Field(1.0, gt=0, le=1)
    """Labels are shrunk by this factor (nearest) before scoring; the released code scores Cityscapes and Waymo at 0.5."""
    absent: Absent = "nan"
    """What a class that occurs nowhere counts: not at all (nan), or 0 as in the released code."""


def predict_logits(
    model: Network,
    image: U8,
    config: EvaluateConfig,
    device: torch.device | str,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Logits (C, H, W) float32 on `device` of `image`, RGB uint8, from overlapping windows.

    Args:
        model: normalised images → logits at its own stride.
        image: (height, width, 3).
        config: see there.
        device: where the model is.
        size: (H, W) of the result; None: that of `image`.

    Raises:
        UserError: windows that leave a part of the image out.
    """
    height, width = image.shape[:2]
    whole = normalize(torch.tensor(image).to(device).permute(2, 0, 1)[None])
    if config.scale != 1:
        shrunk = (round(height * config.scale), round(width * config.scale))
        whole = torch.nn.functional.interpolate(whole, shrunk, mode="bilinear", antialias=True)
    windows = _windows((whole.shape[-2], whole.shape[-1]), config)
    canvas = _summed(model, whole, windows) if config.combine == "sum" else _averaged(model, whole, windows)
    return upsample(canvas, size or (height, width))[0]


def _averaged(model: Network, whole: Tensor, windows: Windows) -> Tensor:
    """(1, C, H, W): the mean of all windows' logits at each pixel of the image."""
    total, count = torch.zeros(1, device=whole.device), torch.zeros(whole.shape[-2:], device=whole.device)
    for rows, columns in windows:
        part = whole[..., rows, columns]
        logits = upsample(model(part).float(), (part.shape[-2], part.shape[-1]))
        if total.dim() == 1:
            total = logits.new_zeros(1, logits.shape[1], *whole.shape[-2:])
        total[..., rows, columns] += logits
        count[rows, columns] += 1
    return total / count


def _summed(model: Network, whole: Tensor, windows: Windows) -> Tensor:
    """(1, C, ⌈H / stride⌉, ⌈W / stride⌉): the sum of all windows' logits in each cell that the network predicts."""
    total = torch.zeros(1, device=whole.device)
    for rows, columns in windows:
        part = whole[..., rows, columns]
        logits = model(part).float()
        stride = -(-part.shape[-1] // logits.shape[-1])
        if total.dim() == 1:
            total = logits.new_zeros(1, logits.shape[1], *(-(-n // stride) for n in whole.shape[-2:]))
        # Windows that do not start on a cell of the network go to the nearest one inside.
        top = min(round(rows.start / stride), total.shape[-2] - logits.shape[-2])
        left = min(round(columns.start / stride), total.shape[-1] - logits.shape[-1])
        total[..., top : top + logits.shape[-2], left : left + logits.shape[-1]] += logits
    return total


def _windows(size: tuple[int, int], config: EvaluateConfig) -> Windows:
    """Rows and columns of each window; together they cover an image of `size`."""
    window = config.window or size
    tops = _starts(size[0], window[0], config.overlap)
    lefts = config.lefts if config.lefts is not None else _starts(size[1], window[1], config.overlap)
    edges = [0, *(left + window[1] for left in sorted(lefts))]
    gap = any(left > edge for left, edge in zip(sorted(lefts), edges, strict=False))
    if gap or edges[-1] < size[1] or max(lefts, default=0) >= size[1]:
        raise UserError(
            f"evaluate.lefts {list(lefts)}: windows {window[1]} pixels wide do not cover, or lie beyond, the {size[1]} "
            "columns of an image; set evaluate.lefts=null to spread them evenly"
        )
    return [(slice(top, top + window[0]), slice(left, left + window[1])) for top in tops for left in lefts]


def _starts(size: int, window: int, overlap: float) -> list[int]:
    """First pixels of the fewest evenly spread windows that cover `size` and overlap by at least `overlap`."""
    if window >= size:
        return [0]
    steps = int(np.ceil((size - window) / (window * (1 - overlap))))
    return [round(index * (size - window) / steps) for index in range(steps + 1)]


@torch.inference_mode()
def evaluate_2d(
    models: dict[str, Network],
    views: Iterable[LabelledView],
    n_classes: int,
    config: EvaluateConfig,
    device: torch.device | str,
    on_view: Callable[[], object] = lambda: None,
) -> dict[str, Confusion]:
    """The confusion matrix of each model over all views: every rank brings its share of them, the counts are summed."""
    found = {name: Confusion(n_classes, device) for name in models}
    for view in views:
        label = _shrunk(view.label, config.label_scale)
        for name, model in models.items():
            logits = predict_logits(model, view.image, config, device, (label.shape[0], label.shape[1]))
            found[name].add(torch.from_numpy(label).to(device), logits.argmax(0))
        on_view()
    for confusion in found.values():
        confusion.counts = sum_over_ranks(confusion.counts)
    return found


@torch.inference_mode()
def evaluate_3d(
    models: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]],
    batches: Iterable[Batch],
    n_classes: int,
    device: torch.device | str,
    on_batch: Callable[[], object] = lambda: None,
) -> dict[str, Confusion]:
    """As `evaluate_2d`, over the points of samples; points whose class has no surface are not counted.

    Raises:
        UserError: samples without dense labels.
    """
    found = {name: Confusion(n_classes, device) for name in models}
    for batch in batches:
        batch = batch.to(device)
        if batch.point_truth is None:
            raise UserError(f"{batch.keys[0]}: its points have no dense labels; evaluate on scenes that have them")
        truth = torch.where(batch.point_truth < n_classes, batch.point_truth, IGNORE)
        for name, model in models.items():
            logits = model(batch.position, point_features(batch), batch.offset)
            found[name].add(truth, logits.argmax(1))
        on_batch()
    for confusion in found.values():
        confusion.counts = sum_over_ranks(confusion.counts)
    return found


def _shrunk(label: U8, scale: float) -> U8:
    """Labels at `scale` by nearest neighbour, half-pixel convention: pixel x shows source pixel ⌊(x + 0.5) / scale⌋."""
    if scale == 1:
        return label
    rows, columns = (np.floor((np.arange(round(n * scale)) + 0.5) / scale).astype(int) for n in label.shape)
    return label[rows[:, None], columns]
