"""What `metrics.jsonl` of a cell tells: held-out scores, loss parts, diagnostics."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rw3d_train.compare.cells import Cell

HELD_OUT = "select/student/miou"
DIAGNOSE = "diagnose/"


@dataclass
class Curves:
    """Lines of `metrics.jsonl` by what they are of: the last line of each counts, since a resumed run repeats some.

    `steps` by step: losses, and what a batch holds; `epochs` by epoch: scores on what was kept out, and diagnostics.
    """

    steps: dict[int, dict[str, Any]] = field(default_factory=dict)
    epochs: dict[int, dict[str, Any]] = field(default_factory=dict)

    def over_steps(self, key: str) -> tuple[list[int], list[float]]:
        """Steps, and a number at each of them that has it."""
        return _points(self.steps, key)

    def over_epochs(self, key: str) -> tuple[list[int], list[float]]:
        """Epochs, and a number at each of them that has it."""
        return _points(self.epochs, key)

    def last(self, key: str) -> Any:
        """The last value of a number or list; None where a run has none, as older ones."""
        for lines in (self.epochs, self.steps):
            values = [line[key] for _, line in sorted(lines.items()) if line.get(key) is not None]
            if values:
                return values[-1]
        return None

    def names(self) -> set[str]:
        """Everything that is told."""
        return {key for lines in (self.steps, self.epochs) for line in lines.values() for key in line}


def _points(lines: dict[int, dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    found = [(number, line[key]) for number, line in sorted(lines.items()) if line.get(key) is not None]
    return [number for number, _ in found], [value for _, value in found]


def read_curves(cell: Cell) -> Curves:
    """The curves of a cell; empty where it has not begun. A last line that a killed process cut is left out."""
    return parse(cell.folder / "metrics.jsonl")


def parse(path: Path) -> Curves:
    """The curves in a file; empty where there is none."""
    curves = Curves()
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            numbers = json.loads(line)
        except ValueError:
            continue
        if "epoch" in numbers:
            curves.epochs.setdefault(int(numbers["epoch"]), {}).update(numbers)
        else:
            curves.steps[int(numbers["step"])] = numbers
    return curves


def mean_of(curves: Iterable[Curves], key: str) -> float | None:
    """The mean over cells of the last value of a number; None where no cell has it."""
    known = [value for one in curves if isinstance(value := one.last(key), int | float)]
    return sum(known) / len(known) if known else None
