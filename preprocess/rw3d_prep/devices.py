"""`--gpus 0,2`: one process per GPU, each running `run_on_gpu` over batches that it asks for one by one.

A process has at most three batches in its hands: one decoded, one on its GPU, one being written. When it dies, they go
back and are tried once more, each alone in a process of its own, so that the one to blame takes no other with it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rw3d_common.errors import UserError
from rw3d_common.log import log
from rw3d_prep.batching import Batch
from rw3d_prep.config import PrepConfig
from rw3d_prep.gpu_pipeline import Scene, run_on_gpu
from rw3d_prep.reconstruct.base import GpuBackend
from rw3d_prep.workers import GRACE_SECONDS, SPAWN, done, failed, portable, start_worker, stop_processes

MOST_DEATHS = 3  # in succession, without a scene: then the GPU is left alone


def parse_gpus(text: str) -> tuple[int, ...]:
    """Read "0,2".

    Raises:
        UserError: anything but different numbers, or a GPU that CUDA_VISIBLE_DEVICES hides.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words) or len(set(map(int, words))) < len(words):
        raise UserError(f"--gpus {text}: give different numbers of GPUs (`nvidia-smi -L` lists them), for example 0,2")
    gpus = tuple(map(int, words))
    visible = _visible()
    if visible is not None and max(gpus) >= len(visible):
        raise UserError(
            f"--gpus {text}: CUDA_VISIBLE_DEVICES={','.join(visible)} leaves {len(visible)} GPUs, which are counted "
            f"from 0; choose among {', '.join(map(str, range(len(visible)))) or 'none'}"
        )
    return gpus


def _visible() -> list[str] | None:
    """What a scheduler has given to this job; None when nothing is hidden."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if names is None else [name for name in names.split(",") if name]


def run_on_gpus(
    batches: Sequence[Batch],
    backend: GpuBackend,
    config: PrepConfig,
    root: Path,
    out: Path,
    workers: int,
    gpus: Sequence[int],
    on_step: Callable[[], object],
) -> Generator[Scene]:
    """Yield (batch, future of its counts) as scenes are published or fail; `on_step` is called for every view.

    The GPUs share `workers` processes that finish views. When this generator is closed early, after an exception or a
    signal, no process stays.

    Raises:
        UserError: the backend cannot run on one of the GPUs.
    """
    arguments = (backend, config, root, out, max(workers // len(gpus), 1))
    team = _Team(batches, gpus, arguments, on_step)
    try:
        yield from team.run()
    finally:
        team.stop()


@dataclass
class _Worker:
    """The process of a GPU, with the batches in its hands by name."""

    gpu: int
    process: BaseProcess
    held: dict[str, Batch] = field(default_factory=dict)
    has_asked: bool = False


class _Team:
    """In the parent: who has what, and what is left to do."""

    def __init__(
        self, batches: Sequence[Batch], gpus: Sequence[int], arguments: tuple[Any, ...], on_step: Callable[[], object]
    ) -> None:
        self.todo, self.gpus, self.arguments, self.on_step = deque(batches), gpus, arguments, on_step
        self.workers: dict[Connection, _Worker] = {}
        self.suspects: set[str] = set()  # were in the hands of a process that died
        self.deaths: Counter[int] = Counter()  # of a GPU's processes, since its last scene
        self.steps_left = sum(len(batch.frames) for batch in batches)  # what is tried again counts once

    def run(self) -> Iterator[Scene]:
        self._start_idle()
        while self.workers:
            for connection in wait(list(self.workers)):
                assert isinstance(connection, Connection)
                try:
                    message = connection.recv()
                except (EOFError, OSError):  # OSError: killed within a message
                    yield from self._gone(connection)
                else:
                    yield from self._answer(connection, *message)
            self._start_idle()
        for batch in self.todo:
            yield batch, failed(RuntimeError("no GPU is left: the processes of each have died; run again"))

    def stop(self) -> None:
        stop_processes([worker.process for worker in self.workers.values()], 2 * GRACE_SECONDS)  # they have workers too
        for connection in self.workers:
            connection.close()

    def _start_idle(self) -> None:
        """Start a process on every free GPU for which there is a batch that no other is about to ask for."""
        busy = {worker.gpu for worker in self.workers.values()}
        expected = sum(not worker.has_asked for worker in self.workers.values())
        idle = [gpu for gpu in self.gpus if gpu not in busy and self.deaths[gpu] < MOST_DEATHS]
        for gpu in idle[: max(len(self.todo) - expected, 0)]:
            ours, theirs = SPAWN.Pipe()
            with theirs:
                self.workers[ours] = _Worker(gpu, start_worker(_work, theirs, gpu, *self.arguments))

    def _answer(self, connection: Connection, what: str, *values: Any) -> Iterator[Scene]:
        worker = self.workers[connection]
        match what:
            case "take":
                self._give(connection, worker)
            case "halves":
                name, halves = values
                del worker.held[name]
                self.todo.extendleft(reversed(halves))
            case "step" if self.steps_left:
                self.steps_left -= 1
                self.on_step()
            case "log":
                level, text = values
                log.log(level, f"GPU {worker.gpu}: {text}")
            case "scene":
                name, future = values[0], done(values[1])
                self.deaths[worker.gpu] = 0
                yield worker.held.pop(name), future
            case "failed":
                yield worker.held.pop(values[0]), failed(values[1])
            case "broken":
                raise values[0]

    def _give(self, connection: Connection, worker: _Worker) -> None:
        worker.has_asked = True
        batch = self._next_for(worker)
        if batch is not None:
            worker.held[batch.name] = batch
        with suppress(OSError):  # it has died since, which `run` finds out next
            connection.send(batch)

    def _next_for(self, worker: _Worker) -> Batch | None:
        """The next batch; but one that is suspected of having killed a process shares its own with no other."""
        if not self.todo or (worker.held and self.suspects & {*worker.held, self.todo[0].name}):
            return None
        return self.todo.popleft()

    def _gone(self, connection: Connection) -> Iterator[Scene]:
        """A process has ended: what it still held is tried once more, or has failed."""
        worker = self.workers.pop(connection)
        connection.close()
        worker.process.join()
        if not worker.held and not worker.process.exitcode:
            return
        self.deaths[worker.gpu] += 1
        log.warning(f"GPU {worker.gpu}: its process died ({_cause(worker.process)}) with {len(worker.held)} batches")
        if self.deaths[worker.gpu] == MOST_DEATHS:
            log.error(f"GPU {worker.gpu}: {MOST_DEATHS} processes died on it one after the other; it is left alone")
        for name, batch in worker.held.items():
            if name in self.suspects:
                sentence = (
                    f"two processes died while they had this batch ({_cause(worker.process)}), most often for lack of "
                    "memory; run again with fewer --workers or a smaller --batch-size"
                )
                yield batch, failed(RuntimeError(sentence))
            else:
                self.suspects.add(name)
                self.todo.append(batch)


def _cause(process: BaseProcess) -> str:
    code = process.exitcode or 0
    return f"signal {-code}" if code < 0 else f"exit code {code}"


class _Parent:
    """In the process of a GPU: the parent, as a source of batches and a receiver of news."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def tell(self, what: str, *values: Any) -> None:
        with self._lock:  # the writer's thread tells of steps
            self._connection.send((what, *values))

    def take(self) -> Batch | None:
        self.tell("take")
        batch: Batch | None = self._connection.recv()
        return batch

    def replace(self, batch: Batch, halves: tuple[Batch, Batch]) -> None:
        self.tell("halves", batch.name, halves)


class _LogToParent(logging.Handler):
    def __init__(self, parent: _Parent) -> None:
        super().__init__()
        self.parent = parent

    def emit(self, record: logging.LogRecord) -> None:
        self.parent.tell("log", record.levelno, record.getMessage())


def _work(
    connection: Connection, gpu: int, backend: GpuBackend, config: PrepConfig, root: Path, out: Path, workers: int
) -> None:
    """The process of a GPU: makes scenes from what it is given, until it is given nothing."""
    visible = _visible()
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as nvidia-smi counts
    os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu) if visible is None else visible[gpu]
    parent = _Parent(connection)
    log.handlers[:] = [_LogToParent(parent)]
    log.setLevel(logging.INFO)
    try:
        backend.require()
        with closing(run_on_gpu(parent, backend, config, root, out, workers, lambda: parent.tell("step"))) as scenes:
            for batch, future in scenes:
                error = future.exception()
                if isinstance(error, Exception):
                    parent.tell("failed", batch.name, portable(error))
                else:
                    parent.tell("scene", batch.name, future.result())
    except UserError as error:
        parent.tell("broken", UserError(f"GPU {gpu}: {error}"))
    except Exception as error:  # noqa: BLE001 - raised again by the parent
        parent.tell("broken", portable(error))
