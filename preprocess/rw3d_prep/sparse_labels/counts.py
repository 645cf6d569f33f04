"""What made labels hold, beside the dense labels that they were made from."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from rw3d_common.labels import IGNORE, U8, ClassMap

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Counts:
    """Per train id, (256,) int64 with nothing at 255: pixels, and images that have any; of made and of dense labels.

    `correct` are the made pixels that agree with the dense label.
    """

    made: I64
    correct: I64
    dense: I64
    made_images: I64
    dense_images: I64
    pixels: int
    images: int
    empty_images: int

    @classmethod
    def of(cls, made: U8, dense: U8) -> Counts:
        """Of one image, train ids (H, W) both."""
        kept = np.where(made == dense, made, IGNORE)
        pixels, correct, whole = (np.bincount(label.ravel(), minlength=256) for label in (made, kept, dense))
        pixels[IGNORE] = correct[IGNORE] = whole[IGNORE] = 0
        return cls(pixels, correct, whole, np.sign(pixels), np.sign(whole), dense.size, 1, int(not pixels.any()))

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Counts)))

    @property
    def share(self) -> float:
        """Labelled share of all pixels."""
        return float(self.made.sum() / self.pixels)

    def to_json(self, classes: ClassMap) -> dict[str, Any]:
        """Totals and pixels per class name."""
        return {
            "images": self.images,
            "images_without_label": self.empty_images,
            "labelled_share": round(self.share, 6),
            "pixels": {name: int(count) for name, count in zip(classes.names, self.made, strict=False)},
        }


def counts_table(counts: Counts, classes: ClassMap, title: str) -> Table:
    """One row per class that occurs, and one for all."""
    table = Table(
        "id", "class", "pixels", "share of class", "correct", "images", "of", title=title, title_justify="left"
    )
    for item in classes.classes:
        if counts.dense[item.train_id]:
            table.add_row(str(item.train_id), item.name, *_cells(counts, np.s_[item.train_id]))
    images, whole = counts.images - counts.empty_images, counts.images
    table.add_row("", "all", *_cells(counts, np.s_[:])[:3], f"{images:,}", f"{whole:,}")
    return table


def _cells(counts: Counts, which: Any) -> tuple[str, ...]:
    made, correct, dense = (int(np.sum(array[which])) for array in (counts.made, counts.correct, counts.dense))
    agreeing = f"{correct / made:.2%}" if made else ""
    images = (int(np.max(array[which])) for array in (counts.made_images, counts.dense_images))
    return f"{made:,}", f"{made / dense:.3%}", agreeing, *(f"{number:,}" for number in images)
