"""`rw3d-prep accumulate`: the accumulated labels of every finished scene below a folder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from rw3d_common.errors import DiskFull, UserError, disk_errors
from rw3d_common.log import log, progress
from rw3d_common.scene import Scene
from rw3d_common.schema import STORE_SUFFIX
from rw3d_prep.accumulate import AccumulateConfig, is_accumulated, make_accumulated
from rw3d_prep.outcome import Outcome
from rw3d_prep.sample_views import find_scenes
from rw3d_prep.workers import run_in_processes
from rw3d_prep.write import sweep_orphans

FAILURES = "accumulate_failures.jsonl"


def accumulate(path: Path, config: AccumulateConfig, workers: int, overwrite: bool = False) -> Outcome:
    """Accumulate the labels of the scene or folder of scenes at `path`; safe to kill and repeat.

    Scenes run in processes of their own. Scenes without a labelled view are left out. Labels that turn out not to be
    precise enough are written all the same, marked as not usable.

    Raises:
        UserError: no scene, no labelled view, or labels of another configuration and no `overwrite`.
        DiskFull: no space left.
    """
    scenes, folder = find_scenes(path), path.parent if path.suffix == STORE_SUFFIX else path
    with disk_errors(folder):
        sweep_orphans(folder)
        (folder / FAILURES).unlink(missing_ok=True)
    outcome = Outcome()
    if bare := [scene for scene in scenes if not scene.has_geometry]:
        raise UserError(
            f"{path}: {len(bare)} of {len(scenes)} scenes have no geometry to carry labels along (--backend images); "
            "reconstruct them with another --backend"
        )
    labelled = [scene for scene in scenes if len(scene) and scene.view_table["has_label"].any()]
    if not labelled:
        raise UserError(f"{path}: no view of these {len(scenes)} scenes has a sparse label, so there is none to carry")
    if len(labelled) < len(scenes):
        log.info(
            f"{len(scenes) - len(labelled)} of {len(scenes)} scenes have no labelled view and are left as they are"
        )
    todo = [scene for scene in labelled if not is_accumulated(scene, config, overwrite)]
    outcome.skipped += [scene.name for scene in labelled if scene not in todo]
    if outcome.skipped:
        log.info(
            f"{len(outcome.skipped)} of {len(labelled)} scenes have these accumulated labels already and keep them"
        )
    try:
        _run(todo, config, workers, overwrite, folder, outcome)
    finally:
        sweep_orphans(folder)
    return outcome


def _run(
    todo: Sequence[Scene], config: AccumulateConfig, workers: int, overwrite: bool, folder: Path, outcome: Outcome
) -> None:
    """Work through the scenes; one that fails is recorded and the others go on."""
    arguments = [(scene.path, config, overwrite) for scene in todo]
    with (
        progress("accumulate", sum(map(len, todo)), "views") as advance,
        closing(run_in_processes(make_accumulated, arguments, max(min(workers, len(todo)), 1), advance)) as finished,
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
