"""Run a function over many arguments in worker processes that die with their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

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
    context = multiprocessing.get_context("spawn")  # OpenCV's and Open3D's threads do not survive a fork
    receiver, sender = context.Pipe(duplex=False)
    threading.Thread(target=_relay_steps, args=(receiver, on_step), daemon=True).start()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(sender,))
    finished = False
    try:
        with _interrupts_blocked():
            futures = {pool.submit(_call, function, args): index for index, args in enumerate(arguments)}
        for future in as_completed(futures):
            yield futures[future], _explained(future)
        finished = True
    finally:
        if not finished:
            _stop_workers(pool)
        pool.shutdown(wait=True, cancel_futures=True)
        sender.close()


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Ctrl-C is for the parent alone: workers that start in here inherit the block."""
    resource_tracker.ensure_running()  # starting it later would lift the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _stop_workers(pool: ProcessPoolExecutor) -> None:
    """Let running calls clean up after themselves, and kill what has not ended in time."""
    pool.shutdown(wait=False, cancel_futures=True)
    children = multiprocessing.active_children()
    for child in children:
        child.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for child in children:
        child.join(max(deadline - time.monotonic(), 0))
        if child.is_alive():
            child.kill()


def _call_here(function: Callable[..., Any], args: tuple[Any, ...]) -> Future[Any]:
    future: Future[Any] = Future()
    try:
        future.set_result(function(*args))
    except Exception as error:  # noqa: BLE001 - handed to the caller through the future, as a pool would
        future.set_exception(error)
    return future


def _explained(future: Future[Any]) -> Future[Any]:
    """The future, with a dead worker's error put into words."""
    if not isinstance(future.exception(), BrokenProcessPool):
        return future
    told: Future[Any] = Future()
    told.set_exception(
        RuntimeError(
            "a worker process was killed, most often for lack of memory; run again, with fewer --workers if it recurs"
        )
    )
    return told


def _relay_steps(receiver: Connection, on_step: Callable[[], object]) -> None:
    """Call `on_step` for every byte from the workers, until the last of them and the parent have closed the pipe."""
    with suppress(EOFError), receiver:
        while receiver.recv_bytes():
            on_step()


_leaving = False  # this worker was told to end


def _call(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    if _leaving:  # a pool that shuts down still hands out what it has queued
        raise SystemExit
    return function(*args)


def _leave(_signum: int, _frame: Any) -> None:
    """SIGTERM in a worker: unwind the running call, so that it removes its temporary store."""
    global _leaving
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _leaving = True
    forget_interrupted_calls()
    raise SystemExit


def forget_interrupted_calls() -> None:
    """Keep Python from warning of the coroutine that a signal interrupted in zarr: its store is being removed."""
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited")


def _start_worker(sender: Connection) -> None:
    """Leave Ctrl-C to the parent, report steps, clean up on SIGTERM, and exit as soon as the parent is gone."""
    _on_step[:] = [lambda: sender.send_bytes(b"1")]  # shorter than PIPE_BUF: writers cannot interleave
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
