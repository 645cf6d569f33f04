"""The unit of work: what becomes one scene, by a pure function that any process on any machine can call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rw3d_prep import batch_scene
from rw3d_prep.batching import Batch, missing_parts, part_names
from rw3d_prep.clouds import write_cloud
from rw3d_prep.config import PrepConfig
from rw3d_prep.frames import Cloud, Frame

Work = Batch | Cloud


def make_scene(work: Work, config: PrepConfig, root: Path, out: Path) -> dict[str, Any]:
    """Make the scene of a batch or of a cloud; see `reconstruct_batch` and `write_cloud`."""
    if isinstance(work, Cloud):
        return write_cloud(work, config, root, out)
    return batch_scene.reconstruct_batch(work, config, root, out)


def frames_of(work: Work) -> tuple[Frame, ...]:
    """The frames of a batch; a cloud has none."""
    return work.frames if isinstance(work, Batch) else ()


def steps_of(work: Work) -> int:
    """By how much progress advances: views, or 1 for a cloud."""
    return max(len(frames_of(work)), 1)


def scene_names(works: Sequence[Work]) -> set[str]:
    """The names of all scenes that they can become, those of halved batches among them."""
    return {name for work in works for name in (part_names(work) if isinstance(work, Batch) else [work.name])}


def missing_work(works: Sequence[Work], finished: set[str]) -> dict[str, list[Work]]:
    """Per work's name, what of it has no scene among the `finished` names; nothing where all is there."""
    halves = finished - {work.name for work in works}
    return {work.name: _missing(work, finished, halves) for work in works}


def _missing(work: Work, finished: set[str], halves: set[str]) -> list[Work]:
    if work.name in finished:
        return []
    return list(missing_parts(work, halves)) if halves and isinstance(work, Batch) else [work]
