"""`samples/` of one scene: for every view, points drawn for it, written so that one chunk read gives one training item.

    make_samples(Path("stores/…/0000000000-0000000199.zarr"), SampleConfig(seed=1), workers=8)

The scene's points and an index over them are in memory once; after that a view costs what its sample costs. Threads
draw, gather and encode; one of them writes, in the order of (view, draw), so the bytes do not depend on their number.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from rw3d_common.config import config_hash, difference
from rw3d_common.errors import UserError
from rw3d_common.labels import IGNORE
from rw3d_common.scene import Scene, open_scene
from rw3d_common.scene_accumulated import POINT_ARRAY
from rw3d_common.scene_sample import GROUP, SceneSamples, has_samples
from rw3d_common.schema import SCHEMA_VERSION, ArraySpec, sample_arrays
from rw3d_prep.attach import attach_labels
from rw3d_prep.columns import read_column
from rw3d_prep.gather import gather
from rw3d_prep.sample_writer import EncodedColumn, SamplesWriter, remove_samples
from rw3d_prep.sampling import Drawn, SampleConfig, draw_sample
from rw3d_prep.sphere_index import SceneIndex
from rw3d_prep.workers import step

Item = TypeVar("Item")
Result = TypeVar("Result")
Arrays = dict[str, npt.NDArray[Any]]


def identity(scene: Scene, config: SampleConfig) -> dict[str, Any]:
    """All that decides the bytes of the samples, beside the scene itself; of accumulated labels, what made those.

    Raises:
        UserError: the scene has no accumulated labels where the configuration asks for them.
    """
    values = {**config.model_dump(mode="json"), "schema_version": SCHEMA_VERSION}
    if config.labels == "own":
        del values["labels"]  # samples from before this option stay the same
        return values
    return {**values, "accumulated": scene.accumulated.attrs["config_hash"]}


def wanted_views(scene: Scene, config: SampleConfig) -> npt.NDArray[np.int64]:
    """Indices of the views that get samples, rising: those with a label of the kind asked for, or all.

    Views that an earlier scene has too are left to it, or the same frame would be trained on twice as often.
    """
    labelled = scene.view_table["has_label"]
    if config.labels == "accumulated" and labelled.any():  # without one, no label was there to carry
        labelled = scene.accumulated.has_label
    wanted = labelled if config.views == "labelled" else np.ones_like(labelled)
    return np.flatnonzero(wanted & ~scene.view_table["shared"])


def is_sampled(scene: Scene, config: SampleConfig, overwrite: bool = False) -> bool:
    """True where the scene holds samples of this very configuration.

    Raises:
        UserError: it holds samples of another configuration, or damaged ones, that may not be overwritten.
    """
    if not has_samples(scene.path):
        return False
    try:
        there = SceneSamples(scene.path).attrs
    except UserError:
        if overwrite:
            return False
        raise
    if there["config_hash"] == config_hash(identity(scene, config)):
        return True
    if overwrite:
        return False
    changed = difference(there["config"], identity(scene, config))
    raise UserError(
        f"{scene.path / GROUP}: made with another configuration ({changed}); "
        "repeat with the old values, replace these samples with --overwrite, or delete them"
    )


def make_samples(store: Path, config: SampleConfig, workers: int = 1, overwrite: bool = False) -> dict[str, Any]:
    """Make the samples of one finished scene with `workers` threads; returns its completion record.

    Samples of the same configuration are kept as they are; `overwrite` replaces those of another one. Peak memory is
    the scene's points in memory, the index over them, and a few samples per thread.

    Raises:
        UserError: no finished scene, nothing to sample, samples of another configuration, or an unreadable file.
        DiskFull: no space left.
    """
    scene = open_scene(store)
    if is_sampled(scene, config, overwrite):
        return scene.samples.record
    views = wanted_views(scene, config)
    if not len(scene):
        raise UserError(f"{store}: this scene is a point cloud without views, and samples are drawn for views")
    if not len(views):
        raise UserError(f"{store}: no view has a sparse label; --views all samples every view")
    if config.labels == "accumulated":
        scene.accumulated.require_usable()
    if not scene.n_points and scene.has_geometry:
        raise UserError(f"{store}: this scene has no points; delete it and reconstruct it with another backend")
    cloud = _Cloud(scene, config)
    items = [(int(view), draw) for view in views for draw in range(config.draws)]
    with SamplesWriter(store, cloud.arrays) as writer:
        make = _Maker(cloud, config, writer.columns)
        rows = _Rows()
        for row, chunks in in_order(make, items, workers):
            writer.append(chunks)
            rows.add(row)
            step()
        if overwrite and has_samples(store):
            remove_samples(store)
        if not writer.publish(rows.table(), identity(scene, config), rows.counts()):
            is_sampled(scene, config)  # another process was first: its samples are the same, or this raises
    return SceneSamples(store).record


class _Cloud:
    """The points of a scene in memory, and where each view's lie."""

    def __init__(self, scene: Scene, config: SampleConfig) -> None:
        self.scene = scene
        attrs, table = scene.attrs, scene.view_table
        self.offset: npt.NDArray[np.int64] = table["point_offset"]
        cameras: Any = scene.views.attrs["cameras"]
        self.keys = [
            (attrs["split"], attrs["sequence"], int(frame), cameras[camera])
            for frame, camera in zip(table["frame_id"], table["camera"], strict=True)
        ]
        names = ["position", "color", "confidence", "pixel", "label", *(["truth"] if scene.has_truth else [])]
        self.columns = {name: read_column(scene, name) for name in names}
        if config.labels == "accumulated":
            self.columns["label"] = read_column(scene, POINT_ARRAY)
        self.index = SceneIndex.build(self.columns["position"], self.offset)
        self.config = config

    @cached_property
    def arrays(self) -> list[ArraySpec]:
        """The large arrays of the samples, no wider than this scene can fill."""
        points, own = sample_widths(self.config, self.offset, self.labelled)
        return list(sample_arrays(points, own, self.scene.has_truth))

    @cached_property
    def labelled(self) -> npt.NDArray[np.int64]:
        """(V,) number of points with a sparse label per view; zeros unless they have to be kept."""
        if not self.config.keep_labelled:
            return np.zeros(len(self.offset) - 1, np.int64)
        return np.diff(np.searchsorted(np.flatnonzero(self.columns["label"] != IGNORE), self.offset))

    def must(self, view: int) -> npt.NDArray[np.uint32] | None:
        """Rows of the view's labelled points, where those have to be kept."""
        if not self.config.keep_labelled:
            return None
        first, last = self.offset[view : view + 2]
        return (first + np.flatnonzero(self.columns["label"][first:last] != IGNORE)).astype(np.uint32)


def sample_widths(
    config: SampleConfig, offset: npt.NDArray[np.int64], labelled: npt.NDArray[np.int64]
) -> tuple[int, int]:
    """Rows that a sample has room for, and rows of its `pixel`: the most that any sample of this scene can need, or 1.

    `offset` (V + 1,) are the views' first points, `labelled` (V,) how many of a view's points are always kept.
    """
    own, total = np.diff(offset), int(offset[-1])
    points = min(config.points, total)
    if config.strategy == "random":
        most = own
    else:
        quota = round(config.points * config.own_share)
        short = points - (total - own)  # what the other views cannot fill
        most = np.minimum(own, np.maximum(np.maximum(quota, labelled), short))
    return max(points, 1), max(min(points, int(most.max())), 1)


@dataclass(frozen=True)
class _Row:
    """What the tables and counts keep of one sample."""

    view: int
    draw: int
    n_points: int
    n_own: int
    radius: float
    center: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]  # (256,) points by train id
    attached: int


class _Maker:
    """Makes one sample: draw, gather, attach labels, encode. Threads may share it; each gathers into its own buffers."""

    def __init__(self, cloud: _Cloud, config: SampleConfig, columns: Mapping[str, EncodedColumn]) -> None:
        self.cloud, self.config, self.columns = cloud, config, columns
        self._local = threading.local()

    def __call__(self, item: tuple[int, int]) -> tuple[_Row, dict[str, bytes]]:
        view, draw = item
        cloud = self.cloud
        drawn = draw_sample(cloud.index, view, self.config, (*cloud.keys[view], draw), cloud.must(view))
        arrays = self._gather(drawn)
        attached = self._attach(view, drawn, arrays) if self.config.keep_labelled else 0
        labels = np.bincount(arrays["label"][0, : len(drawn.index)], minlength=256)
        radius, center = float(drawn.radius), np.asarray(drawn.center, np.float32)
        row = _Row(view, draw, len(drawn.index), int(drawn.n_own), radius, center, labels, attached)
        return row, {name: column.encode_chunk(arrays[name]) for name, column in self.columns.items()}

    def _buffers(self) -> Arrays:
        if not hasattr(self._local, "buffers"):
            specs = (column.spec for column in self.columns.values())
            self._local.buffers = {spec.name: np.empty((1, *spec.row), spec.dtype) for spec in specs}
        buffers: Arrays = self._local.buffers
        return buffers

    def _gather(self, drawn: Drawn) -> Arrays:
        """The chunk (1, …) of every array, padded with fill values; valid until this thread's next call."""
        index, arrays = np.ascontiguousarray(drawn.index, np.uint32), self._buffers()
        room = arrays["index"].shape[1], arrays["pixel"].shape[1]
        beyond = len(index) > 0 and index.max() >= self.cloud.offset[-1]
        if len(index) > room[0] or drawn.n_own > room[1] or beyond:
            raise RuntimeError(
                f"drew {drawn.n_own} of {len(index)} points where there is room for {room[1]} of {room[0]}"
            )
        for name, chunk in arrays.items():
            rows = index[: drawn.n_own] if name == "pixel" else index
            if name == "index":
                chunk[0, : len(rows)] = rows
            else:
                gather(self.cloud.columns[name], rows, chunk[0])
            chunk[0, len(rows) :] = self.columns[name].spec.fill
        return arrays

    def _attach(self, view: int, drawn: Drawn, arrays: Arrays) -> int:
        """Label unlabelled own points from labelled pixels beside them; returns how many."""
        scene = self.cloud.scene
        size = tuple(scene.view_table["image_size"][view])
        own = self.config.labels == "own"
        image = scene.read_label(view) if own else scene.accumulated.label_image(view, size)
        if image is None:
            return 0
        pixel, label = arrays["pixel"][0, : drawn.n_own], arrays["label"][0]
        in_3d = scene.classes.in_3d
        place, given = attach_labels(image, in_3d, pixel, drawn.index[: drawn.n_own])
        free = label[place] == IGNORE
        label[place[free]] = given[free]
        return int(np.count_nonzero(free))


class _Rows:
    """Collects the tables and counts as samples stream past."""

    def __init__(self) -> None:
        self.rows: list[_Row] = []

    def add(self, row: _Row) -> None:
        self.rows.append(row)

    def table(self) -> Arrays:
        """The arrays with one row per sample."""
        names = ("view", "draw", "n_points", "n_own", "radius", "center")
        return {name: np.stack([np.asarray(getattr(row, name)) for row in self.rows]) for name in names}

    def counts(self) -> dict[str, Any]:
        """Totals over all samples; correspondences are own points, per sample."""
        labels = sum((row.labels for row in self.rows), np.zeros(256, np.int64))
        own = np.array([row.n_own for row in self.rows])
        return {
            "samples": len(self.rows),
            "views": len({row.view for row in self.rows}),
            "points": sum(row.n_points for row in self.rows),
            "own_points": int(own.sum()),
            "labelled_points": int(labels[:IGNORE].sum()),
            "attached_labels": sum(row.attached for row in self.rows),
            "class_points": {str(i): int(labels[i]) for i in np.flatnonzero(labels)},
            "correspondences": {"mean": float(own.mean()), "quantile_05": float(np.quantile(own, 0.05))},
        }


def in_order(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """`function` of every item, in the items' order, computed by `threads` threads a little ahead."""
    if threads <= 1:
        yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
