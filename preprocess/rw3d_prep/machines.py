"""Who makes the scenes of a run: this machine's cores, one of its GPUs, several of them, or a Dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rw3d_common.errors import UserError
from rw3d_prep import batch_scene
from rw3d_prep.batching import Batch
from rw3d_prep.cluster import run_on_cluster
from rw3d_prep.config import PrepConfig
from rw3d_prep.devices import run_on_gpus
from rw3d_prep.gpu_pipeline import BatchList, run_on_gpu
from rw3d_prep.reconstruct.base import GpuBackend
from rw3d_prep.work import Work, make_scene
from rw3d_prep.workers import run_in_processes


@dataclass(frozen=True)
class Machines:
    """What scenes are made with: `workers` processes, `gpus` of this machine, or the cluster of a `scheduler`."""

    config: PrepConfig
    root: Path
    out: Path
    workers: int
    gpus: Sequence[int] = ()
    scheduler: str | Path | None = None

    def require(self) -> None:
        """Check what can be checked from here before the first scene.

        Raises:
            UserError: GPUs for a backend that uses none, or something that the backend needs is not on this machine.
        """
        backend = batch_scene.backend_of(self.config.backend)
        if self.gpus and not isinstance(backend, GpuBackend):
            raise UserError(
                f"--gpus {','.join(map(str, self.gpus))}: the {self.config.backend.kind} backend works without a GPU; "
                "use --workers, or choose --backend mapanything"
            )
        if not self.scheduler:  # else it is asked of the cluster's workers
            backend.require()

    def make_scenes(
        self, todo: Sequence[Work], on_step: Callable[[], object]
    ) -> Generator[tuple[Work, Future[dict[str, Any]]]]:
        """Yield what has been made, or has failed, as it happens; `on_step` is called for every view.

        Raises:
            UserError: a GPU or a cluster that cannot do the work.
        """
        backend = batch_scene.backend_of(self.config.backend)
        task = (self.config, self.root, self.out)
        if self.scheduler:
            needs = {"GPU": 1.0} if isinstance(backend, GpuBackend) else {}
            yield from run_on_cluster(todo, *task, self.scheduler, needs, on_step)
        elif isinstance(backend, GpuBackend):
            batches = [work for work in todo if isinstance(work, Batch)]  # clouds are measured: no GPU makes them
            if self.gpus:
                yield from run_on_gpus(batches, backend, *task, self.workers, self.gpus, on_step)
            else:
                yield from run_on_gpu(BatchList(batches), backend, *task, self.workers, on_step)
        else:
            arguments = [(work, *task) for work in todo]
            with closing(run_in_processes(make_scene, arguments, min(self.workers, len(todo)), on_step)) as finished:
                for index, future in finished:
                    yield todo[index], future
