"""Labelled point clouds that belong to no image: each becomes a scene store without views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rw3d_common.cameras import NO_PIXEL
from rw3d_common.errors import UserError
from rw3d_common.labels import IGNORE
from rw3d_common.manifest import dataset_entry
from rw3d_common.schema import VIEWS
from rw3d_prep.attributes import scene_attributes
from rw3d_prep.config import PrepConfig
from rw3d_prep.frames import Cloud
from rw3d_prep.reconstruct import make_backend
from rw3d_prep.workers import step
from rw3d_prep.write import SceneWriter, store_path


def write_cloud(cloud: Cloud, config: PrepConfig, root: Path, out: Path) -> dict[str, Any]:
    """Make the scene of one cloud: a pure function of its arguments and the files they name. Returns counts and notes.

    All points lie before `point_offset[0]`. They have no source pixel, no sparse label, and confidence 1, since nothing
    was reconstructed. The scene's world is the dataset's minus whole metres, so float32 keeps micrometres.

    Raises:
        UserError: a file that cannot be used, or unknown label ids; DiskFull when the disk is full.
    """
    points = cloud.source.read()
    if not len(points.position) or not np.isfinite(points.position).all():
        state = "holds no point" if not len(points.position) else "holds coordinates that are not finite"
        raise UserError(f"{cloud.source.path}: {state}; copy the official file again")
    truth = dataset_entry(config.dataset.name).truth_map().to_train_ids(points.truth, str(cloud.source.path))
    world_offset = np.floor(points.position.min(axis=0))
    count = len(truth)
    columns = {
        "position": (points.position - world_offset).astype(np.float32),
        "color": points.color,
        "confidence": np.ones(count, np.float32),
        "pixel": np.full(count, NO_PIXEL, np.uint32),
        "label": np.full(count, IGNORE, np.uint8),
        "truth": truth,
    }
    backend = {**make_backend(config.backend).identity(), "model": "measured points"}
    with SceneWriter(store_path(out, cloud.name), with_truth=True) as writer:
        writer.append_without_view(columns)
        no_views = {spec.name: np.empty((0, *spec.row), spec.dtype) for spec in VIEWS if spec.name != "point_offset"}
        no_strings: dict[str, list[str]] = {"cameras": [], "images": [], "labels": [], "truths": []}
        attributes = scene_attributes(config, cloud.split, cloud.sequence, root.resolve(), backend, world_offset)
        writer.publish(no_views, no_strings, attributes)
    step()
    return {"views": 0, "points": count, "notes": list(points.notes)}
