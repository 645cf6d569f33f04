"""Samples for tests of training, written without drawing: the first own points and an even choice of the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from builders import kitti360_tree
from rw3d_common import open_scene
from rw3d_common.collection import store_paths
from rw3d_common.schema import sample_arrays
from rw3d_prep.config import load_config
from rw3d_prep.pipeline import reconstruct
from rw3d_prep.sample_writer import SamplesWriter

POINTS, OWN = 400, 250


def sampled_stores(
    folder: Path, sequences: tuple[int, ...] = (0, 2), frames: int = 4, settings: tuple[str, ...] = ()
) -> Path:
    """A collection of drives with samples in `folder`/stores; its data lie in `folder`/kitti360."""
    root = kitti360_tree(folder / "kitti360", sequences=sequences, frames=range(frames), size=(24, 64))
    reconstruct(load_config("kitti360", None, "sensor", None, list(settings)), root, folder / "stores", workers=1)
    for store in store_paths(folder / "stores"):
        add_samples(store)
    return folder / "stores"


def add_samples(store: Path, points: int = POINTS, own: int = OWN, draws: int = 1) -> None:
    """Write `samples/` of a scene: own points from every second place, the others evenly from the other views."""
    scene = open_scene(store)
    names = ["position", "color", "confidence", "label", *(["truth"] if scene.has_truth else [])]
    cloud = {name: scene.read(name) for name in (*names, "pixel")}
    table: dict[str, list] = {name: [] for name in ("view", "draw", "n_points", "n_own", "radius", "center")}
    labels = np.zeros(256, int)
    with SamplesWriter(store, sample_arrays(points, own, scene.has_truth)) as writer:
        for view in range(len(scene)):
            for draw in range(draws):
                mine, index = _draw(scene.view_table["point_offset"], view, draw, points, own)
                rows = {name: cloud[name][index] for name in names}
                rows |= {"index": index.astype(np.uint32), "pixel": cloud["pixel"][index[:mine]].astype(np.int32)}
                writer.append({name: _chunk(writer.columns[name], values) for name, values in rows.items()})
                labels += np.bincount(rows["label"], minlength=256)
                center = cloud["position"][index[:mine]].mean(axis=0)
                row = (view, draw, len(index), mine, np.inf, center)
                for column, value in zip(table.values(), row, strict=True):
                    column.append(value)
        writer.publish(
            {name: np.stack(values) for name, values in table.items()},
            {"points": points, "views": "all", "draws": draws},
            _counts(table, labels),
        )


def _draw(offset: np.ndarray, view: int, draw: int, points: int, own: int) -> tuple[int, np.ndarray]:
    """How many own points, and rows in `points/`; fewer points than asked for in every third sample."""
    first, last = offset[view : view + 2]
    mine = np.arange(first + draw, last, 2)[:own]
    others = np.concatenate([np.arange(first), np.arange(last, offset[-1])])
    wanted = points - len(mine) - 7 * (view % 3 == 2)
    return len(mine), np.concatenate([mine, others[:: max(len(others) // wanted, 1)][:wanted]])


def _chunk(column, values: np.ndarray) -> bytes:
    chunk = np.full((1, *column.spec.row), column.spec.fill, column.spec.dtype)
    chunk[0, : len(values)] = values
    return column.encode_chunk(chunk)


def _counts(table: dict[str, list], labels: np.ndarray) -> dict[str, object]:
    own = np.array(table["n_own"])
    return {
        "samples": len(own),
        "points": int(np.sum(table["n_points"])),
        "own_points": int(own.sum()),
        "labelled_points": int(labels[:255].sum()),
        "attached_labels": 0,
        "class_points": {str(i): int(labels[i]) for i in np.flatnonzero(labels)},
        "correspondences": {"mean": float(own.mean()), "quantile_05": float(np.quantile(own, 0.05))},
    }
