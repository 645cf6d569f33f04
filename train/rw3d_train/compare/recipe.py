"""The recipe of a comparison: a table of methods (rows) by labels, lengths or the like (columns), over seeds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field

from rw3d_common import config
from rw3d_common.config import Section, did_you_mean, read_yaml, validate
from rw3d_common.errors import UserError

EXPERIMENTS = "experiments"
Method = Literal["supervised", "ema", "rewis3d"]
ScoreName = Literal["2D student", "2D teacher", "3D student", "3D teacher"]


class StoreSet(Section):
    """Scenes that cells are trained from: where they lie, and what makes them."""

    folder: Path
    """The folder of scenes with samples, of split train and of split val."""
    copy_of: str | None = None
    """Another set: its folder is copied first, for `sample-views --overwrite` to draw other samples of the same scenes."""
    prepare: tuple[str, ...] = ()
    """The commands that make it, in order, as they are typed. A command that several sets name runs once."""


class Row(Section):
    """A method as it is trained."""

    name: str
    method: Method
    stores: str | dict[str, str] | None = None
    """The set of scenes, or one per column by its name, in place of the column's."""
    set: tuple[str, ...] = ()
    """Assignments, as `rw3d-train run --set` takes them; they come after the recipe's and the column's."""


class Column(Section):
    """What every row is trained on, or with."""

    name: str
    stores: str | None = None
    """The set of scenes."""
    set: tuple[str, ...] = ()
    """Assignments for every row; the reference does not take them."""
    value: float | None = None
    """Where the column stands on the axis `x`."""


class Published(Section):
    """Numbers of others to show beside ours."""

    source: str
    """Where they are from; it heads them."""
    miou: dict[str, dict[str, float]]
    """mIoU in %, by row and column. Rows that are not ours are shown as well."""


class CompareRecipe(Section):
    """A comparison. Every cell is row × column × seed; equal cells, also of other recipes, are trained once."""

    title: str
    text: str = ""
    """What the tables show, in Markdown; it opens the report."""
    dataset: str | None = None
    """The cells start from section `train:` of pipelines/<dataset>.yaml …"""
    config: Path | None = None
    """… or of this file."""
    preset: Literal["paper", "official"] = "paper"
    set: tuple[str, ...] = ()
    """Assignments of every cell, the reference's too."""
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    stores: dict[str, StoreSet]
    reference: Row | None = None
    """What SS/FS divides by, as a rule full supervision. It is trained once per seed and shown in every column."""
    baseline: str | None = None
    """A row whose mIoU is subtracted from the others', seed by seed."""
    columns: tuple[Column, ...] = Field(min_length=1)
    rows: tuple[Row, ...] = Field(min_length=1)
    x: str | None = None
    """Label of the axis where columns are numbers, each with its `value`; the plot then has lines."""
    scores: ScoreName = "2D student"
    """Whose scores the tables show."""
    pictures: int = Field(3, ge=0)
    """Images of split val that are shown with every row's prediction, evenly spread over it."""
    published: Published | None = None

    def all_rows(self) -> tuple[Row, ...]:
        """The reference, where there is one, and the rows."""
        return (*([self.reference] if self.reference else []), *self.rows)


def recipe_path(name: str) -> Path:
    """The file of a recipe: a path, or the bare name of one in pipelines/experiments.

    Raises:
        UserError: there is no such file.
    """
    if Path(name).is_file():
        return Path(name)
    folders = [folder / EXPERIMENTS for folder in config.PIPELINES]
    for folder in folders:
        if (folder / f"{name.removesuffix('.yaml')}.yaml").is_file():
            return folder / f"{name.removesuffix('.yaml')}.yaml"
    known = sorted({path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.yaml")})
    raise UserError(
        f"{name}: no such recipe{did_you_mean(name, known)}; give a YAML file, or one of {', '.join(known)}"
    )


def load_recipe(path: Path) -> CompareRecipe:
    """The recipe in a file.

    Raises:
        UserError: an unknown key, a value that does not fit, or a name that nothing in the recipe has.
    """
    recipe = validate(CompareRecipe, read_yaml(path), str(path))
    if (recipe.dataset is None) == (recipe.config is None):
        raise UserError(f"{path}: say what the cells start from: `dataset:` or `config:`, one of the two")
    if len(set(recipe.seeds)) < len(recipe.seeds):
        raise UserError(f"{path}: seeds = {list(recipe.seeds)}: one of them comes twice; name each once")
    _check_names(recipe, path)
    _check_stores(recipe, path)
    _check_axis(recipe, path)
    return recipe


def _check_names(recipe: CompareRecipe, path: Path) -> None:
    rows, columns = [row.name for row in recipe.all_rows()], [column.name for column in recipe.columns]
    for kind, names in (("row", rows), ("column", columns)):
        if twice := {name for name in names if names.count(name) > 1}:
            raise UserError(f"{path}: two {kind}s are called '{min(twice)}'; give each a name of its own")
    if recipe.baseline is not None:
        _known(recipe.baseline, [row.name for row in recipe.rows], f"{path}: baseline", "row")
    for name, numbers in (recipe.published.miou if recipe.published else {}).items():
        for column in numbers:
            _known(column, columns, f"{path}: published.miou.{name}", "column")


def _check_stores(recipe: CompareRecipe, path: Path) -> None:
    """Every set that is named is there, and every cell has one."""
    for name, scenes in recipe.stores.items():
        if scenes.copy_of is not None:
            originals = [other for other, its in recipe.stores.items() if its.copy_of is None]
            _known(scenes.copy_of, originals, f"{path}: stores.{name}.copy_of", "set of stores that is no copy itself")
    for row in recipe.all_rows():
        if isinstance(row.stores, dict):
            for column in row.stores:
                _known(
                    column, [column.name for column in recipe.columns], f"{path}: stores of row '{row.name}'", "column"
                )
        for column_ in recipe.columns:
            chosen = stores_of(row, column_)
            if chosen is None:
                raise UserError(
                    f"{path}: row '{row.name}', column '{column_.name}': no scenes; give the row or the column `stores:`"
                )
            _known(chosen, recipe.stores, f"{path}: row '{row.name}', column '{column_.name}'", "set of stores")


def stores_of(row: Row, column: Column) -> str | None:
    """The name of the set that a cell is trained from: the row's, else the column's."""
    own = row.stores.get(column.name) if isinstance(row.stores, dict) else row.stores
    return own or column.stores


def _check_axis(recipe: CompareRecipe, path: Path) -> None:
    for column in recipe.columns:
        if recipe.x is not None and column.value is None:
            raise UserError(f"{path}: column '{column.name}' has no `value:` on the axis '{recipe.x}'; add it")


def _known(name: str, known: Iterable[str], where: str, what: str) -> None:
    if name not in known:
        raise UserError(f"{where}: no {what} '{name}'{did_you_mean(name, known)}; known: {', '.join(sorted(known))}")
