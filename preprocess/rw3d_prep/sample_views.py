"""`rw3d-prep sample-views`: the samples of every finished scene below a folder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from rw3d_common.collection import store_paths
from rw3d_common.errors import DiskFull, UserError, disk_errors
from rw3d_common.log import log, progress
from rw3d_common.scene import Scene, open_scene
from rw3d_common.schema import STORE_SUFFIX
from rw3d_prep.outcome import Outcome
from rw3d_prep.samples import is_sampled, make_samples, wanted_views
from rw3d_prep.sampling import SampleConfig
from rw3d_prep.workers import run_in_processes
from rw3d_prep.write import sweep_orphans

FAILURES = "sample_failures.jsonl"


def sample_views(path: Path, config: SampleConfig, workers: int, overwrite: bool = False) -> Outcome:
    """Make the samples that are not there yet of the scene or folder of scenes at `path`; safe to kill and repeat.

    Scenes run in processes of their own; workers that are left over become threads within each scene.

    Raises:
        UserError: no scene or no view to sample, or samples of another configuration and no `overwrite`.
        DiskFull: no space left.
    """
    scenes, folder = find_scenes(path), path.parent if path.suffix == STORE_SUFFIX else path
    with disk_errors(folder):
        sweep_orphans(folder)
        (folder / FAILURES).unlink(missing_ok=True)
    outcome = Outcome()
    todo = _to_sample(scenes, config, overwrite, outcome)
    if outcome.skipped:
        log.info(f"{len(outcome.skipped)} of {len(scenes)} scenes have these samples already and keep them")
    _tell_small(todo, config)
    try:
        _run(todo, config, workers, overwrite, folder, outcome)
    finally:
        sweep_orphans(folder)
    return outcome


def find_scenes(path: Path) -> list[Scene]:
    """The finished scenes at or below `path`, opened.

    Raises:
        UserError: there is none, or one that cannot be opened.
    """
    stores = store_paths(path)
    if not stores or not path.is_dir():
        state = "no finished scene here" if path.is_dir() else "no such folder"
        raise UserError(f"{path}: {state}; make scenes with `rw3d-prep reconstruct`, then sample their views")
    return [open_scene(store) for store in stores]


def _to_sample(scenes: Sequence[Scene], config: SampleConfig, overwrite: bool, outcome: Outcome) -> list[Scene]:
    """Scenes with something left to do; those that are finished are noted in `outcome`."""
    clouds = sum(len(scene) == 0 for scene in scenes)
    if clouds:
        log.info(f"{clouds} of {len(scenes)} scenes are point clouds without views and get no samples")
        scenes = [scene for scene in scenes if len(scene)]
    if not scenes:
        return []
    usable = [
        scene for scene in scenes if len(wanted_views(scene, config)) and (scene.n_points or not scene.has_geometry)
    ]
    if not usable:
        raise UserError(
            f"{scenes[0].path}{' and the others' * (len(scenes) > 1)}: no view has a sparse label; --views all samples every view"
        )
    if len(usable) < len(scenes):
        log.warning(f"{len(scenes) - len(usable)} of {len(scenes)} scenes have no labelled view and get no samples")
    todo = []
    for scene in usable:
        if is_sampled(scene, config, overwrite):
            outcome.skipped.append(scene.name)
        else:
            todo.append(scene)
    return todo


def _tell_small(scenes: Sequence[Scene], config: SampleConfig) -> None:
    if bare := sum(not scene.has_geometry for scene in scenes):
        log.info(
            f"no geometry in {bare} of {len(scenes)} scenes (--backend images): their samples are images and labels, for "
            "methods supervised and ema"
        )
    small = [scene for scene in scenes if scene.has_geometry and scene.n_points < config.points]
    if small:
        least = min(small, key=lambda scene: scene.n_points)
        which = f"{len(small)} scenes have" if len(small) > 1 else "1 scene has"
        log.warning(
            f"{which} fewer than the {config.points:,} points asked for (fewest: {least.n_points:,} in {least.name}); "
            "samples hold what there is"
        )


def _run(
    todo: Sequence[Scene], config: SampleConfig, workers: int, overwrite: bool, folder: Path, outcome: Outcome
) -> None:
    """Work through the scenes; one that fails is recorded and the others go on."""
    total = sum(len(wanted_views(scene, config)) for scene in todo) * config.draws
    processes = max(min(workers, len(todo)), 1)
    arguments = [(scene.path, config, max(workers // processes, 1), overwrite) for scene in todo]
    with (
        progress("sample-views", total, "samples") as advance,
        closing(run_in_processes(make_samples, arguments, processes, advance)) as finished,
    ):
        for index, future in finished:
            try:
                future.result()
            except DiskFull:
                raise
            except Exception as error:  # noqa: BLE001 - one scene must not take the others with it; nothing is hidden
                outcome.record(todo[index].name, error, folder / FAILURES)
            else:
                outcome.written.append(todo[index].name)
