"""Trains the cells of a comparison, each in a process of its own, several at a time, one per GPU."""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from rw3d_common.errors import UserError, disk_errors
from rw3d_common.log import log
from rw3d_train.compare.cells import LOG, RECIPE, RECORD, Cell, is_finished, record_of, scores_of, write_json
from rw3d_train.compare.scenes import made_by
from rw3d_train.compare.versions import cores, device_name, gpu_number
from rw3d_train.config import save_train_config

POLL = 0.2  # seconds between looks at the running cells
GRACE = 30.0  # seconds that a stopped cell has to end by itself
TAIL = 8  # lines of a failed cell's log that are shown
TRAINER = (sys.executable, "-m", "rw3d_train")


@dataclass(frozen=True)
class Machine:
    """Where cells run: `jobs` at a time, each with a GPU of its own where `gpus` names some, else on `device`."""

    jobs: int = 1
    gpus: tuple[str, ...] = ()
    device: str = "auto"

    @classmethod
    def of(cls, jobs: int | None, gpus: tuple[str, ...], device: str) -> Machine:
        """What the command line says; without `jobs`, one per GPU that is named, or one.

        Raises:
            UserError: trainings that would have to share a GPU.
        """
        import torch

        if len(set(gpus)) < len(gpus):
            raise UserError(f"--gpus {','.join(gpus)}: one of them comes twice; each trains one cell at a time")
        if gpus and (jobs or 1) > len(gpus):
            raise UserError(f"--jobs {jobs}: only {len(gpus)} GPUs are named, and each trains one cell at a time")
        if gpus and device not in ("auto", "cuda"):
            raise UserError(f"--gpus {','.join(gpus)} and --device {device} name different machines; give one of them")
        if (
            not gpus
            and (jobs or 1) > 1
            and (device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()))
        ):
            raise UserError(f"--jobs {jobs}: these trainings would share one GPU; name several, as in --gpus 0,1")
        if gpus and not torch.cuda.is_available():
            raise UserError(
                f"--gpus {','.join(gpus)}: torch finds no CUDA GPU on this machine; leave it out, or give --jobs"
            )
        return cls(jobs or len(gpus) or 1, gpus, device)

    @property
    def own_device(self) -> str:
        """Where this process itself may predict: the first GPU that is named."""
        number = gpu_number(self.gpus[0]) if self.gpus else None
        return self.device if number is None else f"cuda:{number}"

    @property
    def places(self) -> list[str]:
        """The GPU of each job; '' where none is named."""
        return [*self.gpus[: self.jobs]] or [""] * self.jobs

    def environment(self, gpu: str) -> dict[str, str]:
        """The environment of a cell: it sees one GPU, or its share of the cores."""
        if gpu:
            return {**os.environ, "CUDA_VISIBLE_DEVICES": gpu}
        return {"OMP_NUM_THREADS": str(max(cores() // self.jobs, 1)), **os.environ}


@dataclass(frozen=True)
class Failure:
    """A cell whose training failed, and what it said last."""

    cell: Cell
    code: int
    said: str

    def to_json(self) -> dict[str, Any]:
        facts = {"row": self.cell.row, "column": self.cell.column, "seed": self.cell.seed}
        return {**facts, "folder": str(self.cell.folder), "code": self.code, "said": self.said}


@dataclass
class _Job:
    cell: Cell
    gpu: str
    process: subprocess.Popen[bytes]
    record: dict[str, Any]
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


def run_cells(cells: Sequence[Cell], machine: Machine, facts: dict[str, str]) -> list[Failure]:
    """Train what is not finished, and return what failed; the others go on. Safe to kill and to call again.

    A cell that another comparison trains at this moment is waited for.

    Args:
        cells: one per folder.
        machine: how many at a time, and where.
        facts: versions, to be kept beside each cell's scores.
    """
    todo, running, failed = deque(cell for cell in cells if not is_finished(cell)), list[_Job](), list[Failure]()
    free, total, waited = machine.places, len(todo), set[Path]()
    try:
        while todo or running:
            _start_some(todo, running, free, waited, partial(_start, machine=machine, facts=facts))
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                free.append(job.gpu)
                _end(job, failed)
                left = remaining([*todo, *(other.cell for other in running)], cells, machine.jobs)
                done = f"{total - len(todo) - len(running)} of {total} trainings ended"
                log.info(f"{done}, about {left} left" if left else done)
            if todo or running:
                time.sleep(POLL)
    finally:
        _stop(running)
    return failed


def _start_some(
    todo: deque[Cell],
    running: list[_Job],
    free: list[str],
    waited: set[Path],
    start: Callable[[Cell, str], _Job | None],
) -> None:
    """Start cells on free places; those that another process trains go to the end of the queue."""
    for _ in range(len(todo)):
        if not free:
            return
        cell = todo.popleft()
        if is_finished(cell):  # the other process has done it
            continue
        if job := start(cell, free[0]):
            free.pop(0)
            running.append(job)
        else:
            todo.append(cell)
            _say_once(cell, waited)


def _start(cell: Cell, gpu: str, machine: Machine, facts: dict[str, str]) -> _Job | None:
    """Start the training of a cell, from its last checkpoint if it has begun; None: another process trains it.

    The lock is on the log and passes to the cell with it: it outlives us if we are killed, and ends with the cell.
    """
    folder = cell.folder
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOG).open("ab")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        begun = (folder / "config.yaml").is_file()
        save_train_config(cell.config, folder / RECIPE)
        how = ["--resume"] if begun else ["--config", str(folder / RECIPE)]
        device = "cuda" if gpu else machine.device
        arguments = ["run", *how, "--out", str(folder), "--device", device]
        where = machine.environment(gpu)
        record = {
            "identity": cell.identity,
            "finished": False,
            "seconds": record_of(cell).get("seconds", 0.0),
            "command": shlex.join(["rw3d-train", *arguments]),
            "versions": {**facts, "device": device_name(device, gpu, where.get("OMP_NUM_THREADS", "all"))},
            "scenes": list(made_by(Path(str(cell.config.data.stores)))),
        }
        write_json(folder / RECORD, record)
        log.info(f"{'go on with' if begun else 'train'} {cell}{gpu and ' on GPU ' + gpu}: {folder / LOG}")
        process = subprocess.Popen([*TRAINER, *arguments], stdout=file, stderr=file, env=where, start_new_session=True)
    return _Job(cell, gpu, process, record)


def _end(job: _Job, failed: list[Failure]) -> None:
    """Write down how a cell ended."""
    code, folder = job.process.returncode, job.cell.folder
    seconds = job.record["seconds"] + job.seconds
    write_json(folder / RECORD, {**job.record, "finished": code == 0, "seconds": round(seconds, 1)})
    if scores := scores_of(job.cell):
        shown = "  ".join(f"{name} {100 * (one['miou'] or 0):.1f}" for name, one in scores.items())
        log.info(f"done {job.cell} in {duration(seconds)}: mIoU {shown}")
        return
    said = _tail(folder / LOG) if code else "ended without scores: its scenes have no split val with dense labels"
    log.error(f"failed {job.cell} (exit code {code}), see {folder / LOG}:\n{said}")
    failed.append(Failure(job.cell, code, said))


def _tail(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-TAIL:])


def _stop(running: Iterable[_Job]) -> None:
    """End what still runs: each cell goes on from its last checkpoint when the comparison is started again."""
    left = [job for job in running if job.process.poll() is None]
    for job in left:
        job.process.terminate()
    deadline = time.monotonic() + GRACE
    for job in left:
        try:
            job.process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            job.process.kill()
            job.process.wait()
        write_json(job.cell.folder / RECORD, {**job.record, "seconds": round(job.record["seconds"] + job.seconds, 1)})


def _say_once(cell: Cell, said: set[Path]) -> None:
    if cell.folder not in said:
        log.info(f"wait for {cell}: another process trains it, see {cell.folder / LOG}")
        said.add(cell.folder)


def expected_seconds(cell: Cell, timed: Iterable[Cell]) -> float | None:
    """How long a cell takes by what finished ones took per epoch, those of its own method if there are any."""
    rates: dict[str, list[float]] = {}
    for other in timed:
        if (record := record_of(other)).get("finished"):
            rates.setdefault(other.config.method.kind, []).append(record["seconds"] / other.config.run.epochs)
    all_rates = [rate for found in rates.values() for rate in found]
    known = rates.get(cell.config.method.kind, all_rates)
    return median(known) * cell.config.run.epochs if known else None


def remaining(todo: Sequence[Cell], timed: Sequence[Cell], jobs: int) -> str:
    """The time that cells will take, in words; '' where no cell has been timed yet, or none is left."""
    seconds = [expected_seconds(cell, timed) for cell in todo]
    return duration(sum(one or 0 for one in seconds) / jobs) if any(seconds) else ""


def duration(seconds: float) -> str:
    """Seconds in words: 48 s, 12 min, 3.4 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
