"""The scenes that a comparison is trained from: which are missing, and the commands that make them."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rw3d_common.collection import local_stores
from rw3d_common.errors import UserError, disk_errors
from rw3d_common.log import log
from rw3d_common.scene import open_scene
from rw3d_common.scene_sample import has_samples
from rw3d_train.compare.cells import Cell, read_json, write_json
from rw3d_train.compare.recipe import CompareRecipe, StoreSet

PREPARED = "prepared.json"  # in a folder of scenes: the commands that made it, and whether all of them are done


def needed(recipe: CompareRecipe, cells: Iterable[Cell]) -> dict[str, StoreSet]:
    """The sets that cells are trained from, in the recipe's order."""
    names = {cell.stores for cell in cells}
    return {name: scenes for name, scenes in recipe.stores.items() if name in names}


def is_there(scenes: StoreSet) -> bool:
    """Whether a set is complete: its commands are done, or someone else put scenes with samples there."""
    made = read_json(scenes.folder / PREPARED)
    if made:
        return bool(made.get("finished"))
    return any(has_samples(path) for path in local_stores(scenes.folder))


def made_by(folder: Path) -> tuple[str, ...]:
    """The commands that made a folder of scenes, where `--prepare` ran them."""
    return tuple(read_json(folder / PREPARED).get("commands", ()))


def missing(sets: dict[str, StoreSet], recipe: CompareRecipe) -> dict[str, StoreSet]:
    """Those that are not there, each after the one that it is a copy of."""
    for scenes in sets.values():
        if is_there(scenes) and (made := made_by(scenes.folder)) and made != scenes.prepare:
            log.warning(
                f"{scenes.folder}: was made by other commands than the recipe's now; they are in {PREPARED} there; delete "
                "the folder to make these scenes again"
            )
    lacking = {name for name, scenes in sets.items() if not is_there(scenes)}
    sources = {recipe.stores[name].copy_of for name in lacking}
    lacking |= {name for name in recipe.stores if name in sources and not is_there(recipe.stores[name])}
    in_order = sorted(recipe.stores.items(), key=lambda item: item[1].copy_of is not None)
    return {name: scenes for name, scenes in in_order if name in lacking}


def refuse_missing(sets: dict[str, StoreSet]) -> None:
    """Raise UserError naming the commands that make what is missing."""
    for name, scenes in sets.items():
        commands = " && ".join(scenes.prepare) or "`rw3d-prep reconstruct` and `rw3d-prep sample-views`"
        raise UserError(
            f"{scenes.folder}: the scenes '{name}' are not there or not complete; give --prepare, which runs: {commands}"
        )


def prepare(sets: dict[str, StoreSet], recipe: CompareRecipe) -> None:
    """Make sets of scenes by their commands. A command that several of them name runs once.

    Raises:
        UserError: a program that is not installed, a command that failed, or a set without commands.
    """
    programs = {name: [_program(command) for command in scenes.prepare] for name, scenes in sets.items()}
    done: set[str] = set()
    for name, scenes in sets.items():
        if not scenes.prepare:
            refuse_missing({name: scenes})
        with disk_errors(scenes.folder):
            if scenes.copy_of is not None:
                _copy(recipe.stores[scenes.copy_of].folder, scenes.folder)
            scenes.folder.mkdir(parents=True, exist_ok=True)
        write_json(scenes.folder / PREPARED, {"commands": list(scenes.prepare), "finished": False})
        for command, words in zip(scenes.prepare, programs[name], strict=True):
            if command not in done:
                _run(command, words)
            done.add(command)
        write_json(scenes.folder / PREPARED, {"commands": list(scenes.prepare), "finished": True})


def _program(command: str) -> list[str]:
    """The words of a command, with where its program lies.

    Raises:
        UserError: it is nowhere.
    """
    words = shlex.split(command)
    beside = Path(sys.executable).with_name(words[0])
    found = shutil.which(words[0]) or (str(beside) if beside.is_file() else None)
    if found is None:
        raise UserError(
            f"{words[0]}: not installed, and the scenes need it: `{command}`; pip install 'rw3d[prep]', or make the scenes "
            "elsewhere and put them where the recipe says"
        )
    return [found, *words[1:]]


def _copy(source: Path, target: Path) -> None:
    """A folder of scenes, whole or not at all; one that is there is kept."""
    if target.exists():
        return
    log.info(f"copy {source} to {target}")
    temporary = target.with_name(f"{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary, ignore=shutil.ignore_patterns(PREPARED))
    temporary.rename(target)


def _run(command: str, words: Sequence[str]) -> None:
    log.info(f"prepare: {command}")
    with subprocess.Popen(words, start_new_session=True) as process:
        try:
            code = process.wait()
        finally:  # a stopped comparison stops what it started; the command goes on from there next time
            if process.poll() is None:
                process.terminate()
    if code != 0:
        raise UserError(f"`{command}` ended with exit code {code}; see what it says above, mend it, and start again")


def check(sets: dict[str, StoreSet], dataset: str) -> None:
    """Look at the scenes before hours of training.

    Raises:
        UserError: a set without samples to train on, without dense labels to score by, or of another dataset.
    """
    for name, scenes in sets.items():
        found = [open_scene(path) for path in local_stores(scenes.folder)]
        other = {str(scene.attrs["dataset"]) for scene in found} - {dataset}
        if other:
            raise UserError(f"{scenes.folder}: the scenes '{name}' are of {', '.join(sorted(other))}, not of {dataset}")
        if not any(has_samples(scene.path) for scene in found):
            raise UserError(f"{scenes.folder}: no samples to train on; run `rw3d-prep sample-views {scenes.folder}`")
        if not any(scene.attrs["split"] == "val" and scene.has_truth for scene in found):
            raise UserError(
                f"{scenes.folder}: no scene of split val with dense labels to score by; reconstruct it with "
                "--set 'dataset.splits=[train, val]'"
            )
