"""Fuse and write one scene of 200 views of 168×518 with labels, beside a list-based reference.

    python benchmarks/fuse_write.py [--views 200] [--height 168] [--reference-views 20] [--json FILE]

Both sides get the same views in memory (decoded 1408×376 image and labels, grids of a synthetic street) and are timed
over the same work: masks, confidence cut, look-up at source pixels. Ours also writes the Zarr store and publishes it
(checksums and fsync included); the reference appends points to Python lists and turns them into arrays at the end,
as the paper's released code does, and writes nothing. Each side runs in a process of its own; CPU = user + system.
Memory is the peak resident size above that at the start, per point of the scene.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from rw3d_common.cameras import PixelMap, unproject_depth
from rw3d_common.manifest import dataset_entry
from rw3d_common.schema import VIEWS
from rw3d_prep.fuse import fuse_view
from rw3d_prep.reconstruct.base import ViewGeometry
from rw3d_prep.write import SceneWriter

IMAGE = (376, 1408)


class Street:
    """Synthetic views: a ground plane and walls with relief, 1 % depth noise; everything but the pose is reused."""

    def __init__(self, height: int, width: int) -> None:
        generator = np.random.default_rng(0)
        self.pixel_map = PixelMap.resize_then_crop(IMAGE, (height, round(height * 1408 / 376)), (height, width), 55, 0)
        self.intrinsics = np.array([[552.6, 0, 682.0], [0, 552.6, 238.8], [0, 0, 1]])
        self.grid_intrinsics = self.pixel_map.grid_intrinsics(self.intrinsics)
        rows = (np.arange(height) - self.grid_intrinsics[1, 2]) / self.grid_intrinsics[1, 1]
        ground = np.where(rows[:, None] > 0.02, 1.6 / np.maximum(rows[:, None], 0.02), 60.0)
        columns = np.abs(np.arange(width) - self.grid_intrinsics[0, 2]) / self.grid_intrinsics[0, 0]
        depth = np.minimum(np.minimum(ground, 8 / np.maximum(columns[None, :], 0.05)), 60)
        self.depths = [depth * (1 + 0.01 * generator.standard_normal((height, width))) for _ in range(4)]
        self.confidence = (1 + generator.exponential(4, (height, width))).astype(np.float32)
        self.valid = generator.random((height, width)) < 0.97
        self.image = generator.integers(0, 255, (*IMAGE, 3)).astype(np.uint8)
        classes = np.repeat(np.repeat(generator.integers(0, 18, (47, 88)), 8, 0), 16, 1).astype(np.uint8)
        self.truth = classes
        self.label = np.where(generator.random(IMAGE) < 0.03, classes, 255).astype(np.uint8)

    def view(self, index: int) -> ViewGeometry:
        pose = np.eye(4)
        pose[2, 3] = index
        points = unproject_depth(self.depths[index % 4], self.grid_intrinsics, pose)
        return ViewGeometry(points, self.confidence, self.valid, self.intrinsics, pose, self.pixel_map)


def ours(street: Street, views: int, folder: Path) -> tuple[int, float]:
    """Points and CPU seconds of fusing, writing and publishing."""
    classes = dataset_entry("kitti360").class_map()
    cpu, writer = 0.0, SceneWriter(folder / "scene.zarr", with_truth=True)
    for index in range(views):
        geometry = street.view(index)
        started = time.process_time()
        writer.append(fuse_view(geometry, street.image, street.label, street.truth, classes, 10.0))
        cpu += time.process_time() - started
    columns = {spec.name: np.ones((views, *spec.row), spec.dtype) for spec in VIEWS if spec.name != "point_offset"}
    started = time.process_time()
    writer.publish(columns, {"cameras": ["image_00"], "images": [""] * views}, {})
    return writer.offsets[-1], cpu + time.process_time() - started


def lists(street: Street, views: int, _folder: Path) -> tuple[int, float]:
    """The same cloud through Python lists; nothing is written."""
    cpu = 0.0
    names = ("position", "color", "confidence", "pixel", "label", "truth")
    cloud: dict[str, list[object]] = {name: [] for name in names}
    for index in range(views):
        geometry = street.view(index)
        started = time.process_time()
        mask = geometry.valid & np.isfinite(geometry.points).all(axis=-1)
        keep = mask & (geometry.confidence >= np.percentile(geometry.confidence[mask], 10))
        rows, columns = np.nonzero(keep)
        u = np.rint(columns * geometry.pixel_map.column_scale + geometry.pixel_map.column_offset).astype(int)
        v = np.rint(rows * geometry.pixel_map.row_scale + geometry.pixel_map.row_offset).astype(int)
        cloud["position"].extend(geometry.points[keep].tolist())
        cloud["color"].extend(street.image[v, u].tolist())
        cloud["confidence"].extend(geometry.confidence[keep].tolist())
        cloud["pixel"].extend((v * IMAGE[1] + u).tolist())
        cloud["label"].extend(street.label[v, u].tolist())
        cloud["truth"].extend(street.truth[v, u].tolist())
        cpu += time.process_time() - started
    started = time.process_time()
    types = {"position": np.float32, "color": np.uint8, "confidence": np.float32, "pixel": np.uint32}
    arrays = {name: np.array(values, types.get(name, np.uint8)) for name, values in cloud.items()}
    return len(arrays["position"]), cpu + time.process_time() - started


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(side: str, views: int, height: int, width: int) -> dict[str, float]:
    """Run one side in this process."""
    street = Street(height, width)
    run = ours if side == "ours" else lists
    before = peak_bytes()
    with tempfile.TemporaryDirectory() as folder:
        run(street, 1, Path(folder, "warm up"))
        points, cpu = run(street, views, Path(folder))
        shutil.rmtree(Path(folder, "warm up"), ignore_errors=True)
        disk = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return {
        "views": views,
        "points": points,
        "cpu_ms_per_view": 1e3 * cpu / views,
        "peak_bytes_per_point": (peak_bytes() - before) / points,
        "disk_bytes_per_point": disk / points,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=200)
    parser.add_argument("--height", type=int, default=168)
    parser.add_argument("--width", type=int, default=518)
    parser.add_argument("--reference-views", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=["ours", "lists"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options.views, options.height, options.width)))
        return
    result = {}
    for side, views in (("ours", options.views), ("lists", options.reference_views)):
        command = [sys.executable, __file__, "--side", side, "--views", str(views)]
        command += ["--height", str(options.height), "--width", str(options.width)]
        runs = [
            json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(options.repeats)
        ]
        result[side] = sorted(runs, key=lambda run: run["cpu_ms_per_view"])[len(runs) // 2]
    result["cpu_ratio"] = result["lists"]["cpu_ms_per_view"] / result["ours"]["cpu_ms_per_view"]
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
