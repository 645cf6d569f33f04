"""`accumulate` on the built-in street, against its truth: `python benchmarks/accumulate_demo.py STORES [--spread 1.5]`.

STORES is a folder of scenes of the demo; they are copied, not changed. Prints one JSON object: labelled shares before
and after, precision per class, and the same with every camera (and the points it sees) moved and turned at random,
which must close the gate of every scene.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from rw3d_common.collection import store_paths
from rw3d_common.scene import Scene, open_scene
from rw3d_prep.accumulate import AccumulateConfig, make_accumulated
from rw3d_prep.write import file_table


def labelled_stores(stores: Path, copy: Path) -> list[Path]:
    """Copies of the training scenes with labels."""
    scenes = [open_scene(path) for path in store_paths(stores)]
    wanted = [scene.path for scene in scenes if scene.attrs["split"] == "train" and scene.view_table["has_label"].any()]
    return [Path(shutil.copytree(path, copy / path.relative_to(stores))) for path in wanted]


def measure(stores: list[Path], config: AccumulateConfig) -> dict[str, Any]:
    """Accumulate every scene and add up the reports; classes count where they are not withheld."""
    start, reports, usable = time.process_time(), [], []
    for store in stores:
        labels = make_accumulated(store, config, overwrite=True)
        reports.append(labels.report)
        usable.append(labels.usable)
    total = {key: sum(report[key] for report in reports) for key in ("pixels", "labelled_before", "labelled_after")}
    measured, right = (sum(report[key] for report in reports) for key in ("measured", "right"))
    points = {
        key: sum(report[key] for report in reports) for key in reports[0] if key.endswith("points") or "own_" in key
    }
    return {
        "scenes": len(stores),
        "usable": usable.count(True),
        "labelled_before": round(total["labelled_before"] / total["pixels"], 4),
        "labelled_after": round(total["labelled_after"] / total["pixels"], 4),
        "times": round(total["labelled_after"] / total["labelled_before"], 2),
        "precision": round(right / max(measured, 1), 4),
        "lowest_precision_with_withheld": round(min(report["precision_with_withheld"] or 0 for report in reports), 4),
        "highest_precision_with_withheld": round(max(report["precision_with_withheld"] or 0 for report in reports), 4),
        "classes": {name: _class(name, reports) for name in dict.fromkeys(n for r in reports for n in r["classes"])},
        **points,
        "seconds_per_view": round((time.process_time() - start) / sum(len(open_scene(store)) for store in stores), 3),
    }


def _class(name: str, reports: list[dict[str, Any]]) -> dict[str, Any]:
    entries = [
        report["classes"][name] for report in reports if name in report["classes"] and name not in report["withheld"]
    ]
    measured = sum(entry["measured"] for entry in entries)
    right = sum(entry["precision"] * entry["measured"] for entry in entries if entry["measured"])
    return {
        "carried": sum(entry["carried"] for entry in entries),
        "precision": round(right / measured, 4) if measured else None,
        "withheld_in": sum(name in report["withheld"] for report in reports),
    }


def disturb(store: Path, metres: float, degrees: float, seed: int) -> None:
    """Move every camera of a store by `metres` and turn it by ±`degrees`, with the points that it sees."""
    rng, group, scene = np.random.default_rng(seed), zarr.open_group(store), open_scene(store)
    cameras, position = scene.view_table["camera_to_world"].copy(), scene.read("position")
    offset = scene.view_table["point_offset"]
    for view, camera in enumerate(cameras.copy()):
        angle = np.deg2rad(degrees) * rng.choice([-1, 1])
        cosine, sine = np.cos(angle), np.sin(angle)
        cameras[view, :3, :3] = camera[:3, :3] @ [[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]]
        away = rng.normal(size=3)
        cameras[view, :3, 3] += metres * away / np.linalg.norm(away)
        rows = slice(int(offset[view]), int(offset[view + 1]))
        seen = (position[rows] - camera[:3, 3]) @ camera[:3, :3]
        position[rows] = seen @ cameras[view, :3, :3].T + cameras[view, :3, 3]
    arrays: Any = group
    arrays["views/camera_to_world"][:], arrays["points/position"][:] = cameras, position
    _promise_what_is_there(scene)


def _promise_what_is_there(scene: Scene) -> None:
    path = scene.path / "zarr.json"
    text, there = json.loads(path.read_text()), file_table(scene.path)
    record = text["attributes"]["complete"]
    record["files"] = {name: there[name] for name in record["files"]}
    path.write_text(json.dumps(text))


def main() -> None:
    """Measure the scenes named on the command line and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", type=Path)
    parser.add_argument("--spread", type=float, default=AccumulateConfig().spread)
    parser.add_argument("--metres", type=float, default=0.5, help="how far wrong cameras are moved")
    parser.add_argument("--degrees", type=float, default=3.0, help="how far they are turned")
    arguments = parser.parse_args()
    config = AccumulateConfig(spread=arguments.spread)
    with tempfile.TemporaryDirectory() as folder:
        copies = labelled_stores(arguments.stores, Path(folder))
        result = {"spread": arguments.spread, "right_poses": measure(copies, config)}
        for number, store in enumerate(copies):
            shutil.rmtree(store / "accumulated")  # labels of the same configuration would be kept
            disturb(store, arguments.metres, arguments.degrees, number)
        result["wrong_poses"] = measure(copies, config)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
