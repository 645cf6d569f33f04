"""`rw3d-prep plan`: what a run will cost, before it costs it.

Backends that run here are measured on a few views spread over the data, written to a throw-away store; MapAnything
without its GPU is estimated from published figures, and the table says which.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rw3d_common.images import image_size
from rw3d_common.scene import open_scene
from rw3d_prep.batch_scene import reconstruct_batch
from rw3d_prep.batching import Batch
from rw3d_prep.clouds import write_cloud
from rw3d_prep.config import PrepConfig
from rw3d_prep.frames import Cloud, Frame
from rw3d_prep.write import store_path

SAMPLED_VIEWS = 8

# MapAnything, 518×518, bf16, memory-efficient: published profile, read off its plots (GPU not named there):
# 12.1, 17.7, 29.3, 63.9 GB for 50, 100, 200, 500 views. 4.9 GB of the fixed part are the weights.
GPU_BYTES, GPU_BYTES_PER_VIEW = 6.3e9, 0.115e9
SECONDS_200_VIEWS = 14.8
# Of its grid: what edge and ambiguity masks leave outdoors, before the confidence cut. An assumption, not measured.
VALID_SHARE = 0.85
BYTES_PER_POINT = 13.0  # measured on street scenes with float32 confidence
# Of the host beside a GPU: the process with CUDA and, while they are loaded, the weights; a worker with torch; and per
# grid cell a decoded image (float32) and a finished view (prediction, validity, points).
HOST_BYTES, WEIGHTS_BYTES, WORKER_BYTES, CELL_BYTES = 2e9, 4.9e9, 0.6e9, 12 + 42
CLOUD_BYTES = 100  # of memory per point while a cloud is read and written


@dataclass(frozen=True)
class Plan:
    """Totals of a run; `measured` tells figures of this machine from estimates. Bytes, seconds, GPU bytes."""

    views: int
    batches: int
    clouds: int
    largest_batch: int
    labelled: int
    points: float
    disk: float
    memory: float
    gpu_memory: float
    gpu_per_view: float
    seconds: float
    measured: bool

    def largest_batch_in(self, gpu_bytes: float) -> int:
        """Images that a GPU with so many free bytes should take at once; 0 if not even one fits."""
        return max(int((gpu_bytes - GPU_BYTES) / self.gpu_per_view), 0)


def make_plan(work: Sequence[Batch | Cloud], config: PrepConfig, root: Path, workers: int) -> Plan:
    """Predict images, points, memory, disk and time of making the scenes of `work`.

    Raises:
        UserError: a sampled frame or cloud cannot be used.
    """
    batches = [item for item in work if isinstance(item, Batch)]
    clouds = [item for item in work if isinstance(item, Cloud)]
    frames = [frame for batch in batches for frame in batch.frames]
    largest = max((len(batch.frames) for batch in batches), default=0)
    points = view_bytes = seconds = gpu_per_view = memory = 0.0
    if frames and config.backend.kind == "mapanything":
        cells = _grid_cells(frames[0], config)
        points = cells * VALID_SHARE * (1 - config.fuse.confidence_percentile / 100)
        view_bytes, share = points * BYTES_PER_POINT, cells / 518**2
        seconds, gpu_per_view = SECONDS_200_VIEWS / 200 * share, GPU_BYTES_PER_VIEW * share
        memory = HOST_BYTES + max(WEIGHTS_BYTES, largest * cells * CELL_BYTES) + workers * WORKER_BYTES
    elif frames:
        points, view_bytes, seconds = _measure(frames, config, root)
        memory = _memory(points, workers)
    in_cloud, cloud_disk, cloud_seconds = _measure_cloud(clouds, config, root) if clouds else (0.0, 0.0, 0.0)
    at_a_time = 1 if gpu_per_view else max(min(workers, len(work)), 1)  # there is one GPU
    return Plan(
        views=len(frames),
        batches=len(batches),
        clouds=len(clouds),
        largest_batch=largest,
        labelled=sum(frame.label is not None for frame in frames),
        points=points * len(frames) + in_cloud * len(clouds),
        disk=view_bytes * len(frames) + cloud_disk * len(clouds),
        memory=max(memory, workers * CLOUD_BYTES * in_cloud),
        gpu_memory=GPU_BYTES + gpu_per_view * largest if gpu_per_view else 0.0,
        gpu_per_view=gpu_per_view,
        seconds=(seconds * len(frames) + cloud_seconds * len(clouds)) / at_a_time,
        measured=not gpu_per_view,
    )


def _measure_cloud(clouds: Sequence[Cloud], config: PrepConfig, root: Path) -> tuple[float, float, float]:
    """Points, bytes and seconds of one cloud, the middle one, from a real store."""
    cloud = clouds[len(clouds) // 2]
    with tempfile.TemporaryDirectory(prefix="rw3d-plan-") as folder:
        started = time.perf_counter()
        counts = write_cloud(cloud, config, root, Path(folder))
        seconds = time.perf_counter() - started
        files = open_scene(store_path(Path(folder), cloud.name)).attrs["complete"]["files"]
    return counts["points"], sum(file["size"] for file in files.values()), seconds


def _measure(frames: Sequence[Frame], config: PrepConfig, root: Path) -> tuple[float, float, float]:
    """Points, bytes and seconds per view, from a few real views and a real store."""
    chosen = np.unique(np.linspace(0, len(frames) - 1, SAMPLED_VIEWS).round().astype(int))
    with tempfile.TemporaryDirectory(prefix="rw3d-plan-") as folder:
        batch = Batch(tuple(frames[index] for index in chosen))
        started = time.perf_counter()
        counts = reconstruct_batch(batch, config, root, Path(folder))
        seconds = (time.perf_counter() - started) / len(chosen)
        files = open_scene(store_path(Path(folder), batch.name)).attrs["complete"]["files"]
    arrays = sum(file["size"] for name, file in files.items() if not name.endswith("zarr.json"))
    return counts["points"] / len(chosen), arrays / len(chosen), seconds


def _grid_cells(frame: Frame, config: PrepConfig) -> int:
    """Cells of the grid that MapAnything reconstructs images like this one on."""
    from rw3d_prep.reconstruct.pixel_maps import target_size

    assert config.backend.kind == "mapanything"
    height, width = target_size([image_size(frame.image)], config.backend.resize, config.backend.resolution)
    return height * width


def _memory(points_per_view: float, workers: int) -> float:
    """Bytes: interpreter and libraries, one shard per array, and the grids of a few views, per worker."""
    per_worker = 0.35e9 + 4_194_304 * 25 + 12 * points_per_view * 40
    return workers * per_worker
