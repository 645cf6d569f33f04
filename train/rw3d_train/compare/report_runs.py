"""The parts of a report that show single cells: predictions, training, diagnostics, failures, commands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rw3d_train.compare.cells import distinct, is_finished, record_of
from rw3d_train.compare.comparison import Comparison
from rw3d_train.compare.curves import DIAGNOSE, HELD_OUT, Curves, mean_of, read_curves
from rw3d_train.compare.page import code, folded, picture, table
from rw3d_train.compare.pictures import write_pictures
from rw3d_train.compare.plots import colors_of
from rw3d_train.compare.recipe import CompareRecipe
from rw3d_train.compare.run_plots import plot_diagnostics, plot_held_out, plot_losses
from rw3d_train.compare.runner import duration

SHARES = (
    ("labelled_pixels", "labelled pixels"),
    ("labelled_points", "labelled points"),
    ("correspondences_per_pixel", "pixels with a point, in batches"),
    ("diagnose/correspondences", "pixels with a point, in images"),
    ("diagnose/taught", "of these, labelled by 3D with certainty"),
    ("diagnose/agreement", "teachers agree"),
    ("diagnose/precision_2d", "labels for 2D right"),
    ("diagnose/weighted_precision_2d", "… by weight"),
    ("diagnose/known_2d", "2D teacher right there"),
    ("diagnose/precision_3d", "labels for 3D right"),
    ("diagnose/weighted_precision_3d", "… by weight"),
)


def predictions(comparison: Comparison, folder: Path, device: torch.device) -> list[str]:
    """Pictures of split val, a column per image: the image, its truth, and what each row predicts there."""
    parts, keys = [], list[str]()
    for number, column, heading in comparison.columns():
        file = folder / f"predictions_{number}.jpg"
        cells = [cell for cell in comparison.of_column(column, comparison.first_seed) if is_finished(cell)]
        if cells and comparison.recipe.pictures:
            keys = write_pictures(cells, comparison.recipe.pictures, device, file)
            parts += [*heading, picture("image, truth and predictions", f"{folder.name}/{file.name}")]
    where = ", ".join(f"`{key}`" for key in keys)
    note = f"What the students of seed {comparison.first_seed} see in images spread evenly over split val: {where}."
    return ["## Predictions", note, *parts] if parts else []


def training(comparison: Comparison, folder: Path) -> list[str]:
    """Held-out mIoU over epochs, and losses over steps."""
    read = {cell.folder: read_curves(cell) for cell in distinct(comparison.cells)}
    found = {(cell.row, cell.column, cell.seed): read[cell.folder] for cell in comparison.cells}
    colors, parts = colors_of(comparison.recipe, comparison.rows), []
    if any(HELD_OUT in curves.names() for curves in read.values()):
        columns = [column.name for column in comparison.recipe.columns]
        plot_held_out(columns, found, colors, folder / "held_out.png")
        text = "By these scores the best checkpoint is chosen: mIoU against the sparse labels of scenes kept out of training."
        parts += [f"{text} A line per seed.", picture("held-out mIoU over epochs", f"{folder.name}/held_out.png")]
    for number, column, heading in comparison.columns():
        of_column = {
            row: one for (row, of, seed), one in found.items() if (of, seed) == (column, comparison.first_seed)
        }
        if any(curves.steps for curves in of_column.values()):
            plot_losses(of_column, colors, folder / f"losses_{number}.png")
            shown = picture("parts of the losses over steps", f"{folder.name}/losses_{number}.png")
            title = f"Parts of the losses over steps, seed {comparison.first_seed}"
            parts += [folded(f"{title}: {column}", shown)] if heading else [f"{title}:", shown]
    return ["## Training", *parts] if parts else []


def diagnostics(comparison: Comparison, folder: Path) -> list[str]:
    """Why a run gains or does not: how much geometry teaches, and how much of that is right."""
    parts = []
    for number, column, heading in comparison.columns():
        found: dict[str, list[Curves]] = {}
        for cell in comparison.of_column(column):
            if cell.config.method.kind == "rewis3d" and (curves := read_curves(cell)).steps:
                found.setdefault(cell.row, []).append(curves)
        if found:
            parts += [*heading, _shares(found)]
            first = {row: curves[0] for row, curves in found.items()}
            if any(key.startswith(DIAGNOSE) for curves in first.values() for key in curves.names()):
                plot_diagnostics(first, folder / f"diagnostics_{number}.png")
                shown = picture("diagnostics over epochs", f"{folder.name}/diagnostics_{number}.png")
                parts.append(folded(f"Over epochs: {column}", shown) if heading else shown)
    intro = (
        "Last values of each run with a 3D branch, mean over seeds, in %; the plots are of the first seed. Labels for 2D are "
        "what the 3D teacher says at the pixels that show a point, labels for 3D what the 2D teacher says there. They help "
        "where they are right and the student is not yet."
    )
    return ["## What geometry teaches", intro, *parts] if parts else []


def _shares(found: dict[str, list[Curves]]) -> str:
    """A line per row; numbers that no run has, as older ones, are left out."""
    told = [(key, name) for key, name in SHARES if any(mean_of(curves, key) is not None for curves in found.values())]
    lines = [[row, *(_share(mean_of(curves, key)) for key, _ in told)] for row, curves in found.items()]
    return table(["", *(name for _, name in told)], lines)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def failures(comparison: Comparison) -> list[str]:
    """What failed, with the last lines that it said."""
    parts = [f"**{failure.cell}**, exit code {failure.code}\n\n{code(failure.said)}" for failure in comparison.failed]
    return ["## Failed", *parts] if parts else []


def commands(comparison: Comparison) -> list[str]:
    """What makes every number again, and what made it."""
    recipe, cells = comparison.recipe, distinct(comparison.cells)
    records = [record_of(cell) for cell in cells if is_finished(cell)]
    lines = [f"# {cell}{_time(record_of(cell).get('seconds'))}\n{cell.command} --out {cell.folder}" for cell in cells]
    parts = ["## Commands and versions", "The whole comparison:", code(comparison.command)]
    if scenes := _scenes(recipe, records):
        parts.append(folded("The scenes", code("\n".join(scenes))))
    parts.append(folded(f"Each of the {len(cells)} trainings", code("\n\n".join(lines))))
    return [*parts, _versions([record["versions"] for record in records])] if records else parts


def _scenes(recipe: CompareRecipe, records: Sequence[dict[str, Any]]) -> list[str]:
    """The commands that made the scenes of finished cells; the recipe's where nothing is known of them."""
    copied = [recipe.stores[made.copy_of] for made in recipe.stores.values() if made.copy_of]
    known = [command for record in records for command in record.get("scenes", ())]
    sets = copied if known else [*copied, *recipe.stores.values()]
    return list(dict.fromkeys([*(command for made in sets for command in made.prepare), *known]))


def _time(seconds: float | None) -> str:
    return f", {duration(seconds)}" if seconds else ""


def _versions(found: Sequence[dict[str, str]]) -> str:
    """A table of versions; where cells differ, all that occur."""
    names = list(dict.fromkeys(name for one in found for name in one))
    said = {name: dict.fromkeys(one[name] for one in found if one.get(name)) for name in names}
    return table(
        ["", "of the finished trainings"], [[name, ", ".join(values)] for name, values in said.items() if values]
    )
