"""The command `rw3d-train compare`. torch and matplotlib are imported inside it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from rw3d_common.errors import UserError


def compare(
    recipe: Annotated[
        str, typer.Argument(help="A recipe, or the bare name of one in pipelines/experiments, such as demo_table1.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where tables and report go. Default: reports/ and the recipe's name.")
    ] = None,
    runs: Annotated[
        Path, typer.Option(help="Where trainings lie. Comparisons that share this folder share equal trainings.")
    ] = Path("runs/compare"),
    seeds: Annotated[str | None, typer.Option(metavar="0,1,…", help="Seeds in place of the recipe's.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Trainings at a time. Default: one per GPU of --gpus, else 1.")
    ] = None,
    gpus: Annotated[
        str | None, typer.Option(metavar="0,1,…", help="GPUs to use, as nvidia-smi numbers them, one training on each.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto (a GPU where there is one), cpu, cuda, cuda:1, mps; for one training at a time.")
    ] = "auto",
    prepare: Annotated[
        bool, typer.Option("--prepare/--no-prepare", help="Run the recipe's commands where scenes are missing.")
    ] = False,
    only: Annotated[
        str, typer.Option(metavar="TEXT", help="Train only what has this in its row's or column's name.")
    ] = "",
    plan: Annotated[bool, typer.Option("--plan", help="Say what there is to do, and stop.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Train nothing; write tables and report of what is finished.")
    ] = False,
) -> None:
    """Train a table of methods × labels × seeds, and report it: tables, plots, predictions, commands, versions.

    Finished trainings are kept and begun ones go on: after a crash or Ctrl-C, the same command goes on where it
    stopped. Exit codes: 0 all done, 2 bad input, 3 some trainings failed (failures.jsonl says why), 75 stopped.
    """
    from rw3d_train.compare.recipe import recipe_path
    from rw3d_train.compare.runner import Machine
    from rw3d_train.compare.steps import Options
    from rw3d_train.compare.steps import compare as run

    path = recipe_path(recipe)
    named = tuple(gpus.split(",")) if gpus else ()
    options = Options(
        out=out or Path("reports") / path.stem,
        runs=runs,
        seeds=_numbers("--seeds", seeds),
        only=only,
        prepare=prepare,
        plan=plan,
        report=report,
        command=shlex.join(["rw3d-train", *(word for word in sys.argv[1:] if word != "--report")]),
    )
    raise typer.Exit(run(path, options, Machine.of(jobs, named, device)))


def _numbers(option: str, text: str | None) -> tuple[int, ...]:
    """Different whole numbers, written '0,1,2'; () of nothing.

    Raises:
        UserError: something else.
    """
    try:
        found = tuple(int(word) for word in text.split(",")) if text else ()
    except ValueError:
        raise UserError(f"{option} {text}: expected numbers such as 0,1,2") from None
    if len(set(found)) < len(found):
        raise UserError(f"{option} {text}: one of them comes twice; name each once")
    return found
