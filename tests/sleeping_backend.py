"""A backend that sleeps where a real one would keep a GPU busy. It lies in a module of its own so that worker processes
can import it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rw3d_common.errors import UserError
from rw3d_common.images import image_size, read_image
from rw3d_prep import batch_scene, gpu_pipeline
from rw3d_prep.batching import BatchConfig
from rw3d_prep.config import PrepConfig
from rw3d_prep.datasets import DatasetConfig
from rw3d_prep.frames import Frame
from rw3d_prep.outcome import Outcome
from rw3d_prep.pipeline import reconstruct
from rw3d_prep.reconstruct.base import RawView, ViewGeometry
from rw3d_prep.reconstruct.mapanything import MapAnythingConfig
from rw3d_prep.reconstruct.pixel_maps import pixel_map_for


class OutOfMemoryError(RuntimeError):
    """Bears the name of torch's."""


@dataclass
class SleepingBackend:
    """A `GpuBackend` without a GPU: `infer` sleeps `gpu` seconds per batch, `finish` works for `finish_seconds`.

    More than `fits` frames at once run out of memory. `poison` frame ids fail in `finish` with a bug; a worker that
    finishes a frame of `deadly` kills itself, once if `scar` names a file.
    """

    gpu: float = 0.0
    finish_seconds: float = 0.0
    fits: int = 1000
    poison: tuple[int, ...] = ()
    deadly: tuple[int, ...] = ()
    scar: Path | None = None
    needs: tuple[str, ...] = ()
    events: list[tuple[str, int, int]] = field(default_factory=list)  # what, first frame id, frames

    def identity(self) -> dict[str, str]:
        return {"name": "sleeping"}

    def require(self) -> None:
        """Nothing is needed."""

    def load_model(self) -> None:
        """There is none."""

    def reconstruct(self, frames: Sequence[Frame], world_offset: np.ndarray) -> Iterator[ViewGeometry]:
        for frame, raw in zip(frames, self.infer(frames, self.load(frames)), strict=True):
            yield self.finish(frame, raw)

    def load(self, frames: Sequence[Frame]) -> list[np.ndarray]:
        self.events.append(("load", frames[0].id, len(frames)))
        return [read_image(frame.image) for frame in frames]

    def infer(self, frames: Sequence[Frame], loaded: list[np.ndarray]) -> Iterator[RawView]:
        self.events.append(("infer", frames[0].id, len(frames)))
        if len(frames) > self.fits:
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB and so on, " + "for long " * 40)
        time.sleep(self.gpu)
        for number, image in enumerate(loaded):
            if number == 1:
                self.events.append(("copy", frames[0].id, len(frames)))
            height, width = image.shape[:2]
            depth = 1 + image[..., 0].astype(np.float32) / 100
            points = np.stack([depth, depth * 2, depth], axis=-1)
            yield RawView(
                (height, width), points, depth, depth, depth > 1.2, np.eye(3, dtype="f4"), np.eye(4, dtype="f4")
            )

    def finish(self, frame: Frame, raw: RawView) -> ViewGeometry:
        if frame.id in self.deadly and not (self.scar and self.scar.exists()):
            if self.scar:
                self.scar.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if frame.id in self.poison:
            raise ZeroDivisionError("poisoned")
        time.sleep(self.finish_seconds)
        if image_size(frame.image) != raw.image_size:
            raise UserError(f"{frame.image}: finished with another frame's result")
        pixel_map = pixel_map_for(raw.image_size, raw.image_size)
        return ViewGeometry(raw.points, raw.confidence, raw.mask, np.eye(3), np.eye(4), pixel_map)


def sleeping_config(size: int = 4, min_size: int = 1) -> PrepConfig:
    """A configuration for KITTI-360 trees; its backend is to be replaced."""
    dataset = DatasetConfig(name="kitti360", labels="scribble")
    return PrepConfig(dataset=dataset, batching=BatchConfig(size=size, min_size=min_size), backend=MapAnythingConfig())


@contextmanager
def _threads(workers: int) -> Iterator[Callable[..., Future[Any]]]:
    with ThreadPoolExecutor(workers) as pool:
        yield pool.submit


def run_sleeping(
    monkeypatch: pytest.MonkeyPatch,
    backend: SleepingBackend,
    root: Path,
    out: Path,
    size: int = 4,
    min_size: int = 1,
    workers: int = 1,
    retry_failed: bool = False,
    processes: bool = False,
) -> Outcome:
    """Reconstruct the KITTI-360 tree `root` with `backend` in MapAnything's place.

    Without `processes` the workers are threads, which saves a second of imports per run.
    """
    if not processes:
        monkeypatch.setattr(gpu_pipeline, "worker_pool", _threads)
    monkeypatch.setattr(batch_scene, "backend_of", lambda _: backend)
    return reconstruct(sleeping_config(size, min_size), root, out, workers, retry_failed)
