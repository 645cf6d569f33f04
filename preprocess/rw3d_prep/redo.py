"""`reconstruct --redo-unhealthy`: scenes that are out of bounds, made again from fewer frames each.

A scene is replaced by those of its halves, or of theirs, which every later run recognises as parts of the same batch:
the configuration stays the folder's, and each part records how many frames were asked for and used. The old scene is
removed only when its parts cover all its frames, so a run that dies leaves it, and the same command goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from rw3d_common.log import Metrics, log
from rw3d_common.scene import open_scene
from rw3d_prep.batching import Batch, listed_parts, missing_parts, part_names
from rw3d_prep.group_writer import temporary_beside
from rw3d_prep.health import unhealthy
from rw3d_prep.write import finished_names, store_path, sync_folder


@dataclass(frozen=True)
class Redo:
    """An unhealthy scene's batch, what is wrong with it, and the smaller batches that take its place."""

    batch: Batch
    faults: tuple[str, ...]
    parts: tuple[Batch, ...]

    def missing(self, finished: Set[str]) -> list[Batch]:
        """The parts that are not among the `finished` scenes' names."""
        return [piece for part in self.parts for piece in missing_parts(part, finished)]


def find_redos(batches: Iterable[Batch], out: Path, size: int) -> list[Redo]:
    """What to do again: the unhealthy scenes of `batches` with more than `size` frames; the others are named in the log.

    Raises:
        UserError: a scene cannot be opened.
    """
    finished = finished_names(out)
    there = [part for batch in batches for part in listed_parts(batch, finished)]
    faults = unhealthy(open_scene(store_path(out, part.name)) for part in there)
    sick = [Redo(part, tuple(faults[part.name]), tuple(cut(part, size))) for part in there if part.name in faults]
    redos = [redo for redo in sick if len(redo.parts) > 1]
    if small := [redo.batch.name for redo in sick if len(redo.parts) == 1]:
        log.warning(
            f"{len(small)} unhealthy scenes stay, because they have no more than {size} frames "
            f"({small[0]}{', …' * (len(small) > 1)}); a smaller --batch-size may help"
        )
    for redo in redos:
        log.info(f"{redo.batch.name}: {'; '.join(redo.faults)}; made again as {len(redo.parts)} scenes")
    return redos


def cut(batch: Batch, size: int) -> list[Batch]:
    """The batch, or its halves, and theirs, until none has more than `size` frames or is a single timestamp."""
    halves = batch.halves()
    if len(batch.frames) <= size or halves is None:
        return [batch]
    return [piece for half in halves for piece in cut(half, size)]


def remove_replaced(redos: Sequence[Redo], out: Path, metrics: Metrics) -> list[str]:
    """Remove the scenes whose parts are all finished, with their samples; returns their names. `metrics` gets a line each."""
    finished, removed = finished_names(out), []
    for redo in redos:
        store = store_path(out, redo.batch.name)
        if redo.missing(finished) or not store.is_dir():
            continue
        doomed = temporary_beside(store)
        store.rename(doomed)  # at once: what is left of a removal that dies is swept by the next run
        sync_folder(store.parent)
        shutil.rmtree(doomed)
        metrics.write(scene=redo.batch.name, replaced_by=[part.name for part in redo.parts], faults=redo.faults)
        removed.append(redo.batch.name)
    return removed


def warn_of_half_done(batches: Iterable[Batch], finished: Set[str]) -> None:
    """Name the scenes that are there together with parts of themselves, because a redo was stopped."""
    batches = list(batches)
    parts = finished - {batch.name for batch in batches}
    for batch in batches if parts else ():
        if batch.name in finished and not parts.isdisjoint(part_names(batch)):
            log.warning(
                f"{batch.name}: is here together with parts of it, because --redo-unhealthy was stopped; "
                "run that again before samples are drawn, or the same frames count twice"
            )
