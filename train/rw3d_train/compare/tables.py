"""Numbers of a comparison: mean and standard deviation over seeds, SS/FS, difference to the baseline; as CSV and JSON."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from rw3d_train.compare.cells import Cell, scores_of, write_json
from rw3d_train.compare.recipe import CompareRecipe

if TYPE_CHECKING:
    from rich.table import Table

Found = dict[tuple[str, str, int], dict[str, Any]]  # (row, column, seed) → `Scores.to_json` in [0, 1]


@dataclass(frozen=True)
class Number:
    """Mean and standard deviation (n − 1 in the divisor; None of one seed) over n seeds, in %."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Number | None:
        """Of shares in [0, 1]; None counts as absent."""
        known = [100 * value for value in values if value is not None]
        return cls(mean(known), stdev(known) if len(known) > 1 else None, len(known)) if known else None

    def __str__(self) -> str:
        mean = f"{round(self.mean, 1) + 0.0:.1f}"  # + 0.0: no "-0.0"
        return mean if self.std is None else f"{mean} ± {self.std:.1f}"

    def to_json(self) -> dict[str, Any]:
        """To two digits, of percent."""
        return {"mean": round(self.mean, 2), "std": None if self.std is None else round(self.std, 2), "n": self.n}


@dataclass(frozen=True)
class Entry:
    """One place of the table. All numbers in %.

    `ss_fs` is mIoU / that of the reference, and `gain` mIoU − that of the baseline, each seed by seed; `iou` is per
    class. `published` is the mIoU that others report. `seeds` of `planned` are finished; `state` says so in words.
    """

    row: str
    column: str
    miou: Number | None
    macc: Number | None
    all_acc: Number | None
    ss_fs: Number | None
    gain: Number | None
    iou: dict[str, Number | None]
    published: float | None
    published_ss_fs: float | None
    seeds: tuple[int, ...]
    state: str

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        named = ("miou", "ss_fs", "gain", "macc", "all_acc")
        numbers = {name: number.to_json() if (number := getattr(self, name)) else None for name in named}
        iou = {name: number.to_json() if number else None for name, number in self.iou.items()}
        plain = {"published": self.published, "published_ss_fs": self.published_ss_fs, "seeds": list(self.seeds)}
        return {"row": self.row, "column": self.column, "state": self.state, **numbers, "iou": iou, **plain}


def summarize(recipe: CompareRecipe, cells: Sequence[Cell], failed: Iterable[Path] = ()) -> list[Entry]:
    """One entry per row and column: the reference first, then the recipe's rows, then rows that are only published."""
    found = {
        (cell.row, cell.column, cell.seed): scores
        for cell in cells
        if (scores := scores_of(cell).get(recipe.scores)) is not None
    }
    broken, rows = {*failed}, [row.name for row in recipe.all_rows()]
    others = [name for name in (recipe.published.miou if recipe.published else {}) if name not in rows]
    return [
        _entry(recipe, row, column.name, found, [c for c in cells if (c.row, c.column) == (row, column.name)], broken)
        for row in [*rows, *others]
        for column in recipe.columns
    ]


def _entry(
    recipe: CompareRecipe, row: str, column: str, found: Found, cells: Sequence[Cell], broken: set[Path]
) -> Entry:
    done = {cell.seed: found[key] for cell in cells if (key := (row, column, cell.seed)) in found}
    miou = {seed: scores["miou"] for seed, scores in done.items()}
    names = next(iter(done.values()))["iou"] if done else {}
    published = _published(recipe, row, column)
    reference = recipe.reference.name if recipe.reference else None
    full = _published(recipe, reference, column) if reference else None
    return Entry(
        row=row,
        column=column,
        miou=Number.of(miou.values()),
        macc=Number.of(scores["macc"] for scores in done.values()),
        all_acc=Number.of(scores["all_acc"] for scores in done.values()),
        ss_fs=Number.of(_paired(found, reference, column, miou, _ratio)),
        gain=Number.of(_paired(found, recipe.baseline, column, miou, _difference)) if row != recipe.baseline else None,
        iou={name: Number.of(scores["iou"][name] for scores in done.values()) for name in names},
        published=published,
        published_ss_fs=100 * published / full if published and full else None,
        seeds=tuple(done),
        state=_state(cells, len(done), broken),
    )


def _state(cells: Sequence[Cell], done: int, broken: set[Path]) -> str:
    """Finished, failed, or how many seeds are there; '' of a row that is only published."""
    if not cells:
        return ""
    if failed := sum(cell.folder in broken for cell in cells):
        return "failed" if not done else f"{failed} of {len(cells)} failed"
    finished = sum(bool(scores_of(cell)) for cell in cells)
    if finished == len(cells):
        return "finished"
    return f"{finished} of {len(cells)} seeds"


def _paired(found: Found, other: str | None, column: str, miou: dict[int, Any], how: Any) -> list[float]:
    """`how` of a row's mIoU and another row's, for each seed that both have."""
    pairs = [(value, found.get((other or "", column, seed), {}).get("miou")) for seed, value in miou.items()]
    return [how(value, against) for value, against in pairs if value is not None and against]


def _ratio(value: float, against: float) -> float:
    return value / against


def _difference(value: float, against: float) -> float:
    return value - against


def _published(recipe: CompareRecipe, row: str, column: str) -> float | None:
    return recipe.published.miou.get(row, {}).get(column) if recipe.published else None


def shown(entry: Entry) -> str:
    """The mIoU of an entry as tables show it, with what is missing of it in words."""
    if entry.miou is None:
        return entry.state if entry.state == "failed" else "–"
    return str(entry.miou) if entry.state == "finished" else f"{entry.miou} ({entry.state})"


def signed(number: Number | None) -> str:
    """A difference, with its sign."""
    return "–" if number is None else f"{'+' * (round(number.mean, 1) >= 0)}{number}"


def summary_table(recipe: CompareRecipe, entries: Sequence[Entry]) -> Table:
    """Row × column with mIoU, SS/FS, the difference to the baseline and the published mIoU, for the terminal."""
    from rich.table import Table

    table = Table(title=f"{recipe.title}: mIoU of the {recipe.scores}, %, mean ± standard deviation over seeds")
    for name in ("row", "column"):
        table.add_column(name)
    heads = ["mIoU", *(["SS/FS"] if recipe.reference else []), *([f"− {recipe.baseline}"] if recipe.baseline else [])]
    for name in [*heads, *(["published"] if recipe.published else []), "seeds"]:
        table.add_column(name, justify="right")
    for entry in entries:
        cells = [shown(entry)]
        cells += [str(entry.ss_fs or "–")] if recipe.reference else []
        cells += [signed(entry.gain)] if recipe.baseline else []
        cells += [f"{entry.published:.1f}" if entry.published else "–"] if recipe.published else []
        table.add_row(entry.row, entry.column, *cells, str(len(entry.seeds)))
    return table


def write_summary(recipe: CompareRecipe, entries: Sequence[Entry], out: Path) -> None:
    """`summary.json`, `summary.csv` (a line per row and column) and `classes.csv` (a line per class of each), in %."""
    facts = {"title": recipe.title, "scores": recipe.scores, "unit": "%", "baseline": recipe.baseline}
    write_json(out / "summary.json", {**facts, "entries": [entry.to_json() for entry in entries]})
    numbers = ("miou", "ss_fs", "gain", "macc", "all_acc")
    with (out / "summary.csv").open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(
            [
                "row",
                "column",
                "state",
                "n",
                *(f"{name}_{part}" for name in numbers for part in ("mean", "std")),
                "published",
            ]
        )
        for entry in entries:
            values = [value for name in numbers for value in _mean_and_std(getattr(entry, name))]
            lines.writerow([entry.row, entry.column, entry.state, len(entry.seeds), *values, entry.published])
    with (out / "classes.csv").open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["row", "column", "class", "iou_mean", "iou_std", "n"])
        for entry in entries:
            for name, number in entry.iou.items():
                lines.writerow([entry.row, entry.column, name, *_mean_and_std(number), number.n if number else 0])


def _mean_and_std(number: Number | None) -> tuple[float | None, float | None]:
    tree = number.to_json() if number else {}
    return tree.get("mean"), tree.get("std")
