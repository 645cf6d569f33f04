"""The report of a comparison: Markdown with pictures beside it, and one HTML file that holds everything."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from rw3d_common.errors import disk_errors
from rw3d_train.compare.cells import distinct, is_finished, record_of
from rw3d_train.compare.comparison import Comparison
from rw3d_train.compare.page import folded, picture, table, to_html
from rw3d_train.compare.plots import colors_of, plot_scores
from rw3d_train.compare.report_runs import commands, diagnostics, failures, predictions, training
from rw3d_train.compare.runner import duration
from rw3d_train.compare.tables import Entry, Number, shown, signed

PICTURES = "pictures"
Measure = tuple[str, Callable[[Entry], str]]


def write_report(comparison: Comparison, out: Path, device: torch.device) -> None:
    """Write `report.md` with its `pictures/`, and `report.html`, into `out`; an earlier report is replaced.

    Raises:
        UserError: a finished cell whose checkpoint is gone, or scenes that are.
    """
    with disk_errors(out):
        shutil.rmtree(out / PICTURES, ignore_errors=True)
        (out / PICTURES).mkdir(parents=True)
        parts = [
            f"# {comparison.recipe.title}",
            comparison.recipe.text.strip(),
            _state(comparison),
            *_results(comparison, out / PICTURES),
            *predictions(comparison, out / PICTURES, device),
            *_classes(comparison),
            *training(comparison, out / PICTURES),
            *diagnostics(comparison, out / PICTURES),
            *failures(comparison),
            *commands(comparison),
        ]
        text = "\n\n".join(part for part in parts if part) + "\n"
        (out / "report.md").write_text(text, encoding="utf-8")
        (out / "report.html").write_text(to_html(text, comparison.recipe.title, out), encoding="utf-8")


def _state(comparison: Comparison) -> str:
    cells = distinct(comparison.cells)
    done, seeds = sum(map(is_finished, cells)), sorted({cell.seed for cell in cells})
    missing = f", {done} of them finished" if done < len(cells) else ""
    missing += f", {len(comparison.failed)} failed" if comparison.failed else ""
    spent = duration(sum(record_of(cell).get("seconds", 0) for cell in cells))
    return (
        f"{len(cells)} trainings{missing}; seeds {', '.join(map(str, seeds))}; {spent} of training; written "
        f"{time.strftime('%Y-%m-%d %H:%M')}. All numbers are of the {comparison.recipe.scores} on split val, in %: mean ± "
        "standard deviation over seeds."
    )


def _results(comparison: Comparison, pictures: Path) -> list[str]:
    recipe, entries, measures = comparison.recipe, comparison.entries, _measures(comparison)
    plot_scores(recipe, entries, colors_of(recipe, comparison.rows), pictures / "scores.png")
    if len(recipe.columns) == 1:
        lines = [[entry.row, *(measure(entry) for _, measure in measures)] for entry in entries]
        tables = [table(["", *(name for name, _ in measures)], lines)]
    else:
        tables = [text for name, measure in measures for text in (f"**{name}**", _matrix(comparison, measure))]
    return ["## Results", *tables, _notes(comparison), picture("mIoU of every row", f"{PICTURES}/scores.png")]


def _measures(comparison: Comparison) -> list[Measure]:
    """What tables show of an entry, each with its heading."""
    recipe, entries = comparison.recipe, comparison.entries
    found: list[Measure] = [("mIoU", shown)]
    if recipe.reference:
        found.append(("SS/FS", lambda entry: str(entry.ss_fs or "–")))
    if recipe.baseline:
        found.append((f"mIoU − {recipe.baseline}", lambda entry: signed(entry.gain)))
    if recipe.published:
        found.append(("mIoU, published", lambda entry: _plain(entry.published)))
    if any(entry.published_ss_fs is not None for entry in entries):
        found.append(("SS/FS, published", lambda entry: _plain(entry.published_ss_fs)))
    return found


def _plain(value: float | None) -> str:
    return "–" if value is None else f"*{value:.1f}*"


def _matrix(comparison: Comparison, measure: Callable[[Entry], str]) -> str:
    """Rows × columns of one measure; rows that have nothing of it are left out."""
    columns = [column.name for column in comparison.recipe.columns]
    said = {(entry.row, entry.column): measure(entry) for entry in comparison.entries}
    lines = [[row, *(said[row, column] for column in columns)] for row in comparison.rows]
    return table(["", *columns], [line for line in lines if set(line[1:]) != {"–"}])


def _notes(comparison: Comparison) -> str:
    recipe, said = comparison.recipe, []
    if recipe.reference:
        said.append(f"SS/FS is mIoU as a share of that of *{recipe.reference.name}* with the same seed.")
    if recipe.baseline:
        said.append(f"*{recipe.baseline}* is subtracted seed by seed.")
    if recipe.published:
        said.append(f"Published numbers, in italics, are not ours: {recipe.published.source}.")
    return " ".join(said)


def _classes(comparison: Comparison) -> list[str]:
    """IoU per class, a table per column; bold: the best row of a class, the reference aside."""
    parts = []
    for _, column, heading in comparison.columns():
        entries = [entry for entry in comparison.entries if entry.column == column and entry.iou]
        names = list(dict.fromkeys(name for entry in entries for name in entry.iou))
        if names:
            lines = [[name, *_of_class(comparison, entries, name)] for name in names]
            lines.append(["**mIoU**", *(f"**{entry.miou or '–'}**" for entry in entries)])
            text = table(["", *(entry.row for entry in entries)], lines)
            parts.append(folded(column, text) if heading else text)
    return ["## IoU per class", *parts] if parts else []


def _of_class(comparison: Comparison, entries: Sequence[Entry], name: str) -> list[str]:
    reference = comparison.recipe.reference.name if comparison.recipe.reference else None
    rivals = [number.mean for entry in entries if entry.row != reference and (number := entry.iou.get(name))]
    best = max(rivals) if len(rivals) > 1 and max(rivals) > 0 else None
    return [_bold(entry.iou.get(name), None if entry.row == reference else best) for entry in entries]


def _bold(number: Number | None, best: float | None) -> str:
    return "–" if number is None else f"**{number}**" if number.mean == best else str(number)
