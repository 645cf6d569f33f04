"""Batches: up to N frames of one split and sequence, never across a timestamp or a gap in the frame ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from statistics import median_low

from pydantic import Field

from rw3d_common.config import Section
from rw3d_prep.frames import Frame


class BatchConfig(Section):
    size: int = Field(200, ge=1)
    """Most frames per batch. The paper uses 200; 1 reconstructs every image alone (its single-frame variant)."""
    max_gap: float = Field(1.0, gt=0)
    """Largest step between neighbouring frame ids, in typical (median) steps of the sequence; a larger one splits."""


@dataclass(frozen=True)
class Batch:
    """The frames that become one scene."""

    frames: tuple[Frame, ...]

    @property
    def split(self) -> str:
        return self.frames[0].split

    @property
    def sequence(self) -> str:
        return self.frames[0].sequence

    @property
    def name(self) -> str:
        """split/sequence/first-last: where the scene is stored below the output folder, without its suffix."""
        return f"{self.split}/{self.sequence}/{self.frames[0].id:010d}-{self.frames[-1].id:010d}"


def make_batches(frames: Iterable[Frame], config: BatchConfig) -> list[Batch]:
    """Every frame in exactly one batch, in the order (split, sequence, id, camera).

    A run without gaps is shared out evenly: 201 frames become 101 + 100, not 200 and a batch of one image. All cameras
    of a timestamp stay together, also where that makes a batch larger than `size`.
    """
    ordered = sorted(frames, key=lambda frame: (frame.split, frame.sequence, frame.id, frame.camera))
    batches = []
    for _, members in groupby(ordered, key=lambda frame: (frame.split, frame.sequence)):
        moments = [tuple(group) for _, group in groupby(members, key=lambda frame: frame.id)]
        for run in _runs(moments, config.max_gap):
            batches += [
                Batch(tuple(frame for moment in part for frame in moment)) for part in _even_parts(run, config.size)
            ]
    return batches


Moment = tuple[Frame, ...]  # the frames of all cameras at one time


def _runs(moments: Sequence[Moment], max_gap: float) -> list[list[Moment]]:
    """Split where the frame id jumps by more than `max_gap` typical steps."""
    steps = [later[0].id - earlier[0].id for earlier, later in pairwise(moments)]
    limit = max_gap * median_low(steps) if steps else 0
    runs = [[moments[0]]]
    for step, moment in zip(steps, moments[1:], strict=True):
        if step > limit:
            runs.append([])
        runs[-1].append(moment)
    return runs


def _even_parts(run: Sequence[Moment], size: int) -> list[Sequence[Moment]]:
    """The fewest near-equal parts of at most `size` frames each."""
    per_moment = max(len(moment) for moment in run)
    moments_per_part = max(size // per_moment, 1)
    count = -(-len(run) // moments_per_part)
    bounds = [round(i * len(run) / count) for i in range(count + 1)]
    return [run[start:stop] for start, stop in pairwise(bounds)]
