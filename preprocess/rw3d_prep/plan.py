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
from rw3d_prep.batching import Batch
from rw3d_prep.config import PrepConfig
from rw3d_prep.frames import Frame
from rw3d_prep.pipeline import reconstruct_batch, store_path

SAMPLED_VIEWS = 8

# MapAnything, 518×518, bf16, memory-efficient: published profile, read off its plots (GPU not named there).
GPU_GB_FIXED, GPU_GB_PER_VIEW = 6.3, 0.115
SECONDS_200_VIEWS = 14.8
# Of its grid: what edge and ambiguity masks leave outdoors, before the confidence cut. An assumption, not measured.
VALID_SHARE = 0.85
BYTES_PER_POINT = 13.0  # measured on street scenes with float32 confidence


@dataclass(frozen=True)
class Plan:
    """Totals of a run; `measured` tells figures of this machine from estimates. Bytes, seconds, GPU bytes."""

    views: int
    batches: int
    largest_batch: int
    labelled: int
    points: float
    disk: float
    memory: float
    gpu_memory: float
    seconds: float
    measured: bool


def make_plan(batches: Sequence[Batch], config: PrepConfig, root: Path, workers: int) -> Plan:
    """Predict images, points, memory, disk and time of reconstructing `batches`.

    Raises:
        UserError: a sampled frame cannot be used.
    """
    frames = [frame for batch in batches for frame in batch.frames]
    largest = max(len(batch.frames) for batch in batches)
    if config.backend.kind == "mapanything":
        points, per_point, seconds, gpu = _estimate_mapanything(frames[0], config, largest)
    else:
        points, per_point, seconds = _measure(frames, config, root)
        gpu = 0.0
    return Plan(
        views=len(frames),
        batches=len(batches),
        largest_batch=largest,
        labelled=sum(frame.label is not None for frame in frames),
        points=points * len(frames),
        disk=points * per_point * len(frames),
        memory=_memory(points, workers),
        gpu_memory=gpu,
        seconds=seconds * len(frames) / max(min(workers, len(batches)), 1),
        measured=config.backend.kind != "mapanything",
    )


def _measure(frames: Sequence[Frame], config: PrepConfig, root: Path) -> tuple[float, float, float]:
    """Points per view, bytes per point and seconds per view, from a few real views and a real store."""
    chosen = np.unique(np.linspace(0, len(frames) - 1, SAMPLED_VIEWS).round().astype(int))
    with tempfile.TemporaryDirectory(prefix="rw3d-plan-") as folder:
        batch = Batch(tuple(frames[index] for index in chosen))
        started = time.perf_counter()
        counts = reconstruct_batch(batch, config, root, Path(folder))
        seconds = (time.perf_counter() - started) / len(chosen)
        files = open_scene(store_path(Path(folder), batch)).attrs["complete"]["files"]
    arrays = sum(file["size"] for name, file in files.items() if not name.endswith("zarr.json"))
    return counts["points"] / len(chosen), arrays / max(counts["points"], 1), seconds


def _estimate_mapanything(frame: Frame, config: PrepConfig, largest: int) -> tuple[float, float, float, float]:
    """Points per view, bytes per point, seconds per view and GPU bytes, from published figures."""
    from rw3d_prep.reconstruct.pixel_maps import target_size

    assert config.backend.kind == "mapanything"
    height, width = target_size([image_size(frame.image)], config.backend.resize, config.backend.resolution)
    share = height * width / 518**2
    points = height * width * VALID_SHARE * (1 - config.fuse.confidence_percentile / 100)
    seconds = SECONDS_200_VIEWS / 200 * share
    gpu = (GPU_GB_FIXED + GPU_GB_PER_VIEW * share * largest) * 1e9
    return points, BYTES_PER_POINT, seconds, gpu


def _memory(points_per_view: float, workers: int) -> float:
    """Bytes: interpreter and libraries, one shard per array, and the grids of a few views, per worker."""
    per_worker = 0.35e9 + 4_194_304 * 25 + 12 * points_per_view * 40
    return workers * per_worker
