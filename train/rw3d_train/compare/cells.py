"""The cells of a comparison: which configuration each trains, where, and whether it has been trained."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rw3d_common.config import config_hash
from rw3d_common.errors import UserError, disk_errors
from rw3d_train.compare.recipe import Column, CompareRecipe, Row, stores_of
from rw3d_train.config import TrainConfig, load_train_config

RECORD, RECIPE, LOG, SCORES = "cell.json", "recipe.yaml", "cell.log", "evaluation-val.json"
FREE = {"workers", "save_steps", "keep", "overlays", "diagnose"}  # of section run: they change no weight and no score


@dataclass(frozen=True)
class Cell:
    """One training of a comparison.

    `stores` names its set of scenes, `identity` is the hash of all that decides its scores, `folder` its run folder,
    `arguments` what `rw3d-train` has to be given for the same training by hand.
    """

    row: str
    column: str
    seed: int
    stores: str
    config: TrainConfig
    identity: str
    folder: Path
    arguments: tuple[str, ...]

    @property
    def command(self) -> str:
        """The command that trains the same by hand."""
        return shlex.join(("rw3d-train", *self.arguments))

    def __str__(self) -> str:
        return f"{self.row} · {self.column} · seed {self.seed}"


def cells_of(recipe: CompareRecipe, source: Path, seeds: Sequence[int], runs: Path) -> list[Cell]:
    """Every cell of a recipe, seed by seed, so that a comparison that ends early has whole tables of fewer seeds.

    The reference is a cell of every column; those cells are equal, and share their folder.

    Raises:
        UserError: an assignment that does not fit; the message names row and column.
    """
    return [
        _cell(recipe, row, column, seed, runs, f"{source}: row '{row.name}', column '{column.name}'")
        for seed in seeds
        for row in recipe.all_rows()
        for column in recipe.columns
    ]


def _cell(recipe: CompareRecipe, row: Row, column: Column, seed: int, runs: Path, where: str) -> Cell:
    stores = stores_of(row, column) or ""
    folder = recipe.stores[stores].folder
    of_column = () if row == recipe.reference else column.set
    assignments = [*recipe.set, *of_column, *row.set, f"run.seed={seed}"]
    try:
        config = load_train_config(
            recipe.dataset,
            recipe.config,
            recipe.preset,
            row.method,
            [f"data.stores={json.dumps(str(folder))}", *assignments],
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    identity = identity_of(config)
    source = ("--config", str(recipe.config)) if recipe.config else ("--dataset", str(recipe.dataset))
    preset = () if recipe.preset == "paper" else ("--preset", recipe.preset)
    sets = [part for assignment in assignments for part in ("--set", assignment)]
    return Cell(
        row=row.name,
        column=column.name,
        seed=seed,
        stores=stores,
        config=config,
        identity=identity,
        folder=runs / f"{config.data.dataset}-{config.method.kind}-seed{config.run.seed}-{identity[:10]}",
        arguments=("run", *source, *preset, "--method", row.method, "--stores", str(folder), *sets),
    )


def identity_of(config: TrainConfig) -> str:
    """Hash of all that decides the scores of a run."""
    tree = config.model_dump(mode="json")
    return config_hash({**tree, "run": {key: value for key, value in tree["run"].items() if key not in FREE}})


def distinct(cells: Iterable[Cell]) -> list[Cell]:
    """One cell per folder, in order: what has to be trained."""
    return list({cell.folder: cell for cell in reversed([*cells])}.values())[::-1]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; {} where the file is missing or half-written, as a killed process leaves it."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def write_json(path: Path, tree: dict[str, Any]) -> None:
    """Write an object as a file, whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    with disk_errors(path):
        temporary.write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(path)


def record_of(cell: Cell) -> dict[str, Any]:
    """What cell.json says of the training of a cell: seconds, command, versions; {} where there is none of this cell."""
    record = read_json(cell.folder / RECORD)
    return record if record.get("identity") == cell.identity else {}


def scores_of(cell: Cell) -> dict[str, Any]:
    """Scores of a finished cell by name ("2D student"), as `Scores.to_json` has them; {} of one that is not finished."""
    if not record_of(cell).get("finished"):
        return {}
    scores = read_json(cell.folder / SCORES).get("scores")
    return scores if isinstance(scores, dict) else {}


def is_finished(cell: Cell) -> bool:
    """The cell has been trained and scored."""
    return bool(scores_of(cell))
