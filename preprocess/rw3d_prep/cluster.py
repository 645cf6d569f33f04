"""`--scheduler`: scenes made by the workers of a running Dask cluster, one task per scene.

A task is given a batch of paths and gives back counts; images and points go between the worker and the shared file
system. Only as many tasks are submitted as can run at once: Dask blames the death of a worker on every task that was
sent to it, also on those that only waited.
"""

from __future__ import annotations

import fcntl
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rw3d_common.errors import UserError
from rw3d_common.log import log
from rw3d_prep import batch_scene
from rw3d_prep.batching import Batch
from rw3d_prep.config import PrepConfig
from rw3d_prep.gpu_pipeline import halves_of
from rw3d_prep.reconstruct import BackendConfig, gpu_memory
from rw3d_prep.work import Work, make_scene, steps_of
from rw3d_prep.workers import done, failed, portable
from rw3d_prep.write import Lock

Needs = Mapping[str, float]  # Dask's abstract resources that a task takes while it runs
LOOK_AGAIN_SECONDS = 5.0  # for workers that have come since
CONNECT_SECONDS = 20


def run_on_cluster(
    todo: Sequence[Work],
    config: PrepConfig,
    root: Path,
    out: Path,
    scheduler: str | Path,
    needs: Needs,
    on_step: Callable[[], object],
) -> Generator[tuple[Work, Future[dict[str, Any]]]]:
    """Yield (work, future of its counts) as scenes are published or fail; `on_step` is called for every view of them.

    `scheduler` is an address or the path of a scheduler file; `root` and `out` are absolute and the same on every
    machine. A killed worker's task goes to others, as often as the scheduler allows (3 times by default). When this
    generator is closed early, waiting tasks are cancelled; a worker ends the scene that it is at.

    Raises:
        UserError: dask is not installed, no scheduler answers, or the workers cannot do this work; nothing is submitted.
    """
    with _client(scheduler) as client:
        _check(client, config.backend, root, out, needs)
        queue, running = deque(todo), dict[Any, Work]()
        try:
            while queue or running:
                while queue and len(running) < _slots(client, needs):
                    work = queue.popleft()
                    future = client.submit(make_scene_there, work, config, root, out, pure=False, resources=needs)
                    running[future] = work
                for future in _finished(client, running):
                    work = running.pop(future)
                    told = _told(future)
                    error = told.exception()
                    if isinstance(error, OutOfMemoryError) and isinstance(work, Batch):
                        try:
                            queue.extendleft(reversed(halves_of(work, error, config.batching.min_size)))
                            continue
                        except UserError as too_small:
                            told = failed(too_small)
                    for _ in range(steps_of(work)):
                        on_step()
                    yield work, told
        finally:
            client.cancel(list(running))


class OutOfMemoryError(RuntimeError):
    """A worker's GPU memory is exhausted. Torch's own error cannot be read where torch is not installed."""


def make_scene_there(work: Work, config: PrepConfig, root: Path, out: Path) -> dict[str, Any]:
    """In a worker of the cluster: make the scene, and raise only what the client can read. Returns its counts."""
    try:
        return make_scene(work, config, root, out)
    except Exception as error:  # noqa: BLE001 - raised again
        if not gpu_memory.is_exhausted(error):
            raise portable(error) from None
        message = str(error)
        traceback.clear_frames(error.__traceback__)  # its variables keep GPU memory
    gpu_memory.release()
    raise OutOfMemoryError(message)


@contextmanager
def _client(scheduler: str | Path) -> Iterator[Any]:
    try:
        from dask.distributed import Client
    except ImportError:
        raise UserError("--scheduler needs dask.distributed; pip install 'rw3d[cluster]'") from None
    if isinstance(scheduler, Path) and not scheduler.is_file():
        raise UserError(
            f"--scheduler-file {scheduler}: no such file; start the cluster with "
            f"dask scheduler --scheduler-file {scheduler}"
        )
    where = {"scheduler_file": str(scheduler)} if isinstance(scheduler, Path) else {"address": scheduler}
    try:
        client = Client(**where, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        cause = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"--scheduler {scheduler}: no Dask scheduler answers there ({cause}); take the address "
            "that `dask scheduler` prints, such as tcp://10.0.0.1:8786"
        ) from None
    try:
        yield client
    finally:
        client.close()


def _workers(client: Any) -> dict[str, dict[str, Any]]:
    workers: dict[str, dict[str, Any]] = client.scheduler_info(n_workers=-1)["workers"]
    return workers


def _slots(client: Any, needs: Needs) -> int:
    """How many tasks can run at once; 1 while all workers are being started again."""
    workers = _workers(client).values()
    able = [worker for worker in workers if _has(worker, needs)]
    slots = [
        min([worker["nthreads"], *(int(worker["resources"][name] // count) for name, count in needs.items())])
        for worker in able
    ]
    return max(sum(slots), 1)


def _has(worker: Mapping[str, Any], needs: Needs) -> bool:
    return all(worker["resources"].get(name, 0) >= count for name, count in needs.items())


def _check(client: Any, backend: BackendConfig, root: Path, out: Path, needs: Needs) -> None:
    """Raise UserError unless there are workers, all of which see the data, share the output's locks and can work."""
    workers, address = _workers(client), client.scheduler.address
    able = [name for name, worker in workers.items() if _has(worker, needs)]
    if not able:
        options = " ".join(f"--resources {name}={count:g}" for name, count in needs.items())
        what = (
            f"none of its {len(workers)} workers has the resource {', '.join(needs)}" if workers else "has no workers"
        )
        raise UserError(
            f"--scheduler {address}: {what}; start some with dask worker {address} --nthreads 1 {options}".rstrip()
        )
    lock = Lock(out / "cluster")
    try:
        answers = client.run(look_around, backend, root, lock.path, workers=able, on_error="return")
    finally:
        lock.release()
    for name, answer in answers.items():
        if isinstance(answer, Exception):
            raise UserError(
                f"Dask worker {name}: cannot run rw3d ({type(answer).__name__}: {answer}); install the same version of "
                "rw3d[prep,cluster] there"
            )
        if answer is not None:
            raise UserError(f"Dask worker {name}: {answer}")
    log.info(f"{len(able)} Dask workers of {address} make {_slots(client, needs)} scenes at a time")


def look_around(backend: BackendConfig, root: Path, held: Path) -> str | None:
    """On a worker: what keeps it from working, in one sentence. `held` is a file that the client has locked."""
    if not root.exists() or not held.exists():
        missing = held.parent if root.exists() else root
        return f"does not see {missing}; data and output must lie under the same path on every machine"
    with held.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            return (
                f"locks in {held.parent} do not hold between machines; mount that file system with flock, "
                "or choose another --out"
            )
    try:
        batch_scene.backend_of(backend).require()
    except UserError as error:
        return str(error)
    return None


def _finished(client: Any, running: Mapping[Any, Work]) -> list[Any]:
    """The tasks that have ended; waits for the first, but not for long."""
    from dask.distributed import wait

    try:
        with client.as_current():
            return list(wait(list(running), timeout=LOOK_AGAIN_SECONDS, return_when="FIRST_COMPLETED").done)
    except TimeoutError:
        return []
    except CancelledError:
        raise UserError(
            "the Dask scheduler has dropped this run, because it ended or was restarted; start it and run the same "
            "command again: finished scenes are kept"
        ) from None


def _told(future: Any) -> Future[dict[str, Any]]:
    """The result or error of an ended task, with the deaths of its workers put into words."""
    from dask.distributed import KilledWorker

    error = future.exception()
    if error is None:
        return done(future.result())
    if isinstance(error, KilledWorker):
        sentence = (
            "every Dask worker that had it was killed, most often for lack of memory or by its job's time limit; "
            "see the workers' logs"
        )
        return failed(RuntimeError(sentence))
    return failed(error)
