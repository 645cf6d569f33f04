"""Keep one GPU busy: the next batch is decoded, and the one before finished and written, while it works.

    thread `load`      decodes and resizes the images of batch k + 1, on threads of its own
    main thread        runs the model on batch k and copies its views off the GPU one by one
    worker processes   find edges and validity of those views and fuse them
    thread `write`     appends the views of batch k − 1 in order and publishes its scene

Beside the batch on the GPU, two are in the host's memory: one decoded, and one being finished and written. Results
leave the GPU only when those of the batch before are published. An exception of any stage fails the batch that it
happened to, and the others go on.
"""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from rw3d_common.errors import UserError
from rw3d_common.log import log
from rw3d_prep.batch_scene import FinishedView, fuse_frame, write_scene
from rw3d_prep.batching import Batch
from rw3d_prep.config import PrepConfig
from rw3d_prep.frames import Frame
from rw3d_prep.gpu_times import RunTimes, Times
from rw3d_prep.reconstruct import gpu_memory
from rw3d_prep.reconstruct.base import GpuBackend, RawView
from rw3d_prep.workers import explained, failed, worker_pool

Scene = tuple[Batch, Future[dict[str, Any]]]
Loading = tuple[Batch, Future[Any]]
Finishing = deque[Future[tuple[FinishedView, float]]]


class BatchSource(Protocol):
    """Where a run takes its batches from, one by one."""

    def take(self) -> Batch | None:
        """The next batch; None when there is none, at least for now."""
        ...

    def replace(self, batch: Batch, halves: tuple[Batch, Batch]) -> None:
        """Put the halves of a batch that was taken next in line."""
        ...


class BatchList:
    """A source whose batches are known."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._todo = deque(batches)

    def take(self) -> Batch | None:
        return self._todo.popleft() if self._todo else None

    def replace(self, batch: Batch, halves: tuple[Batch, Batch]) -> None:
        self._todo.extendleft(reversed(halves))


def run_on_gpu(
    source: BatchSource,
    backend: GpuBackend,
    config: PrepConfig,
    root: Path,
    out: Path,
    workers: int,
    on_step: Callable[[], object],
) -> Generator[Scene]:
    """Yield (batch, future of its counts) as scenes are published or fail; `on_step` is called for every view.

    A batch that runs out of GPU memory is replaced by its halves, as long as these have `batching.min_size` frames.
    When this generator is closed early, after an exception or a signal, nothing unfinished stays.
    """
    with ExitStack() as stack:
        stages = _Stages(backend, config, root, out, workers, on_step, stack)
        yield from stages.run(source)
        stages.times.log(workers)


def halves_of(batch: Batch, error: Exception, smallest: int) -> tuple[Batch, Batch]:
    """The halves of a batch that does not fit into GPU memory, as `error` says.

    Raises:
        UserError: they would have fewer than `smallest` frames.
    """
    size, halves = len(batch.frames), batch.halves()
    if halves is None or min(len(half.frames) for half in halves) < smallest:
        raise UserError(
            f"{batch.name}: {size} images do not fit into GPU memory ({gpu_memory.brief(error)}) and --min-batch "
            f"{smallest} forbids halving them; try a lower --min-batch, or --set backend.minibatch_size=1"
        )
    most = max(len(half.frames) for half in halves)
    log.warning(
        f"{batch.name}: {size} images do not fit into GPU memory and become two scenes; "
        f"--batch-size {most} would save such attempts"
    )
    return halves


def finish_view(
    backend: GpuBackend, config: PrepConfig, frame: Frame, raw: RawView, with_truth: bool
) -> tuple[FinishedView, float]:
    """In a worker process: what is left to do with a view from the GPU before it is written; and its seconds."""
    started = time.perf_counter()
    geometry = backend.finish(frame, raw)
    fused = fuse_frame(frame, geometry, config, with_truth)
    return (geometry, fused), time.perf_counter() - started


class _Stages:
    """The threads and processes of one run, and what is under way in them."""

    def __init__(
        self,
        backend: GpuBackend,
        config: PrepConfig,
        root: Path,
        out: Path,
        workers: int,
        on_step: Callable[[], object],
        stack: ExitStack,
    ) -> None:
        self.backend, self.config, self.root, self.out = backend, config, root, out
        self.workers, self.on_step, self.stack = workers, on_step, stack
        self.times = RunTimes()
        self.writing: deque[Scene] = deque()
        # Left in reverse order: workers first, because the writer waits for them.
        self.writer = ThreadPoolExecutor(1, "write")
        stack.callback(self.writer.shutdown, cancel_futures=True)
        self.loader = ThreadPoolExecutor(1, "load")
        stack.callback(self.loader.shutdown, cancel_futures=True)
        self.submit = stack.enter_context(worker_pool(workers))
        for _ in range(workers):
            self.submit(_warm_up)

    def run(self, source: BatchSource) -> Generator[Scene]:
        ahead = self._load_next(source)
        self.backend.load_model()
        self.times.start()
        while (loading := ahead or self._load_next(source)) is not None:
            batch, images = loading
            ahead = self._load_next(source)
            error = self._infer(batch, images)
            if error is not None and gpu_memory.is_exhausted(error):
                error = self._halve(batch, error, source)
            if error is not None:
                yield batch, failed(error)
            while self.writing and self.writing[0][1].done():
                yield self._written()
        while self.writing:
            yield self._written()

    def _load_next(self, source: BatchSource) -> Loading | None:
        batch = source.take()
        return None if batch is None else (batch, self.loader.submit(self.backend.load, batch.frames))

    def _infer(self, batch: Batch, loading: Future[Any]) -> Exception | None:
        """Run the model and hand its views to workers and writer; returns the error if that fails."""
        times = Times()
        views: Finishing = deque()
        try:
            with times.measure("input"):
                loaded = loading.result()
            with times.measure("gpu"):
                for frame, raw in zip(batch.frames, self.backend.infer(batch.frames, loaded), strict=True):
                    if not views:  # the model is through
                        times.seconds["gpu"] -= self._wait_for_writer(times)
                    views.append(self._finish(frame, raw, batch.with_truth))
        except Exception as error:  # noqa: BLE001 - returned to be recorded
            for view in views:
                view.cancel()
            traceback.clear_frames(error.__traceback__)  # its variables keep GPU memory
            return error
        self.times.inferred(times, len(batch.frames))
        self.writing.append((batch, self.writer.submit(self._write, batch, views, times)))
        return None

    def _wait_for_writer(self, times: Times) -> float:
        """Wait until every earlier scene is published or has failed; returns the seconds."""
        before = times.seconds["output"]
        with times.measure("output"):
            wait([written for _, written in self.writing])
        return times.seconds["output"] - before

    def _finish(self, frame: Frame, raw: RawView, with_truth: bool) -> Future[tuple[FinishedView, float]]:
        work = (finish_view, self.backend, self.config, frame, raw, with_truth)
        try:
            return self.submit(*work)
        except BrokenProcessPool:  # a worker was killed: what it had fails, what comes gets new ones
            self.submit = self.stack.enter_context(worker_pool(self.workers))
            return self.submit(*work)

    def _halve(self, batch: Batch, error: Exception, source: BatchSource) -> UserError | None:
        """Put the halves of a batch that does not fit next in line; returns an error if they would be too small."""
        gpu_memory.release()
        try:
            source.replace(batch, halves_of(batch, error, self.config.batching.min_size))
        except UserError as too_small:
            return too_small
        return None

    def _write(self, batch: Batch, views: Finishing, times: Times) -> dict[str, Any]:
        """In the writer's thread: the scene of a batch, from views that are still being finished."""
        try:
            with times.measure("write"):
                arriving = self._arriving(views, times)
                counts = write_scene(batch, self.config, self.root, self.out, self.backend, arriving)
        finally:
            for view in views:
                view.cancel()
        return {**counts, **self.times.written(times)}

    def _arriving(self, views: Finishing, times: Times) -> Iterator[FinishedView]:
        while views:
            with times.measure("stalled"):
                finished, seconds = views.popleft().result()
            times.seconds["finish"] += seconds
            yield finished
            self.on_step()

    def _written(self) -> Scene:
        batch, written = self.writing.popleft()
        return batch, explained(written)


def _warm_up() -> None:
    """Have a worker import this module, while the model loads and the first images are decoded."""
