"""Making the scenes of a comparison, with a stand-in for `rw3d-prep`: once each, in order, and on after a failure."""

import logging
import os
from pathlib import Path

import pytest

from compare_builders import recipe_file
from rw3d_common.errors import UserError
from rw3d_train.compare import scenes
from rw3d_train.compare.recipe import load_recipe

PROGRAM = """#!/bin/sh
echo "$@" >> calls.txt
mkdir -p "$2" && touch "$2/$1"
[ ! -e "fail-$1" ]
"""
STORES = {
    "a": {"folder": "stores/a", "prepare": ["rw3d-prep draw street", "rw3d-prep build stores/a"]},
    "b": {"folder": "stores/b", "prepare": ["rw3d-prep draw street", "rw3d-prep build stores/b"]},
    "c": {"folder": "stores/c", "copy_of": "a", "prepare": ["rw3d-prep sample stores/c"]},
}


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    program = tmp_path / "bin" / "rw3d-prep"
    program.parent.mkdir()
    program.write_text(PROGRAM)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    columns = [{"name": name, "stores": name} for name in STORES]
    return load_recipe(recipe_file(tmp_path, stores=STORES, columns=columns, reference=None))


def calls() -> list[str]:
    return Path("calls.txt").read_text().splitlines()


def test_missing_scenes_are_made_and_shared_commands_run_once(recipe):
    lacking = scenes.missing({"c": recipe.stores["c"], "b": recipe.stores["b"]}, recipe)
    assert list(lacking) == ["a", "b", "c"]  # a is what c is a copy of
    scenes.prepare(lacking, recipe)
    assert calls() == ["draw street", "build stores/a", "build stores/b", "sample stores/c"]
    assert Path("stores/c/build").is_file()
    assert not Path("stores/a/sample").exists()
    assert scenes.made_by(Path("stores/a")) == ("rw3d-prep draw street", "rw3d-prep build stores/a")
    assert scenes.missing(recipe.stores, recipe) == {}


def test_a_command_that_fails_ends_it_and_the_next_start_goes_on(recipe):
    Path("fail-build").touch()
    with pytest.raises(UserError, match=r"`rw3d-prep build stores/a` ended with exit code 1; see what it says above"):
        scenes.prepare(scenes.missing(recipe.stores, recipe), recipe)
    Path("fail-build").unlink()
    assert list(scenes.missing(recipe.stores, recipe)) == ["a", "b", "c"]
    scenes.prepare(scenes.missing(recipe.stores, recipe), recipe)
    assert scenes.missing(recipe.stores, recipe) == {}


def test_without_leave_to_prepare_one_sentence_names_the_commands(recipe):
    sentence = (
        r"^stores/a: the scenes 'a' are not there .*; give --prepare, which runs: rw3d-prep draw street && rw3d-prep"
    )
    with pytest.raises(UserError, match=sentence):
        scenes.refuse_missing(scenes.missing(recipe.stores, recipe))


def test_a_missing_program_is_said_before_anything_runs(recipe, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(UserError, match=r"rw3d-prep: not installed, and the scenes need it: `rw3d-prep draw street`"):
        scenes.prepare(recipe.stores, recipe)
    assert not Path("stores").exists()


def test_scenes_of_other_commands_are_told_of(recipe, tmp_path, caplog):
    scenes.prepare(scenes.missing(recipe.stores, recipe), recipe)
    stores = {**STORES, "b": {"folder": "stores/b", "prepare": ["rw3d-prep build stores/b --better"]}}
    columns = [{"name": name, "stores": name} for name in STORES]
    changed = load_recipe(recipe_file(tmp_path, stores=stores, columns=columns, reference=None))
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="rw3d"):
        assert scenes.missing(changed.stores, changed) == {}
    assert "stores/b: was made by other commands than the recipe's now" in caplog.text
    assert "stores/a" not in caplog.text


def test_scenes_that_cannot_be_trained_on_are_refused(recipe):
    with pytest.raises(UserError, match=r"stores/a: no samples to train on; run `rw3d-prep sample-views stores/a`"):
        scenes.check({"a": recipe.stores["a"]}, "kitti360")
