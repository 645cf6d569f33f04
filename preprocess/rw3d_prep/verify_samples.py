"""What `rw3d-prep verify` checks of `samples/`: the record, the declarations, and every row against `points/`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from rw3d_common.config import config_hash
from rw3d_common.errors import UserError
from rw3d_common.labels import IGNORE
from rw3d_common.scene import Scene
from rw3d_common.scene_accumulated import POINT_ARRAY
from rw3d_common.scene_sample import GROUP, SceneSamples, has_samples
from rw3d_common.schema import SAMPLE_TABLES, SAMPLES_PER_SHARD, ArraySpec, sample_arrays
from rw3d_prep.sample_writer import SEAL

Blocks = Iterator[tuple[slice, npt.NDArray[Any]]]


def record_faults(scene: Scene) -> list[str]:
    """Why the samples of a scene cannot be read at all: no completion record, or one that was altered."""
    if not has_samples(scene.path):
        return []
    try:
        attrs = dict(scene.samples.attrs)
    except UserError as error:
        return [str(error)]
    return seal_faults(GROUP, attrs)


def seal_faults(group: str, attrs: dict[str, Any]) -> list[str]:
    """A fault where the attributes of a group that was added to a store are not those that were written."""
    seal = attrs.pop(SEAL, None)
    if seal != config_hash(attrs):
        return [f"{group}/zarr.json was altered (its attributes differ from when they were written)"]
    return []


def sample_files(scene: Scene) -> dict[str, dict[str, Any]]:
    """SHA-256 and size of every file of the samples but their own zarr.json, by path in the store."""
    files: dict[str, dict[str, Any]] = scene.samples.record["files"]
    return files


def declaration_faults(scene: Scene) -> list[str]:
    """Arrays of the samples that are missing, or not of the shape and type that the schema and counts ask for."""
    samples = scene.samples
    faults = []
    for spec in _specs(scene):
        if spec.name not in samples.group:
            faults.append(f"array {GROUP}/{spec.name} is missing")
            continue
        array: Any = samples.group[spec.name]
        expected = ((len(samples), *spec.row), np.dtype(spec.dtype))
        if (array.shape, array.dtype) != expected:
            faults.append(f"{GROUP}/{spec.name} is {array.shape} {array.dtype}, expected {expected[0]} {expected[1]}")
    return faults


def value_faults(scene: Scene) -> list[str]:
    """Faults in the values of tables and arrays, one sentence each.

    Raises:
        UserError: an array cannot be read.
    """
    if faults := [*_table_faults(scene)]:
        return faults
    if faults := [*_index_faults(scene)]:
        return faults
    names = ["position", "color", "confidence", *(["truth"] if scene.has_truth else [])]
    return [
        *(fault for name in names for fault in _copy_faults(scene, name)),
        *_pixel_faults(scene),
        *_label_faults(scene),
    ]


def _specs(scene: Scene) -> list[ArraySpec]:
    """The declarations of this scene's samples; their widths are those of `index` and `pixel`."""
    group: Any = scene.samples.group
    widths = [group[name].shape[1] if name in group and group[name].ndim == 2 else 0 for name in ("index", "pixel")]
    return [*sample_arrays(widths[0], widths[1], scene.has_truth), *SAMPLE_TABLES]


def _table_faults(scene: Scene) -> Iterator[str]:
    samples = scene.samples
    table, config, record = samples.table, samples.attrs["config"], samples.record
    accumulated = config.get("labels", "own") == "accumulated"
    labelled = scene.accumulated.has_label if accumulated else scene.view_table["has_label"]
    views = np.flatnonzero(labelled) if config["views"] == "labelled" else np.arange(len(scene))
    expected = np.repeat(views, config["draws"]), np.tile(np.arange(config["draws"]), len(views))
    if not (np.array_equal(table["view"], expected[0]) and np.array_equal(table["draw"], expected[1])):
        yield f"{GROUP}/view and {GROUP}/draw do not hold {config['draws']} draws of every {config['views']} view in order"
        return
    group: Any = samples.group
    points, own = table["n_points"], table["n_own"]
    if (own < 0).any() or (own > points).any() or (own > group["pixel"].shape[1]).any():
        yield f"{GROUP}/n_own is negative or more than there is room for"
    if (points < 0).any() or (points > group["index"].shape[1]).any():
        yield f"{GROUP}/n_points is negative or more than there is room for"
    counts = {"samples": len(points), "points": int(points.sum()), "own_points": int(own.sum())}
    if any(record[name] != count for name, count in counts.items()):
        yield f"{GROUP}: the tables contradict the counts in the completion record"


def _blocks(samples: SceneSamples, name: str) -> Blocks:
    for start in range(0, len(samples), SAMPLES_PER_SHARD):
        rows = slice(start, min(start + SAMPLES_PER_SHARD, len(samples)))
        yield rows, samples.read(name, rows)


def _index_faults(scene: Scene) -> Iterator[str]:
    """Rows that do not exist, twice the same, own rows of other views, others of this view."""
    offset, table = scene.view_table["point_offset"], scene.samples.table
    for rows, block in _blocks(scene.samples, "index"):
        for number, padded in zip(range(rows.start, rows.stop), block, strict=True):
            points, own, view = (int(table[name][number]) for name in ("n_points", "n_own", "view"))
            index, padding = padded[:points], padded[points:]
            mine = (index >= offset[view]) & (index < offset[view + 1])
            if (padding != 2**32 - 1).any():
                yield f"sample {number}: {GROUP}/index is not filled behind its points"
            if (index >= scene.n_points).any():
                yield f"sample {number}: {GROUP}/index names points that do not exist"
            elif len(np.unique(index)) != points:
                yield f"sample {number}: the same point twice"
            elif not mine[:own].all() or mine[own:].any():
                yield f"sample {number}: its first {own:,} points are not exactly those of view {view}"


def _compared(scene: Scene, name: str) -> Iterator[tuple[int, npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]]:
    """Per sample: its number, what it holds, what `points/` holds at its index, and its padding."""
    samples = scene.samples
    accumulated = name == "label" and samples.attrs["config"].get("labels", "own") == "accumulated"
    points = scene.read(POINT_ARRAY if accumulated else name)
    counts = samples.table["n_own" if name == "pixel" else "n_points"]
    for (rows, block), (_, indices) in zip(_blocks(samples, name), _blocks(samples, "index"), strict=True):
        for number, values, index in zip(range(rows.start, rows.stop), block, indices, strict=True):
            count = int(counts[number])
            yield number, values[:count], points[index[:count]], values[count:]


def _copy_faults(scene: Scene, name: str) -> Iterator[str]:
    fill = next(spec.fill for spec in _specs(scene) if spec.name == name)
    for number, there, expected, padding in _compared(scene, name):
        if there.tobytes() != expected.tobytes():
            yield f"sample {number}: {GROUP}/{name} differs from points/{name} at its index"
        if name == "position":
            yield from (f"sample {number}: {fault}" for fault in _place_faults(scene.samples, number, there))
        if not np.array_equal(padding, np.full_like(padding, fill), equal_nan=padding.dtype.kind == "f"):
            yield f"sample {number}: {GROUP}/{name} is not filled behind its points"


def _place_faults(samples: SceneSamples, number: int, position: npt.NDArray[np.float32]) -> Iterator[str]:
    if not np.isfinite(position).all():
        yield "points that are not finite"
    center, radius, own = (samples.table[name][number] for name in ("center", "radius", "n_own"))
    if np.isfinite(radius):
        away = position[own:].astype(np.float64) - center
        if (np.einsum("ij,ij->i", away, away) > np.float64(radius) ** 2 * (1 + 1e-9)).any():
            yield f"points of other views outside the sphere of {radius:.3g} m"


def _pixel_faults(scene: Scene) -> Iterator[str]:
    for number, there, expected, padding in _compared(scene, "pixel"):
        if not np.array_equal(there, expected):
            yield f"sample {number}: {GROUP}/pixel differs from points/pixel at its index"
        if (padding != -1).any():
            yield f"sample {number}: {GROUP}/pixel is not filled behind its own points"


def _label_faults(scene: Scene) -> Iterator[str]:
    """Labels are those of the points, but for unlabelled own points that a pixel beside them gave its label."""
    samples, attached = scene.samples, 0
    counts = np.zeros(256, np.int64)
    for number, there, expected, padding in _compared(scene, "label"):
        given = np.flatnonzero(there != expected)
        attached += len(given)
        counts += np.bincount(there, minlength=256)
        if (expected[given] != IGNORE).any() or (given >= samples.table["n_own"][number]).any():
            yield f"sample {number}: {GROUP}/label differs from points/label at its index"
        if not scene.classes.in_3d[there].all():
            yield f"sample {number}: points of a class without surface (in_3d: false)"
        if (padding != IGNORE).any():
            yield f"sample {number}: {GROUP}/label is not filled behind its points"
    if attached != samples.record["attached_labels"]:
        yield f"{GROUP}/label: {attached:,} labels from pixels beside points, {samples.record['attached_labels']:,} when written"
    if {str(i): int(counts[i]) for i in np.flatnonzero(counts)} != samples.record["class_points"]:
        yield f"{GROUP}/label holds other class counts than when it was written"
