"""The steps of `rw3d-train compare`: plan, scenes, trainings, tables, report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rw3d_common.errors import Exit, UserError, disk_errors
from rw3d_common.log import console, log
from rw3d_train.compare import scenes
from rw3d_train.compare.cells import Cell, cells_of, distinct, is_finished
from rw3d_train.compare.comparison import Comparison
from rw3d_train.compare.plots import require_plots
from rw3d_train.compare.recipe import CompareRecipe, StoreSet, load_recipe
from rw3d_train.compare.runner import Failure, Machine, duration, expected_seconds, remaining, run_cells
from rw3d_train.compare.tables import summarize, summary_table, write_summary
from rw3d_train.compare.versions import versions
from rw3d_train.distributed import process_group

if TYPE_CHECKING:
    from rich.table import Table

FAILURES = "failures.jsonl"


@dataclass(frozen=True)
class Options:
    """What the command line says beside the recipe."""

    out: Path
    runs: Path
    seeds: tuple[int, ...] = ()
    only: str = ""
    prepare: bool = False
    plan: bool = False
    report: bool = False
    command: str = ""


def compare(path: Path, options: Options, machine: Machine) -> Exit:
    """Train the cells of a recipe that are not finished, then write tables and report of all that is.

    Args:
        path: the recipe.
        options: see there.
        machine: where cells run.

    Returns:
        COMPLETE, or PARTIAL where a cell failed.

    Raises:
        UserError: a recipe, scenes or machine that cannot be used; nothing has been trained then.
    """
    if not options.plan:
        require_plots()
    recipe = load_recipe(path)
    cells = cells_of(recipe, path, options.seeds or recipe.seeds, options.runs)
    chosen = distinct(_only(cells, options.only))
    todo = [] if options.report else [cell for cell in chosen if not is_finished(cell)]
    sets = scenes.needed(recipe, todo)
    lacking = scenes.missing(sets, recipe)
    _show_plan(recipe, cells, todo, lacking, machine)
    if options.plan:
        return Exit.COMPLETE
    if lacking and not options.prepare:
        scenes.refuse_missing(lacking)
    scenes.prepare(lacking, recipe)
    scenes.check(sets, cells[0].config.data.dataset)
    failed = run_cells(todo, machine, versions()) if todo else []
    _write(recipe, cells, failed, options, machine)
    return Exit.PARTIAL if failed else Exit.COMPLETE


def _only(cells: Sequence[Cell], text: str) -> list[Cell]:
    """Cells with a text in the name of their row or column.

    Raises:
        UserError: there is none.
    """
    found = [cell for cell in cells if text.lower() in f"{cell.row} · {cell.column}".lower()]
    if not found:
        raise UserError(f"--only {text}: no row or column has this in its name; see the plan with --plan")
    return found


def _show_plan(
    recipe: CompareRecipe,
    cells: Sequence[Cell],
    todo: Sequence[Cell],
    lacking: dict[str, StoreSet],
    machine: Machine,
) -> None:
    """Say what there is to do, and how long it will take by what was trained before."""
    console().print(_plan_table(recipe, cells, todo))
    for name, made in lacking.items():
        log.info(f"scenes '{name}' in {made.folder}: not there or not complete")
    whole, finished = distinct(cells), sum(map(is_finished, distinct(cells)))
    left = remaining(todo, cells, machine.jobs)
    log.info(
        f"{len(whole)} trainings, {finished} finished, {len(todo)} to do, {machine.jobs} at a time"
        f"{', about ' + left if left else ''}"
    )


def _plan_table(recipe: CompareRecipe, cells: Sequence[Cell], todo: Sequence[Cell]) -> Table:
    from rich.table import Table

    table = Table(title=recipe.title)
    for name in ("row", "column", "method", "scenes"):
        table.add_column(name)
    for name in ("seeds", "finished", "to do", "each"):
        table.add_column(name, justify="right")
    waiting = {cell.folder for cell in todo}
    for row, column in dict.fromkeys((cell.row, cell.column) for cell in cells):
        of_place = [cell for cell in cells if (cell.row, cell.column) == (row, column)]
        counts = (len(of_place), sum(map(is_finished, of_place)), sum(cell.folder in waiting for cell in of_place))
        seconds = expected_seconds(of_place[0], cells)
        one = of_place[0]
        each = "–" if seconds is None else duration(seconds)
        table.add_row(row, column, one.config.method.kind, one.stores, *map(str, counts), each)
    return table


def _write(
    recipe: CompareRecipe, cells: Sequence[Cell], failed: Sequence[Failure], options: Options, machine: Machine
) -> None:
    from rw3d_train.compare.report import write_report

    entries = summarize(recipe, cells, [failure.cell.folder for failure in failed])
    with disk_errors(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(failure.to_json(), ensure_ascii=False) + "\n" for failure in failed]
        (options.out / FAILURES).write_text("".join(lines), encoding="utf-8")
        if not failed:
            (options.out / FAILURES).unlink()
        write_summary(recipe, entries, options.out)
    console().print(summary_table(recipe, entries))
    with process_group(machine.own_device) as device:
        write_report(Comparison(recipe, cells, entries, failed, options.command), options.out, device)
    log.info(f"report: {options.out}/report.html and report.md; numbers: summary.csv, classes.csv, summary.json there")
    if failed:
        log.error(f"{len(failed)} trainings failed: {options.out / FAILURES}; the same command tries them again")
