"""`rw3d-prep reconstruct`: frames → batches → geometry → fused points → scene stores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from rw3d_common.collection import store_paths
from rw3d_common.config import difference
from rw3d_common.errors import DiskFull, UserError, disk_errors
from rw3d_common.log import Metrics, log, progress
from rw3d_common.scene import open_scene
from rw3d_prep import batch_scene
from rw3d_prep.batching import Batch, listed_parts, make_batches
from rw3d_prep.config import PrepConfig, save_config
from rw3d_prep.datasets import read_frames
from rw3d_prep.machines import Machines
from rw3d_prep.outcome import FAILURES, Outcome, failed_scenes, forget_failures
from rw3d_prep.publish import MANIFEST, write_manifest
from rw3d_prep.reconstruct import in_own_world, usable_frames
from rw3d_prep.redo import find_redos, remove_replaced, warn_of_half_done
from rw3d_prep.shard import WHOLE, Shard
from rw3d_prep.work import Work, frames_of, missing_work, scene_names, steps_of
from rw3d_prep.write import finished_names, sweep_orphans


def find_batches(config: PrepConfig, root: Path) -> tuple[list[Work], list[str]]:
    """What becomes a scene each: batches of frames, then, with measured geometry, point clouds without views.

    The second value holds one sentence for each kind of thing that was left out.

    Raises:
        UserError: the data cannot be read, no frame is usable, or the backend cannot run here.
    """
    found = read_frames(root, config.dataset)
    needs = batch_scene.backend_of(config.backend).needs
    if config.batching.size == 1 and "camera_to_world" in needs:
        found.frames = in_own_world(found.frames)
    frames, dropped = usable_frames(found.frames, needs)
    clouds = found.clouds if config.backend.kind == "sensor" else []
    if len(clouds) < len(found.clouds):
        dropped.append(f"{len(found.clouds):,} point clouds without images are left out: --backend sensor takes them")
    if not frames and not clouds:
        raise UserError(f"{root}: {'; '.join([*found.notes, *dropped])}; choose another --backend")
    return [*make_batches(frames, config.batching), *clouds], [*found.notes, *dropped]


def reconstruct(
    config: PrepConfig,
    root: Path,
    out: Path,
    workers: int,
    retry_failed: bool = False,
    redo_size: int | None = None,
    shard: Shard = WHOLE,
    gpus: Sequence[int] = (),
    scheduler: str | Path | None = None,
    on_written: Callable[[str], object] = lambda name: None,
) -> Outcome:
    """Make every scene that is not there yet; safe to kill and to call again.

    With `retry_failed` only the batches that failures.jsonl lists are tried; with `redo_size` only unhealthy scenes
    are made again, from at most so many frames each. Scenes are made by `workers` processes, by `gpus` of this machine,
    or by the Dask cluster of a `scheduler`, given by its address or file. A `shard` is one job of several that write
    into the same `out`: it makes its part. `on_written` is called with every scene's name once it is published.

    Raises:
        UserError: bad input found before work starts, scenes of another configuration in `out`, or a full disk.
    """
    if scheduler:
        root, out = root.absolute(), out.absolute()  # its workers run in folders of their own
    recipe, notes = find_batches(config, root)
    for note in notes:
        log.warning(note)
    batches = shard.of(recipe)
    own = None if shard.is_whole else scene_names(batches)
    _open_folder(config, out, own)
    failures = shard.file(out / FAILURES)
    earlier = {path: path.stat().st_size for path in shard.files_read(out / FAILURES) if path.is_file()}
    outcome, todo = _what_to_do(batches, out, earlier if retry_failed else None)
    with_views = [work for work in batches if isinstance(work, Batch)]
    redos = [] if redo_size is None else find_redos(with_views, out, redo_size)
    if redo_size is None:
        warn_of_half_done(with_views, finished_names(out))
    else:
        todo = [part for redo in redos for part in redo.missing(finished_names(out))]
    machines = Machines(config, root, out, workers, gpus, scheduler)
    metrics = Metrics(shard.file(out / "metrics.jsonl"))
    if todo:
        machines.require()
    with disk_errors(out):
        try:
            if todo:
                (out / MANIFEST).unlink(missing_ok=True)  # a run that dies must not leave one that lacks its scenes
                _run(todo, machines, outcome, failures, metrics, on_written)
        finally:
            sweep_orphans(out, own)
        if redo_size is None:  # else those that failed before were not tried
            for path, size in earlier.items():
                forget_failures(path, size)
        remove_replaced(redos, out, metrics)
        outcome.there = sorted(finished_names(out) if own is None else finished_names(out) & own)
        missing = sum(map(bool, missing_work(recipe, finished_names(out)).values()))
        if shard.is_whole or not missing:
            write_manifest(out)
        else:
            log.info(f"{missing} of {len(recipe)} scenes are missing; the job that finds all there writes {MANIFEST}")
    return outcome


def _open_folder(config: PrepConfig, out: Path, own: set[str] | None) -> None:
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        sweep_orphans(out, own)
        refuse_other_config(config, out)
        save_config(config, out / "config.yaml")


def _what_to_do(batches: Sequence[Work], out: Path, failures: Iterable[Path] | None) -> tuple[Outcome, list[Work]]:
    """What is finished, and what is to be made: all that is missing, or, of that, only what `failures` list."""
    missing = missing_work(batches, finished_names(out))
    outcome = Outcome(skipped=[name for name, parts in missing.items() if not parts])
    todo = [part for parts in missing.values() for part in parts]
    if outcome.skipped:
        log.info(f"{len(outcome.skipped)} of {len(batches)} scenes are finished and kept")
    if failures is not None:
        listed = {path: failed_scenes(path) for path in failures}
        _refuse_unknown(listed, batches)
        todo = [part for work in todo for part in _listed(work, set().union(*listed.values()))]
        log.info(f"{len(todo)} batches failed before and are tried again")
    return outcome, todo


def _refuse_unknown(listed: Mapping[Path, set[str]], batches: Sequence[Work]) -> None:
    """Raise UserError for a failure that is of no batch: other options would silently try something else."""
    known = scene_names(batches)
    for failures, names in listed.items():
        if unknown := names - known:
            raise UserError(
                f"{failures}: {min(unknown)} is no batch of this recipe; repeat the options of the run that failed, "
                "or run without --retry-failed, which makes all that is missing"
            )


def _listed(work: Work, names: set[str]) -> Sequence[Work]:
    if isinstance(work, Batch):
        return listed_parts(work, names)
    return [work] if work.name in names else []


def _run(
    todo: Sequence[Work],
    machines: Machines,
    outcome: Outcome,
    failures: Path,
    metrics: Metrics,
    on_written: Callable[[str], object],
) -> None:
    """Work through the batches and clouds; a failed one is recorded and the others go on."""
    with (
        progress(
            "reconstruct", sum(map(steps_of, todo)), "views" if any(map(frames_of, todo)) else "clouds"
        ) as advance,
        closing(machines.make_scenes(todo, advance)) as finished,
    ):
        for work, future in finished:
            try:
                counts = future.result()
            except DiskFull:
                raise
            except Exception as error:  # noqa: BLE001 - one batch must not take the others with it; nothing is hidden
                outcome.record(work.name, error, failures, frames=[str(frame) for frame in frames_of(work)])
            else:
                outcome.written.append(work.name)
                on_written(work.name)
                for note in counts.get("notes", ()):
                    log.warning(note)
                metrics.write(scene=work.name, **counts)


def refuse_other_config(config: PrepConfig, out: Path) -> None:
    """Raise UserError when `out` holds a scene that another configuration made."""
    for store in store_paths(out):
        attrs = open_scene(store).attrs
        if attrs["config_hash"] != config.hash():
            changed = difference(attrs["config"], config.identity())
            raise UserError(
                f"{store}: made with another configuration ({changed}); choose another --out, "
                "repeat with the old values, or delete the old scenes"
            )
