"""`rw3d-prep reconstruct`: frames → batches → geometry → fused points → scene stores."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Any

from rw3d_common.collection import store_paths
from rw3d_common.config import difference
from rw3d_common.errors import DiskFull, UserError, disk_errors
from rw3d_common.log import Metrics, log, progress
from rw3d_common.scene import open_scene
from rw3d_common.schema import STORE_SUFFIX
from rw3d_prep import batch_scene
from rw3d_prep.batching import Batch, listed_parts, make_batches, missing_parts, part_names
from rw3d_prep.clouds import write_cloud
from rw3d_prep.config import PrepConfig, save_config
from rw3d_prep.datasets import read_frames
from rw3d_prep.frames import Cloud, Frame
from rw3d_prep.gpu_pipeline import run_on_gpu
from rw3d_prep.outcome import FAILURES, Outcome, failed_scenes, forget_failures
from rw3d_prep.publish import MANIFEST, write_manifest
from rw3d_prep.reconstruct import in_own_world, usable_frames
from rw3d_prep.reconstruct.base import GpuBackend
from rw3d_prep.workers import run_in_processes
from rw3d_prep.write import sweep_orphans

Work = Batch | Cloud  # what becomes one scene


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


def reconstruct(config: PrepConfig, root: Path, out: Path, workers: int, retry_failed: bool = False) -> Outcome:
    """Make every scene that is not there yet; safe to kill and to call again.

    With `retry_failed` only the batches that failures.jsonl lists are tried.

    Raises:
        UserError: bad input found before work starts, scenes of another configuration in `out`, or a full disk.
    """
    batches, notes = find_batches(config, root)
    for note in notes:
        log.warning(note)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        sweep_orphans(out)
        refuse_other_config(config, out)
        save_config(config, out / "config.yaml")
    outcome, todo = _what_to_do(batches, out, retry_failed)
    if todo:
        batch_scene.backend_of(config.backend).require()
    with disk_errors(out):
        if todo:
            (out / MANIFEST).unlink(missing_ok=True)  # a run that dies must not leave one that lacks its scenes
        failures = out / FAILURES
        earlier = failures.stat().st_size if failures.is_file() else 0
        try:
            _run(todo, config, root, out, workers, outcome)
        finally:
            sweep_orphans(out)
        forget_failures(failures, earlier)
        write_manifest(out)
    return outcome


def _what_to_do(batches: Sequence[Work], out: Path, retry_failed: bool) -> tuple[Outcome, list[Work]]:
    """What is finished, and what is to be made: all that is missing, or, of that, only what failed before."""
    finished = {path.relative_to(out).as_posix().removesuffix(STORE_SUFFIX) for path in store_paths(out)}
    halves = finished - {batch.name for batch in batches}
    missing = {batch.name: _missing(batch, finished, halves) for batch in batches}
    outcome = Outcome(skipped=[name for name, parts in missing.items() if not parts])
    todo = [part for parts in missing.values() for part in parts]
    if outcome.skipped:
        log.info(f"{len(outcome.skipped)} of {len(batches)} scenes are finished and kept")
    if retry_failed:
        failed = failed_scenes(out / FAILURES)
        _refuse_unknown(failed, batches, out / FAILURES)
        todo = [part for work in todo for part in _listed(work, failed)]
        log.info(f"{len(todo)} batches failed before and are tried again")
    return outcome, todo


def _refuse_unknown(failed: set[str], batches: Sequence[Work], failures: Path) -> None:
    """Raise UserError for a failure that is of no batch: other options would silently try something else."""
    known = {name for work in batches for name in (part_names(work) if isinstance(work, Batch) else [work.name])}
    if unknown := failed - known:
        raise UserError(
            f"{failures}: {min(unknown)} is no batch of this recipe; repeat the options of the run that failed, "
            "or run without --retry-failed, which makes all that is missing"
        )


def _missing(work: Work, finished: set[str], halves: set[str]) -> Sequence[Work]:
    if work.name in finished:
        return []
    return missing_parts(work, halves) if halves and isinstance(work, Batch) else [work]


def _listed(work: Work, names: set[str]) -> Sequence[Work]:
    if isinstance(work, Batch):
        return listed_parts(work, names)
    return [work] if work.name in names else []


def _run(todo: Sequence[Work], config: PrepConfig, root: Path, out: Path, workers: int, outcome: Outcome) -> None:
    """Work through the batches and clouds; a failed one is recorded and the others go on."""
    metrics = Metrics(out / "metrics.jsonl")
    steps = sum(max(len(frames_of(work)), 1) for work in todo)
    with (
        progress("reconstruct", steps, "views" if any(map(frames_of, todo)) else "clouds") as advance,
        closing(_scenes(todo, config, root, out, workers, advance)) as finished,
    ):
        for work, future in finished:
            try:
                counts = future.result()
            except DiskFull:
                raise
            except Exception as error:  # noqa: BLE001 - one batch must not take the others with it; nothing is hidden
                outcome.record(work.name, error, out / FAILURES, frames=[str(frame) for frame in frames_of(work)])
            else:
                outcome.written.append(work.name)
                for note in counts.get("notes", ()):
                    log.warning(note)
                metrics.write(scene=work.name, **counts)


def _scenes(
    todo: Sequence[Work], config: PrepConfig, root: Path, out: Path, workers: int, on_step: Callable[[], object]
) -> Generator[tuple[Work, Future[dict[str, Any]]]]:
    """Yield what has been made, or has failed, as it happens."""
    backend = batch_scene.backend_of(config.backend)
    if isinstance(backend, GpuBackend):
        batches = [work for work in todo if isinstance(work, Batch)]  # clouds are measured: no GPU makes them
        yield from run_on_gpu(batches, backend, config, root, out, workers, on_step)
        return
    arguments = [(work, config, root, out) for work in todo]
    with closing(run_in_processes(make_scene, arguments, min(workers, len(todo)), on_step)) as finished:
        for index, future in finished:
            yield todo[index], future


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


def frames_of(batch: Work) -> tuple[Frame, ...]:
    """The frames of a batch; a cloud has none."""
    return batch.frames if isinstance(batch, Batch) else ()


def make_scene(batch: Work, config: PrepConfig, root: Path, out: Path) -> dict[str, Any]:
    """Make the scene of a batch or of a cloud; see `reconstruct_batch` and `write_cloud`."""
    if isinstance(batch, Cloud):
        return write_cloud(batch, config, root, out)
    return batch_scene.reconstruct_batch(batch, config, root, out)
