"""Recipes of comparisons for tests, over small networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from rw3d_train.compare.cells import Cell, cells_of
from rw3d_train.compare.recipe import load_recipe
from train_builders import tiny_config

ROWS = [
    {"name": "sparse", "method": "supervised", "set": ["method.labels=sparse"]},
    {"name": "teacher", "method": "ema"},
]


def recipe_file(folder: Path, **changes: Any) -> Path:
    """`recipe.yaml` in `folder`: two rows and a reference over `stores`, one column; `changes` replace its keys."""
    folder.mkdir(parents=True, exist_ok=True)
    base = tiny_config(Path("stores"), "rewis3d", **{"method__cross_modal__start": 0, "run__batch_size": 3})
    (folder / "base.yaml").write_text(yaml.safe_dump({"train": base.model_dump(mode="json")}))
    tree = {
        "title": "A test",
        "config": str(folder / "base.yaml"),
        "seeds": [0, 1],
        "stores": {"scribbles": {"folder": str(folder / "stores")}},
        "reference": {"name": "full", "method": "supervised"},
        "baseline": "teacher",
        "columns": [{"name": "scribbles", "stores": "scribbles"}],
        "rows": ROWS,
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in tree.items() if value is not None}))
    return path


def cells_in(path: Path, runs: Path) -> list[Cell]:
    """The cells of a recipe's own seeds."""
    recipe = load_recipe(path)
    return cells_of(recipe, path, recipe.seeds, runs)
