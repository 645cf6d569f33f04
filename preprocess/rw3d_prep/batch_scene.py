"""From a batch to its scene store: a pure function of the batch, the configuration and the files they name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from rw3d_common.cameras import F64
from rw3d_common.images import ImageSource
from rw3d_common.labels import IGNORE
from rw3d_common.manifest import dataset_entry
from rw3d_prep.attributes import scene_attributes
from rw3d_prep.batching import Batch
from rw3d_prep.config import PrepConfig
from rw3d_prep.frames import Frame
from rw3d_prep.fuse import FusedView, fuse_view
from rw3d_prep.label_folders import is_label_folder, label_encoding
from rw3d_prep.reconstruct import make_backend
from rw3d_prep.reconstruct.base import Backend, ViewGeometry
from rw3d_prep.sources import read_sources
from rw3d_prep.view_rows import ViewRows
from rw3d_prep.workers import step
from rw3d_prep.write import SceneWriter, store_path

backend_of = lru_cache(maxsize=1)(make_backend)  # one model per process, however many batches
FinishedView = tuple[ViewGeometry, FusedView]


def reconstruct_batch(batch: Batch, config: PrepConfig, root: Path, out: Path) -> dict[str, Any]:
    """Make one scene, one step after the other. Returns its counts.

    Raises:
        UserError: an input file that cannot be used; DiskFull when the disk is full.
    """
    backend = backend_of(config.backend)
    return write_scene(batch, config, root, out, backend, _finished_views(batch, config, backend))


def _finished_views(batch: Batch, config: PrepConfig, backend: Backend) -> Iterator[FinishedView]:
    geometries = backend.reconstruct(batch.frames, _world_offset(batch, backend.needs))
    for frame, geometry in zip(batch.frames, geometries, strict=True):
        yield geometry, fuse_frame(frame, geometry, config, batch.with_truth)
        step()


def fuse_frame(frame: Frame, geometry: ViewGeometry, config: PrepConfig, with_truth: bool) -> FusedView:
    """The points of one frame, with colour and labels from its files; `with_truth` if its scene has dense labels.

    Raises:
        UserError: a file of the frame cannot be used.
    """
    entry = dataset_entry(config.dataset.name)
    size = geometry.pixel_map.image_size
    sources = read_sources(frame, entry, label_encoding(config.dataset.labels, entry), size)
    truth = np.full(size, IGNORE, np.uint8) if sources.truth is None and with_truth else sources.truth
    percentile = config.fuse.confidence_percentile
    return fuse_view(geometry, sources.image, sources.label, truth, entry.class_map(), percentile, sources.excluded)


def write_scene(
    batch: Batch, config: PrepConfig, root: Path, out: Path, backend: Backend, views: Iterable[FinishedView]
) -> dict[str, Any]:
    """Write the scene of a batch from its views, which may still be in the making. Returns its counts.

    Raises:
        DiskFull: no space left. It and whatever `views` raises leave nothing on disk.
    """
    offset = _world_offset(batch, backend.needs)
    rows = ViewRows(root, offset, batch.shared)
    embed = any(any(_files_to_store(frame, config).values()) for frame in batch.frames)
    with SceneWriter(store_path(out, batch.name), batch.with_truth, embed) as writer:
        previous = None
        for frame, (geometry, fused) in zip(batch.frames, views, strict=True):
            writer.append(fused, _files_to_store(frame, config))
            rows.add(frame, geometry, fused, previous)
            previous = geometry
        attributes = scene_attributes(config, batch.split, batch.sequence, rows.root, backend.identity(), offset)
        sizes = {"asked": batch.asked, "used": len(batch.frames)}
        writer.publish(*rows.tables(), {**attributes, "batch": sizes})
        return {"views": len(batch.frames), "points": writer.offsets[-1]}


def _world_offset(batch: Batch, needs: Sequence[str]) -> F64:
    """The first camera's position, for backends that work in the dataset's world; it keeps float32 exact to microns."""
    pose = batch.frames[0].camera_to_world
    return np.zeros(3) if "camera_to_world" not in needs or pose is None else pose[:3, 3].copy()


def _files_to_store(frame: Frame, config: PrepConfig) -> dict[str, ImageSource | None]:
    """What a scene stores of a frame's images: all with `embed_images`, else those that training could not find.

    That is images that are no files of their own, and made labels, which lie outside the dataset.
    """
    made = is_label_folder(config.dataset.labels)
    files: dict[str, ImageSource | None] = {"image": frame.image, "label": frame.label, "truth": frame.truth}
    kept = {"label"} if made else set()
    return {
        kind: source if config.embed_images or kind in kept or not isinstance(source, Path) else None
        for kind, source in files.items()
    }
