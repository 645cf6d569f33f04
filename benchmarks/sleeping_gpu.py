"""`gpu_pipeline.py --sleep MS`: a backend that SLEEPS where a GPU would compute, to show the overlap without a GPU.

All else is the real work: images are decoded and put on MapAnything's grid, its depth edges are masked (where its
package is installed), points are fused and scenes written. No number of this measures a GPU or a model.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rw3d_common.cameras import F64
from rw3d_prep import batch_scene
from rw3d_prep.batch_scene import reconstruct_batch
from rw3d_prep.batching import BatchConfig
from rw3d_prep.config import PrepConfig
from rw3d_prep.datasets import DatasetConfig
from rw3d_prep.frames import Frame
from rw3d_prep.pipeline import find_batches, reconstruct
from rw3d_prep.reconstruct.base import RawView, ViewGeometry
from rw3d_prep.reconstruct.mapanything import Loaded, MapAnythingBackend, MapAnythingConfig

DEVICE = "no GPU: a backend that sleeps"


@dataclass
class SleepingGpu:
    """A `GpuBackend` that sleeps `seconds` per view for the model; `times` adds up the steps that this process takes."""

    real: MapAnythingBackend
    seconds: float
    needs: tuple[str, ...] = ()
    times: dict[str, float] = field(default_factory=lambda: {"input": 0.0, "gpu": 0.0, "finish": 0.0})

    def identity(self) -> dict[str, str]:
        return {"name": "sleeping"}

    def require(self) -> None:
        """Nothing is needed."""

    def load_model(self) -> None:
        """There is none."""

    def reconstruct(self, frames: Sequence[Frame], world_offset: F64) -> Iterator[ViewGeometry]:
        for frame, raw in zip(frames, self.infer(frames, self.load(frames)), strict=True):
            yield self.finish(frame, raw)

    def load(self, frames: Sequence[Frame]) -> Loaded:
        started = time.perf_counter()
        loaded = self.real.load(frames)
        self.times["input"] += time.perf_counter() - started
        return loaded

    def infer(self, frames: Sequence[Frame], loaded: Loaded) -> Iterator[RawView]:
        """Sleep for the whole batch, then a street-like surface with edges and noise for each view, copied as from a GPU."""
        started = time.perf_counter()
        time.sleep(self.seconds * len(frames))
        self.times["gpu"] += time.perf_counter() - started
        view = _surface(loaded.target)
        for size in loaded.sizes:
            started = time.perf_counter()
            copies = [np.array(view[name]) for name in ("points", "depth", "confidence", "mask")]
            raw = RawView(size, *copies, view["intrinsics"], np.eye(4, dtype=np.float32))
            self.times["gpu"] += time.perf_counter() - started
            yield raw

    def finish(self, frame: Frame, raw: RawView) -> ViewGeometry:
        started = time.perf_counter()
        geometry = self.real.finish(frame, raw)
        self.times["finish"] += time.perf_counter() - started
        return geometry


def _surface(grid: tuple[int, int]) -> dict[str, Any]:
    """Ground, walls with jumps in depth and 1 % of noise on a grid (h, w)."""
    height, width = grid
    focal = width / 1.2
    row, column = np.mgrid[:height, :width].astype(np.float32)
    walls = 8 + 6 * ((column // 40) % 3)
    ground = 1.6 * focal / np.maximum(row - height / 2, 1)
    depth = np.minimum(walls, ground) * (1 + 0.01 * np.random.default_rng(0).standard_normal(grid))
    depth = depth.astype(np.float32)
    points = np.stack([(column - width / 2) / focal * depth, (row - height / 2) / focal * depth, depth], -1)
    intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], np.float32)
    confidence = 1 + np.exp(-depth / 10)
    return {
        "points": points, "depth": depth, "confidence": confidence, "mask": np.ones(grid, bool), "intrinsics": intrinsics
    }  # fmt: skip


def measure_sleeping(
    root: Path, folder: Path, views: int, milliseconds: float, workers: int, rounds: int
) -> dict[str, Any]:
    """Views per second and where the time goes, three ways: each way's fastest of `rounds` in turn; see the keys."""
    edges = importlib.util.find_spec("mapanything") is not None
    real = MapAnythingConfig(device="cpu", mask_edges=edges)
    config = PrepConfig(dataset=DatasetConfig(name="folder"), batching=BatchConfig(size=views), backend=real)
    batches = list(find_batches(config, root)[0])
    backend = SleepingGpu(MapAnythingBackend(real), milliseconds / 1000)
    batch_scene.backend_of = lambda _: backend  # type: ignore[assignment]
    raw = next(backend.infer(batches[0].frames[:1], backend.load(batches[0].frames[:1])))
    backend.finish(batches[0].frames[0], raw)  # first calls import and compile
    taken: dict[str, list[dict[str, Any]]] = {}
    for number in range(rounds):
        place = folder / str(number)
        place.mkdir()
        for way, facts in _round(backend, batches, config, root, place, workers):
            taken.setdefault(way, []).append(facts)
    result = {way: min(facts, key=lambda one: one["seconds"]) for way, facts in taken.items()}
    speed = {way: facts["views_per_second"] for way, facts in result.items()}
    return {
        "depth_edges": edges,
        "sleep_ms_per_view": milliseconds,
        "views": sum(len(batch.frames) for batch in batches),
        "rounds": {way: [one["seconds"] for one in facts] for way, facts in taken.items()},
        **result,
        "times_load_sleep_save": round(speed["pipelined"] / speed["load_sleep_save_one_after_the_other"], 2),
        "times_our_steps": round(speed["pipelined"] / speed["our_steps_one_after_the_other"], 2),
    }


def _round(
    backend: SleepingGpu, batches: Sequence[Any], config: PrepConfig, root: Path, out: Path, workers: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    views = sum(len(batch.frames) for batch in batches)
    yield "load_sleep_save_one_after_the_other", _alone(backend, views, lambda: _demo_order(backend, batches, out))
    yield (
        "our_steps_one_after_the_other",
        _alone(backend, views, lambda: [reconstruct_batch(batch, config, root, out / "plain") for batch in batches]),
    )
    yield "pipelined", _pipelined(config, root, out / "out", views, workers)


def _demo_order(backend: SleepingGpu, batches: Sequence[Any], folder: Path) -> None:
    """Load a batch, sleep, mask its edges, save it: the order of the package's demo, with what that saves."""
    for number, batch in enumerate(batches):
        loaded = backend.load(batch.frames)
        pictures = [view["img"].numpy()[0] for view in loaded.views]
        arrays = {}
        for index, (frame, raw) in enumerate(zip(batch.frames, backend.infer(batch.frames, loaded), strict=True)):
            geometry = backend.finish(frame, raw)
            arrays |= {
                f"points{index}": geometry.points,
                f"mask{index}": geometry.valid,
                f"image{index}": pictures[index],
            }
        np.savez(folder / f"{number}.npz", **arrays)


def _alone(backend: SleepingGpu, views: int, work: Any) -> dict[str, float]:
    """Seconds of each step of `work`, in which nothing overlaps; what is neither of the others is fusing and writing."""
    backend.times.update(dict.fromkeys(backend.times, 0.0))
    started, cpu = time.perf_counter(), time.process_time()
    work()
    wall, steps = time.perf_counter() - started, dict(backend.times)
    return {
        "seconds": round(wall, 2),
        "views_per_second": round(views / wall, 2),
        "gpu_busy": round(steps["gpu"] / wall, 3),
        **{f"{step}_seconds": round(seconds, 2) for step, seconds in steps.items()},
        "write_seconds": round(wall - sum(steps.values()), 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
    }


def _pipelined(config: PrepConfig, root: Path, out: Path, views: int, workers: int) -> dict[str, Any]:
    """The whole command's wall time, and its own record of each batch."""
    started = time.perf_counter()
    before = os.times()
    outcome = reconstruct(config, root, out, workers)
    after = os.times()  # workers that have ended are counted as children
    wall = time.perf_counter() - started
    assert not outcome.failed, outcome.failed
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    sums = {key: round(sum(line[key] for line in lines), 2) for key in lines[0] if key.endswith("_seconds")}
    keys = [*sums, "views_per_second", "gpu_busy"]
    return {
        "seconds": round(wall, 2),
        "views_per_second": round(views / wall, 2),
        "gpu_busy": round(sums["gpu_seconds"] / wall, 3),
        "cpu_seconds": round(sum(after[:4]) - sum(before[:4]), 2),
        "gpu_busy_median_batch": round(float(np.median([line["gpu_busy"] for line in lines])), 3),
        **sums,
        "per_batch": [{key: line[key] for key in keys} for line in lines],
    }
