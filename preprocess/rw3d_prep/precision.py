"""How right carried labels are: counted against the truth of training frames, per class, and the gate that follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rw3d_common.labels import IGNORE, U8

I64 = npt.NDArray[np.int64]


@dataclass
class Counts:
    """Pixels of a scene's label images, summed over its views. `confusion` (256, 256): carried label × truth."""

    pixels: int = 0
    own: int = 0
    carried: I64 = field(default_factory=lambda: np.zeros(256, np.int64))
    confusion: I64 = field(default_factory=lambda: np.zeros((256, 256), np.int64))
    compared: int = 0
    """Points with an own annotation that other views voted on too."""
    contradicted: int = 0
    """Those of them where the votes say otherwise; the own annotation stays."""
    contested: int = 0
    """Points whose votes disagree too much; they stay unlabelled."""

    def add_image(self, own: U8 | None, carried: U8, truth: U8 | None) -> None:
        """Count one view: own and carried labels and, where they may be looked at, true ones; all (H, W)."""
        new = carried != IGNORE if own is None else (carried != IGNORE) & (own == IGNORE)
        self.pixels += carried.size
        self.own += 0 if own is None else int(np.count_nonzero(own != IGNORE))
        self.carried += np.bincount(carried[new], minlength=256)
        if truth is not None:
            pairs = carried[new].astype(np.int64) * 256 + truth[new]
            self.confusion += np.bincount(pairs, minlength=256 * 256).reshape(256, 256)

    def add_points(self, own: U8, decided: U8, contested: int) -> None:
        """Compare what the votes say of a view's points with their own annotations, both (n,)."""
        both = (own != IGNORE) & (decided != IGNORE)
        self.compared += int(np.count_nonzero(both))
        self.contradicted += int(np.count_nonzero(own[both] != decided[both]))
        self.contested += contested


@dataclass(frozen=True)
class Verdict:
    """What the gate says: `withheld` train ids, whether the rest is `usable` (None: no truth to tell), and a report."""

    withheld: tuple[int, ...]
    usable: bool | None
    report: dict[str, Any]


def judge(counts: Counts, names: Sequence[str], min_precision: float, min_class_precision: float) -> Verdict:
    """Withhold classes below `min_class_precision`, then ask whether the carried labels are precise enough.

    The overall precision has to reach `min_precision` both with and without the classes that are withheld: geometry
    that puts most labels in the wrong place is not mended by keeping the one class that is everywhere.
    """
    measured = counts.confusion[:, :IGNORE].sum(axis=1)  # pixels whose truth is ignored say nothing
    right = counts.confusion.diagonal()
    poor = np.flatnonzero((measured > 0) & (right < min_class_precision * measured)).tolist()
    kept = np.setdiff1d(np.arange(IGNORE), poor)
    before, after = _share(right[:IGNORE], measured[:IGNORE]), _share(right[kept], measured[kept])
    usable = None if before is None else after is not None and min(before, after) >= min_precision
    carried = int(counts.carried[kept].sum())
    report = {
        "pixels": counts.pixels,
        "labelled_before": counts.own,
        "labelled_after": counts.own + carried,
        "carried": carried,
        "measured": int(measured[kept].sum()),
        "right": int(right[kept].sum()),
        "precision": after,
        "precision_with_withheld": before,
        "classes": {
            name: {
                "carried": int(counts.carried[i]),
                "measured": int(measured[i]),
                "precision": _share(right[i], measured[i]),
            }
            for i, name in enumerate(names)
            if counts.carried[i]
        },
        "withheld": [names[i] for i in poor],
        "own_points_voted_on": counts.compared,
        "own_points_contradicted": counts.contradicted,
        "contested_points": counts.contested,
    }
    return Verdict(tuple(poor), usable, report)


def _share(right: Any, measured: Any) -> float | None:
    total = int(np.sum(measured))
    return int(np.sum(right)) / total if total else None
