"""The whole sample-views step on synthetic scenes of 25 and 200 views of 168×518, and on one of 35 million points.

    python benchmarks/sample_views.py [--repeats 3] [--reference-views 3] [--folder DIR] [--json FILE]

One thread makes one scene's samples: reading the points, the spatial index, drawing, gathering, encoding, writing,
checksums and fsync are all inside. CPU = user + system seconds of the process, divided by the views. Peak memory is what
the process holds above what it held before, beside the decoded bytes of the scene's points. The reference measures all
distances for every view, as the paper's released code does; it has the points in memory and writes nothing; "plain" is
the obvious NumPy, "tuned" has its set difference made linear. Each
measurement runs in a process of its own, which samples a scene of one view first so that compiling does not count, and
which touches as much memory as the scene takes: a virtual machine charges the first touch of a page with up to 2 ms/MB.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from fuse_write import IMAGE, Street
from sampling_reference import brute_force_sample

from rw3d_common.manifest import dataset_entry
from rw3d_common.scene import open_scene
from rw3d_common.schema import SCHEMA_VERSION, VIEWS, point_arrays
from rw3d_prep.fuse import fuse_view
from rw3d_prep.samples import make_samples
from rw3d_prep.sampling import SampleConfig
from rw3d_prep.write import SceneWriter

SCENES = {
    "warm up": (1, 168, 10.0),
    "25 views": (25, 168, 10.0),
    "200 views": (200, 168, 10.0),
    "35 M": (200, 336, 0.0),
}


def build_scene(path: Path, views: int, height: int, dropped: float) -> None:
    """Write a store of the synthetic street: `views` grids of `height`×518, `dropped` % least confident points cut.

    Without a cut every pixel is valid, so that the scene has as many points as its grids have cells.
    """
    street, classes = Street(height, 518), dataset_entry("kitti360").class_map()
    street.valid |= dropped == 0
    columns: dict[str, Any] = {
        spec.name: np.zeros((views, *spec.row), spec.dtype) for spec in VIEWS if spec.name != "point_offset"
    }
    columns["frame_id"][:], columns["image_size"][:], columns["has_label"][:] = np.arange(views), IMAGE, True
    with SceneWriter(path, with_truth=True) as writer:
        for index in range(views):
            geometry = street.view(index)
            columns["camera_to_world"][index] = geometry.camera_to_world
            writer.append(fuse_view(geometry, street.image, street.label, street.truth, classes, dropped))
        names = {"cameras": ["image_00"], "images": [""] * views, "labels": [None] * views, "truths": [None] * views}
        writer.publish(columns, names, scene_attributes())


def scene_attributes() -> dict[str, Any]:
    entry = dataset_entry("kitti360")
    return {
        "schema_version": SCHEMA_VERSION,
        "dataset": "kitti360",
        "split": "train",
        "sequence": "street",
        "root": ".",
        "backend": {"name": "synthetic"},
        "config": {},
        "config_hash": "0",
        "classes": entry.class_map().to_json(),
        "ignored_ids": entry.ignored_ids,
        "ignored_in_truth": entry.ignored_in_truth,
        "label_encoding": entry.label_encoding,
        "truth_encoding": entry.truth_encoding,
        "world_offset": [0.0, 0.0, 0.0],
    }


def memory(key: str) -> int:
    """Bytes of resident memory of this process: `VmRSS` now, `VmHWM` at most."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def touch(size: int) -> None:
    """Use `size` bytes of memory once, and forget that in the peak."""
    np.empty(size, np.uint8)[::4096] = 1
    Path("/proc/self/clear_refs").write_text("5")


def decoded_bytes(store: Path) -> int:
    """Bytes of a scene's points in memory."""
    scene = open_scene(store)
    return scene.n_points * sum(spec.row_bytes for spec in point_arrays(scene.has_truth))


def measure_ours(store: Path, warm_up: Path) -> dict[str, float]:
    """Make the samples of `store` in this process."""
    for path in (warm_up, store):
        shutil.rmtree(path / "samples", ignore_errors=True)
    make_samples(warm_up, SampleConfig())
    touch(2 * decoded_bytes(store))
    before, started, clock = memory("VmRSS"), time.process_time(), time.perf_counter()
    record = make_samples(store, SampleConfig(), workers=1)
    cpu, wall, peak = time.process_time() - started, time.perf_counter() - clock, memory("VmHWM") - before
    return {
        "points": open_scene(store).n_points,
        "samples": record["samples"],
        "points_per_sample": record["points"] / record["samples"],
        "correspondences_per_sample": record["correspondences"]["mean"],
        "cpu_ms_per_view": 1e3 * cpu / record["samples"],
        "wall_ms_per_view": 1e3 * wall / record["samples"],
        "peak_bytes": peak,
        "peak_over_scene_bytes": peak / decoded_bytes(store),
        "disk_bytes_per_sample": sum(file["size"] for file in record["files"].values()) / record["samples"],
    }


def measure_reference(store: Path, views: int, plain: bool) -> dict[str, float]:
    """Draw `views` samples of `store` by measuring all distances; only the drawing is timed.

    `plain` leaves the set difference as NumPy does it by default, as code written without a profiler has it.
    """
    scene = open_scene(store)
    position, offset = scene.read("position"), scene.view_table["point_offset"]
    touch(2 * decoded_bytes(store))
    chosen = np.linspace(0, len(scene) - 1, views).astype(int)
    started = time.process_time()
    for view in chosen:
        rng = np.random.default_rng(int(view))
        brute_force_sample(position, offset, int(view), SampleConfig(), rng, assume_unique=not plain)
    return {"points": scene.n_points, "cpu_ms_per_view": 1e3 * (time.process_time() - started) / views}


def in_a_process(*arguments: object) -> dict[str, float]:
    command = [sys.executable, __file__, *map(str, arguments)]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return result


def median(folder: Path, repeats: int, name: str) -> dict[str, float]:
    runs = [in_a_process("--measure", "ours", "--folder", folder, "--scene", name) for _ in range(repeats)]
    return sorted(runs, key=lambda run: run["cpu_ms_per_view"])[len(runs) // 2]


def compare(folder: Path, repeats: int, reference_views: int) -> dict[str, Any]:
    """All measurements, with the ratios that matter."""
    for name, shape in SCENES.items():
        if not scene_path(folder, name).exists():
            build_scene(scene_path(folder, name), *shape)
    result: dict[str, Any] = {name: median(folder, repeats, name) for name in SCENES if name != "warm up"}
    result["growth_25_to_200"] = result["200 views"]["cpu_ms_per_view"] / result["25 views"]["cpu_ms_per_view"]
    for name in ("200 views", "35 M"):
        for kind, views in (("tuned", reference_views), ("plain", 1)):
            slow = in_a_process("--measure", kind, "--views", views, "--folder", folder, "--scene", name)
            result[name][f"{kind}_reference_cpu_ms_per_view"] = slow["cpu_ms_per_view"]
            result[name][f"{kind}_cpu_ratio"] = slow["cpu_ms_per_view"] / result[name]["cpu_ms_per_view"]
    return result


def scene_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.zarr"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--reference-views", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the scenes (1.5 GB) are made, and found by a later run")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", choices=["ours", "tuned", "plain"], help=argparse.SUPPRESS)
    parser.add_argument("--views", type=int, default=3, help=argparse.SUPPRESS)
    parser.add_argument("--scene", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        store = scene_path(options.folder, options.scene)
        if options.measure == "ours":
            print(json.dumps(measure_ours(store, scene_path(options.folder, "warm up"))))
        else:
            print(json.dumps(measure_reference(store, options.views, plain=options.measure == "plain")))
        return
    with tempfile.TemporaryDirectory() as folder:
        result = compare(options.folder or Path(folder), options.repeats, options.reference_views)
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
