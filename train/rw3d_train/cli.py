"""The command line of training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rw3d_common.errors import Exit, UserError
from rw3d_common.log import configure, console, log

app = typer.Typer(
    name="rw3d-train",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train 2D segmentation from the scenes that rw3d-prep made.",
)


@app.callback()
def _commands() -> None:
    """Keeps `rw3d-train COMMAND` the form of every call, also while there is one command."""


@app.command()
def scenes(
    stores: Annotated[Path, typer.Argument(help="A *.zarr scene, or a folder of them.")] = Path("stores"),
) -> None:
    """List the finished scenes that training would read."""
    from rw3d_common.collection import open_collection

    console().print(repr(open_collection(stores)), highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point of `rw3d-train`: runs a command and turns errors into one sentence and an exit code."""
    configure()
    try:
        app()
    except UserError as error:
        log.error(f"rw3d-train: {error}")
        sys.exit(Exit.BAD_INPUT)
