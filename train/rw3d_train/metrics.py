"""Segmentation scores from one integer confusion matrix: exact, and the same for any batch size or number of ranks."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rw3d_common.labels import IGNORE, ClassMap

if TYPE_CHECKING:
    from rich.table import Table

F64 = npt.NDArray[np.float64]
Absent = Literal["nan", "zero"]


class Confusion:
    """Counts (C, C) int64 on one device: row = truth, column = prediction. Pixels whose truth is 255 are not counted."""

    def __init__(self, n_classes: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(n_classes, n_classes, dtype=torch.int64, device=device)

    def add(self, truth: Tensor, prediction: Tensor) -> None:
        """Count pixels or points: `truth` and `prediction` of one shape, any integer type, class ids below C."""
        n = len(self.counts)
        known = truth != IGNORE
        pairs = truth[known].long() * n + prediction[known].long()
        self.counts += torch.bincount(pairs.to(self.counts.device), minlength=n * n).reshape(n, n)

    def scores(self, classes: ClassMap, absent: Absent = "nan") -> Scores:
        """The scores of what was counted; see `Scores.of`."""
        return Scores.of(self.counts.cpu().numpy(), classes.names[: len(self.counts)], absent)


@dataclass(frozen=True)
class Scores:
    """Scores in [0, 1]; NaN where nothing was counted.

    `iou` (C,) per class; `miou` their mean; `macc` the mean of per-class recalls; `all_acc` the share of correct pixels.
    `pixels` (C,) int64 is how often each class occurs in the truth.
    """

    names: tuple[str, ...]
    iou: F64
    miou: float
    macc: float
    all_acc: float
    pixels: npt.NDArray[np.int64]

    @classmethod
    def of(cls, counts: npt.NDArray[np.int64], names: list[str], absent: Absent = "nan") -> Scores:
        """From a confusion matrix (C, C), rows = truth.

        A class that occurs neither in truth nor in prediction has IoU NaN and is left out of the mean; with
        absent="zero" it counts as 0, as in Rewis3d's released evaluation.
        """
        hit, true, said = np.diag(counts).astype(np.float64), counts.sum(1), counts.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            iou = hit / (true + said - hit)
            recall = hit / true
        if absent == "zero":
            iou, recall = np.nan_to_num(iou), np.nan_to_num(recall)
        total = counts.sum()
        return cls(tuple(names), iou, _mean(iou), _mean(recall), float(hit.sum() / total) if total else np.nan, true)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; NaN becomes null."""
        per_class = {name: _number(value) for name, value in zip(self.names, self.iou, strict=True)}
        summary = {"miou": _number(self.miou), "macc": _number(self.macc), "all_acc": _number(self.all_acc)}
        return {**summary, "iou": per_class, "pixels": dict(zip(self.names, self.pixels.tolist(), strict=True))}


def _mean(values: F64) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)


def scores_table(columns: dict[str, Scores], title: str = "") -> Table:
    """Per-class IoU in % side by side, with the means below; '–' where a class occurs nowhere."""
    from rich.table import Table

    table = Table(title=title or None)
    table.add_column("class")
    for name in columns:
        table.add_column(name, justify="right")
    first = next(iter(columns.values()))
    for index, name in enumerate(first.names):
        table.add_row(name, *(_percent(_at(scores.iou, index)) for scores in columns.values()))
    table.add_section()
    for row, field in (("mIoU", "miou"), ("mAcc", "macc"), ("allAcc", "all_acc")):
        table.add_row(row, *(_percent(getattr(scores, field)) for scores in columns.values()), style="bold")
    return table


def _at(values: F64, index: int) -> float:
    return float(values[index]) if index < len(values) else float("nan")


def _percent(value: float) -> str:
    return "–" if np.isnan(value) else f"{100 * value:.1f}"


def write_scores(columns: dict[str, Scores], folder: Path, name: str, **facts: Any) -> None:
    """`<name>.json` with `facts`, and `<name>.csv` with one row per class and one column per entry."""
    tree = {**facts, "scores": {key: scores.to_json() for key, scores in columns.items()}}
    (folder / f"{name}.json").write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["class", *columns])
        first = next(iter(columns.values()))
        for index, label in enumerate(first.names):
            rows.writerow([label, *(_number(_at(scores.iou, index)) for scores in columns.values())])
        for field in ("miou", "macc", "all_acc"):
            rows.writerow([field, *(_number(getattr(scores, field)) for scores in columns.values())])
