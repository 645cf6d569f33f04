"""Where the time of a GPU run goes, per batch for metrics.jsonl and in one line at its end."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rw3d_common.log import log
from rw3d_prep.reconstruct import gpu_memory

STAGES = ("input", "gpu", "output", "finish", "write")


class Times:
    """Seconds of one batch.

    `input`: the GPU waits for decoded images; `gpu`: the model, with the copies to and from the GPU; `output`: the GPU
    waits because the batch before is not yet written; `finish`: in worker processes, added up; `write`: the writer,
    which for `stalled` of it waits for finished views.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.views = 0
        self.span = 0.0  # since the GPU ended the batch before
        self.gpu_peak = 0

    @contextmanager
    def measure(self, what: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - started


class RunTimes:
    """Adds up what the batches of a run took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.views = 0
        self.start()

    def start(self) -> None:
        """Start the clock: the model is loaded."""
        self.started = self.last = time.perf_counter()

    def inferred(self, times: Times, views: int) -> None:
        """Note that the GPU is done with a batch of so many views."""
        now = time.perf_counter()
        times.views, times.span, times.gpu_peak = views, now - self.last, gpu_memory.take_peak()
        self.last = now

    def written(self, times: Times) -> dict[str, Any]:
        """Note that a scene is published; returns the line of metrics.jsonl."""
        times.seconds["write"] -= times.seconds["stalled"]
        for what, seconds in times.seconds.items():
            self.seconds[what] += seconds
        self.views += times.views
        return {
            **{f"{what}_seconds": round(times.seconds[what], 3) for what in STAGES},
            "views_per_second": round(times.views / times.span, 3),
            "gpu_busy": round(times.seconds["gpu"] / times.span, 3),
            "gpu_peak_bytes": times.gpu_peak,
        }

    def log(self, workers: int) -> None:
        """Say where the time went."""
        wall = time.perf_counter() - self.started
        images, gpu, writer, finish, write = (self.seconds[what] for what in STAGES)
        log.info(
            f"{self.views} views in {wall:.1f} s, {self.views / wall:.2f} per second: the model was at work for "
            f"{gpu:.1f} s ({gpu / wall:.0%}), waited {images:.1f} s for images and {writer:.1f} s for the writer; beside it, "
            f"finishing took {finish:.1f} s in {workers} workers, writing {write:.1f} s"
        )
