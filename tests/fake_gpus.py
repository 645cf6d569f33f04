"""GPUs that are files: a process that computes on one holds its lock, so two at once on one cannot go unnoticed."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rw3d_common.errors import DiskFull, UserError
from rw3d_prep import gpu_pipeline
from rw3d_prep.frames import Frame
from rw3d_prep.reconstruct.base import RawView, ViewGeometry
from sleeping_backend import SleepingBackend, _threads


@dataclass
class FakeGpus(SleepingBackend):
    """A `SleepingBackend` on GPUs whose locks lie in `folder`, where `log` gets a line per batch that is computed.

    A process that computes a frame of `killing` kills itself, so many times. The first batches wait until `together`
    GPUs are at work. `absent` are GPUs that do not work, `full` frames that find the disk full.
    """

    folder: Path = Path()
    killing: dict[int, int] = field(default_factory=dict)
    together: int = 1
    absent: tuple[str, ...] = ()
    full: tuple[int, ...] = ()

    def require(self) -> None:
        if multiprocessing.parent_process() is None:
            return
        if os.environ["CUDA_VISIBLE_DEVICES"] in self.absent:
            raise UserError("no CUDA device is available")
        gpu_pipeline.worker_pool = _threads  # saves a second of imports per process

    def infer(self, frames: Sequence[Frame], loaded: list[np.ndarray]) -> Iterator[RawView]:
        gpu = os.environ["CUDA_VISIBLE_DEVICES"]
        with (self.folder / f"gpu-{gpu}").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with (self.folder / "log").open("a") as log:
                log.write(f"{gpu} {os.getpid()} {frames[0].id} {len(frames)}\n")
            kills = max(self.killing.get(frame.id, 0) for frame in frames)
            if len(self.computed(frames[0].id)) <= kills:
                os.kill(os.getpid(), signal.SIGKILL)
            while len({gpu for gpu, *_ in self.computed()}) < self.together:
                time.sleep(0.01)
            yield from super().infer(frames, loaded)

    def finish(self, frame: Frame, raw: RawView) -> ViewGeometry:
        if frame.id in self.full:
            raise DiskFull("no space left")
        return super().finish(frame, raw)

    def computed(self, first: int | None = None) -> list[tuple[str, int, int, int]]:
        """(GPU, process, first frame id, frames) of every batch that a GPU was at, or of those with this first id."""
        path = self.folder / "log"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        rows = [(gpu, int(process), int(frame), int(count)) for gpu, process, frame, count in lines]
        return [row for row in rows if first in (None, row[2])]
