"""Point labels: one random pixel per class and image, or per instance (Rewis3d §4.1 after Das et al., 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rw3d_common.labels import IGNORE, U8

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Point:
    """One labelled pixel of the dense label; `instance` as the dataset stores it, None where none was asked for."""

    train_id: int
    instance: int | None
    row: int
    column: int


def make_points(
    dense: U8, rng: np.random.Generator, scale: float = 1.0, instances: npt.NDArray[np.uint16] | None = None
) -> list[Point]:
    """One pixel of each class in dense train ids (H, W) uint8, or of each instance; 255 gets none.

    Args:
        scale: of training, up to 1: only pixels that nearest resampling to it keeps are drawn, each of them as likely.
        instances: (H, W), 0 = no instance: those pixels of a class count as one.
    """
    rows, columns = (kept_by_nearest(n, scale) for n in dense.shape)
    ids = dense[np.ix_(rows, columns)].astype(np.int64)
    of = instances[np.ix_(rows, columns)] if instances is not None else np.zeros_like(ids)
    group = (ids << 16) | of
    points = []
    for key in np.unique(group[ids != IGNORE]).tolist():
        places = np.flatnonzero(group == key)
        row, column = divmod(int(places[int(rng.random() * len(places))]), len(columns))
        instance = key & 0xFFFF if instances is not None else None
        points.append(Point(key >> 16, instance, int(rows[row]), int(columns[column])))
    return points


def kept_by_nearest(count: int, scale: float) -> I64:
    """Indices of the `count` pixels in a row that nearest resampling by `scale` keeps, rising.

    Half-pixel convention, (x + 0.5) / s − 0.5 with s = whole new size / old size; exactly between two pixels the larger
    index counts, as in training.
    """
    small = max(1, round(count * scale))
    source = np.round((np.arange(small) + 0.5) * count / small - 0.5, 9)
    return np.clip(np.floor(source + 0.5).astype(np.int64), 0, count - 1)


def draw_points(points: list[Point], size: tuple[int, ...]) -> U8:
    """Train ids (H, W) uint8 of the points, 255 elsewhere."""
    label = np.full(size, IGNORE, np.uint8)
    for point in points:
        label[point.row, point.column] = point.train_id
    return label
