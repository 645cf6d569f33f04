"""Every recipe in pipelines/experiments is valid down to its cells, and its commands are such as `rw3d-prep` takes."""

import shlex
from pathlib import Path

import pytest
import typer

from rw3d_prep.cli import app
from rw3d_prep.config import load_config
from rw3d_train.compare.cells import cells_of
from rw3d_train.compare.recipe import load_recipe

RECIPES = sorted((Path(__file__).parents[1] / "pipelines" / "experiments").glob("*.yaml"))
TABLES = ("table1", "table2", "table3", "scribble_length")
PAPER = ("kitti360", "waymo", "nyuv2", "cityscapes")


def parsed(command: str) -> tuple[str, dict]:
    """The name of a command of `rw3d-prep` and its options, as the program itself reads them, without running it."""
    program, *words = shlex.split(command)
    assert program == "rw3d-prep", command
    found, name = typer.main.get_command(app), ""
    while hasattr(found, "commands"):
        name = f"{name} {words[0]}".strip()
        found = found.commands[words.pop(0)]
    with found.make_context(name, words) as context:
        return name, context.params


def test_the_tables_of_the_paper_have_a_recipe_for_each_of_its_datasets():
    names = {path.stem for path in RECIPES}
    assert {f"{table}_{dataset}" for table in TABLES for dataset in PAPER} <= names


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_cell_is_a_configuration_of_its_dataset(path):
    recipe = load_recipe(path)
    cells = cells_of(recipe, path, recipe.seeds[:1], Path("runs"))
    assert len(cells) == len(recipe.all_rows()) * len(recipe.columns)
    assert {cell.config.data.dataset in path.stem.split("_") for cell in cells} == {True}
    assert {cell.stores for cell in cells} == recipe.stores.keys()  # no set is made for nothing
    assert recipe.reference is not None
    assert {cell.config.method.labels for cell in cells if cell.row == recipe.reference.name} == {"dense"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_command_is_one_of_preparation_and_makes_its_set(path):
    recipe = load_recipe(path)
    for scenes in recipe.stores.values():
        commands = [parsed(command) for command in scenes.prepare]
        made = [options["out"] for name, options in commands if name.startswith("make-labels")]
        made += [folder / f"length_{length}" for folder in made for length in lengths(commands)]
        for name, options in commands:
            if name == "reconstruct":
                config = settings(options)
                assert {"train", "val"} <= {*config.dataset.splits}
                assert options["out"] == scenes.folder
                assert "/" not in config.dataset.labels or Path(config.dataset.labels) in made
            elif name == "sample-views":
                assert scenes.folder in (options["stores"], options["stores"].parent)
        names = [name for name, _ in commands]
        assert names[-1] == "sample-views"
        assert scenes.copy_of or "reconstruct" in names


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_scenes_without_geometry_train_2d_methods_alone(path):
    recipe = load_recipe(path)
    made = {name: [parsed(command) for command in scenes.prepare] for name, scenes in recipe.stores.items()}
    bare = {name for name, commands in made.items() if any(o.get("backend") == "images" for _, o in commands)}
    assert bare == (recipe.stores.keys() if path.stem == "camvid" else set())
    for cell in cells_of(recipe, path, recipe.seeds[:1], Path("runs")):
        assert not (cell.stores in bare and cell.config.trains_3d)


def lengths(commands: list[tuple[str, dict]]) -> list[str]:
    return [length for name, options in commands for length in (options.get("lengths") or "").split(",") if length]


def settings(options: dict):
    """The configuration that `reconstruct` would resolve."""
    backend = options["backend"]
    labels = [f"dataset.labels={options['labels']}"] if options["labels"] else []
    assignments = [*labels, *(options["assignments"] or [])]
    name = backend.value if backend is not None else None
    return load_config(options["dataset"], options["config"], name, options["batch_size"], assignments)
