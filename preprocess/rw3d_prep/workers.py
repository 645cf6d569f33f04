"""Run a function over many arguments in worker processes that die with their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from rw3d_common.errors import UserError

SPAWN = multiprocessing.get_context("spawn")  # OpenCV's and Open3D's threads do not survive a fork
GRACE_SECONDS = 10.0  # for a stopped worker to remove its temporary store
_on_step: list[Callable[[], object]] = []  # of this process: what `step` calls


def step() -> None:
    """Tell whoever started the work that one unit of it, such as a view, is done."""
    for call in _on_step:
        call()


def run_in_processes(
    function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], workers: int, on_step: Callable[[], object]
) -> Generator[tuple[int, Future[Any]]]:
    """Yield (index, finished future) as calls finish; with one worker everything runs in this process.

    `on_step` is called in this process for every `step()` in a worker. When this generator is closed early, after an
    exception or a signal, the workers are stopped before it returns.
    """
    if workers <= 1:
        _on_step[:] = [on_step]
        yield from ((index, _call_here(function, args)) for index, args in enumerate(arguments))
        return
    with worker_pool(workers, on_step) as submit:
        futures = {submit(function, *args): index for index, args in enumerate(arguments)}
        for future in as_completed(futures):
            yield futures[future], explained(future)


@contextmanager
def worker_pool(workers: int, on_step: Callable[[], object] = lambda: None) -> Iterator[Callable[..., Future[Any]]]:
    """A function that hands (function, *arguments) to one of so many worker processes and returns the future.

    When the block is left by an exception or a signal, the workers are stopped before it is through.
    """
    receiver, sender = SPAWN.Pipe(duplex=False)
    threading.Thread(target=_relay_steps, args=(receiver, on_step), daemon=True).start()
    with _interrupts_blocked():  # its semaphores start multiprocessing's helper
        pool = ProcessPoolExecutor(workers, mp_context=SPAWN, initializer=_start_worker, initargs=(sender,))

    def submit(function: Callable[..., Any], *args: Any) -> Future[Any]:
        with _interrupts_blocked():
            return pool.submit(_call, function, args)

    finished = False
    try:
        yield submit
        finished = True
    finally:
        if not finished:
            _stop_workers(pool)
        pool.shutdown(wait=True, cancel_futures=True)
        sender.close()


def start_worker(function: Callable[..., Any], *args: Any) -> BaseProcess:
    """A process of its own that makes one call; like a pool's it stops cleanly on SIGTERM and dies with this one."""
    process = SPAWN.Process(target=_serve, args=(function, args))
    with _interrupts_blocked():
        process.start()
    return process


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Ctrl-C, and a scheduler's SIGUSR1, are for the parent alone: workers that start in here inherit the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # for multiprocessing's helper as well
    try:
        resource_tracker.ensure_running()  # starting it later would lift the block of SIGINT
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _stop_workers(pool: ProcessPoolExecutor) -> None:
    """Let running calls clean up after themselves, and kill what has not ended in time."""
    pool.shutdown(wait=False, cancel_futures=True)
    stop_processes(multiprocessing.active_children())


def stop_processes(children: Sequence[BaseProcess], grace_seconds: float = GRACE_SECONDS) -> None:
    """Send SIGTERM, and SIGKILL to those that have not ended after so many seconds."""
    for child in children:
        child.terminate()
    deadline = time.monotonic() + grace_seconds
    for child in children:
        child.join(max(deadline - time.monotonic(), 0))
        if child.is_alive():
            child.kill()


def _call_here(function: Callable[..., Any], args: tuple[Any, ...]) -> Future[Any]:
    try:
        return done(function(*args))
    except Exception as error:  # noqa: BLE001 - handed to the caller through the future, as a pool would
        return failed(error)


def explained(future: Future[Any]) -> Future[Any]:
    """The future, with a dead worker's error put into words."""
    if not isinstance(future.exception(), BrokenProcessPool):
        return future
    return failed(
        RuntimeError(
            "a worker process was killed, most often for lack of memory; run again, with fewer --workers if it recurs"
        )
    )


def failed(error: Exception) -> Future[Any]:
    """A future that has failed."""
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def done(result: Any) -> Future[Any]:
    """A future that has this result."""
    future: Future[Any] = Future()
    future.set_result(result)
    return future


def portable(error: Exception) -> Exception:
    """The error for another process: those of libraries may not unpickle there, so they become text with a traceback."""
    if isinstance(error, UserError):
        return error
    told = RuntimeError(f"{type(error).__name__}: {error}")
    told.add_note("".join(traceback.format_exception(error)))
    return told


def _relay_steps(receiver: Connection, on_step: Callable[[], object]) -> None:
    """Call `on_step` for every byte from the workers, until the last of them and the parent have closed the pipe."""
    with suppress(EOFError), receiver:
        while receiver.recv_bytes():
            on_step()


_leaving = False  # this worker was told to end
_calling = False  # it is in a call


def _call(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    global _calling
    if _leaving:  # a pool that shuts down still hands out what it has queued
        raise SystemExit
    _calling = True
    try:
        return function(*args)
    finally:
        _calling = False


def _leave(_signum: int, _frame: Any) -> None:
    """SIGTERM in a worker: unwind the running call, so that it removes its temporary store.

    Between calls it goes on: a result that is only half sent would keep the parent waiting for the rest for ever, and
    an idle worker is told to end by its pool.
    """
    global _leaving
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _leaving = True
    if _calling:
        forget_interrupted_calls()
        raise SystemExit


def forget_interrupted_calls() -> None:
    """Keep Python from warning of the coroutine that a signal interrupted in zarr: its store is being removed."""
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited")


def _serve(function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    _follow_parent()
    _call(function, args)


def _start_worker(sender: Connection) -> None:
    """Report steps, and follow the parent."""
    _on_step[:] = [lambda: sender.send_bytes(b"1")]  # shorter than PIPE_BUF: writers cannot interleave
    _follow_parent()


def _follow_parent() -> None:
    """Leave Ctrl-C and SIGUSR1 to the parent, clean up on SIGTERM, and exit as soon as the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
