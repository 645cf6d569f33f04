"""Batches: up to N frames of one split and sequence, never across a timestamp or a gap in the frame ids.

Batches may overlap: neighbours then share the last times of the one and the first of the other, and `align` can tell
from their pixels how both scenes lie to each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import chain, groupby, pairwise
from statistics import median_low

from pydantic import Field, model_validator

from rw3d_common.config import Section
from rw3d_common.errors import UserError
from rw3d_prep.frames import Frame


class BatchConfig(Section):
    size: int = Field(200, ge=1)
    """Most frames per batch. The paper uses 200; 1 reconstructs every image alone (its single-frame variant)."""
    max_gap: float = Field(1.0, gt=0)
    """Largest step between neighbouring frame ids, in typical (median) steps of the sequence; a larger one splits."""
    min_size: int = Field(10, ge=1)
    """A batch that does not fit into GPU memory is halved, and its halves again, but never below this many frames."""
    overlap: int = Field(0, ge=0)
    """Times (frames of one camera) that neighbouring batches of a run share; 0: every frame is in one batch."""

    @model_validator(mode="after")
    def _leaves_something_new(self) -> BatchConfig:
        if self.overlap >= self.size:
            raise ValueError(f"overlap {self.overlap} must be smaller than size {self.size}")
        return self


@dataclass(frozen=True)
class Batch:
    """The frames that become one scene.

    `part_of` is the size of the batch that they were halved from, if they were. The first `shared` frames are in an
    earlier batch too; `overlap` is how many times halves of this batch share.
    """

    frames: tuple[Frame, ...]
    part_of: int | None = None
    shared: int = 0
    overlap: int = 0

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

    @property
    def asked(self) -> int:
        """Frames that were to be reconstructed together; more than there are in a part of a batch.

        Batches are halved where GPU memory does not suffice, and where their scene was unhealthy.
        """
        return self.part_of or len(self.frames)

    @property
    def with_truth(self) -> bool:
        """True when any frame has dense labels."""
        return any(frame.truth for frame in self.frames)

    def halves(self) -> tuple[Batch, Batch] | None:
        """The batch cut in the middle, always in the same place and never within a timestamp; None if it is only one.

        Halves overlap as batches do, but by no more than half of the first, so that they stay smaller than the whole.
        """
        moments = [tuple(group) for _, group in groupby(self.frames, key=lambda frame: frame.id)]
        if len(moments) == 1:
            return None
        middle = (len(moments) + 1) // 2
        start = middle - min(self.overlap, middle // 2)
        first, shared = (tuple(chain.from_iterable(part)) for part in (moments[:middle], moments[start:middle]))
        second = (*shared, *chain.from_iterable(moments[middle:]))
        return (
            Batch(first, self.asked, min(self.shared, len(first)), self.overlap),
            Batch(second, self.asked, max(len(shared), self.shared - len(self.frames) + len(second)), self.overlap),
        )


def make_batches(frames: Iterable[Frame], config: BatchConfig) -> list[Batch]:
    """Every frame in exactly one batch, or more with `overlap`, in the order (split, sequence, id, camera).

    A run without gaps is shared out evenly: 201 frames become 101 + 100, not 200 and a batch of one image. All cameras
    of a timestamp stay together, also where that makes a batch larger than `size`.

    Raises:
        UserError: the overlap leaves no room for anything new in a batch.
    """
    ordered = sorted(frames, key=lambda frame: (frame.split, frame.sequence, frame.id, frame.camera))
    batches = []
    for _, members in groupby(ordered, key=lambda frame: (frame.split, frame.sequence)):
        moments = [tuple(group) for _, group in groupby(members, key=lambda frame: frame.id)]
        for run in _runs(moments, config.max_gap):
            for number, part in enumerate(_even_parts(run, config.size, config.overlap)):
                shared = sum(len(moment) for moment in part[: config.overlap]) if number else 0
                batches.append(Batch(tuple(chain.from_iterable(part)), shared=shared, overlap=config.overlap))
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


def _even_parts(run: Sequence[Moment], size: int, overlap: int) -> list[Sequence[Moment]]:
    """The fewest near-equal parts of at most `size` frames each, neighbours sharing `overlap` moments."""
    per_moment = max(len(moment) for moment in run)
    moments_per_part = max(size // per_moment, 1)
    if overlap >= moments_per_part:
        raise UserError(
            f"batching.overlap = {overlap}: {run[0][0].sequence} has {per_moment} cameras, so a batch of {size} frames "
            f"holds {moments_per_part} times; choose a smaller --overlap or a larger --batch-size"
        )
    count = max(-(-(len(run) - overlap) // (moments_per_part - overlap)), 1)
    bounds = [round(i * (len(run) - overlap) / count) for i in range(count)]
    return [run[start : stop + overlap] for start, stop in pairwise([*bounds, len(run) - overlap])]


def missing_parts(batch: Batch, finished: Set[str]) -> list[Batch]:
    """What has no scene yet: the batch, or, where scenes of halves are among the `finished` names, the other halves."""
    if batch.name in finished:
        return []
    halves = batch.halves()
    if halves is None:
        return [batch]
    parts = [part for half in halves for part in missing_parts(half, finished)]
    untouched = [part.name for part in parts] == [half.name for half in halves]
    return [batch] if untouched else parts


def part_names(batch: Batch) -> Iterator[str]:
    """The names of the batch, of its halves, and of theirs."""
    yield batch.name
    for half in batch.halves() or ():
        yield from part_names(half)


def listed_parts(batch: Batch, listed: Set[str]) -> list[Batch]:
    """The batch if its name is among `listed`, else those of its halves, and their halves, that are."""
    if batch.name in listed:
        return [batch]
    return [part for half in batch.halves() or () for part in listed_parts(half, listed)]
