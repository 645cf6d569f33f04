"""What `rw3d-prep verify` checks of accumulated labels: the record, the declarations, and labels against one another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from rw3d_common.errors import UserError
from rw3d_common.labels import IGNORE
from rw3d_common.scene import Scene
from rw3d_common.scene_accumulated import GROUP, POINT_ARRAY, has_accumulated
from rw3d_common.schema import ACCUMULATED_OFFSET, LABEL_ACCUMULATED
from rw3d_prep.verify_samples import seal_faults


def record_faults(scene: Scene) -> list[str]:
    """Why the accumulated labels of a scene cannot be read at all, or what a stopped run left of them."""
    if not has_accumulated(scene.path):
        left = scene.path / "points" / POINT_ARRAY
        return [f"points/{POINT_ARRAY} was left by a stopped `rw3d-prep accumulate`; run it again"] * left.exists()
    try:
        return seal_faults(GROUP, dict(scene.accumulated.attrs))
    except UserError as error:
        return [str(error)]


def accumulated_files(scene: Scene) -> dict[str, dict[str, Any]]:
    """SHA-256 and size of every file of the accumulated labels but their own zarr.json, by path in the store."""
    files: dict[str, dict[str, Any]] = scene.accumulated.record["files"]
    return files


def value_faults(scene: Scene) -> Iterator[str]:
    """Faults in declarations and values, one sentence each.

    Raises:
        UserError: an array cannot be read.
    """
    labels = scene.accumulated
    points, own = labels.point_labels(), scene.read("label")
    if points.shape != (scene.n_points,) or points.dtype != np.dtype(LABEL_ACCUMULATED.dtype):
        yield f"points/{POINT_ARRAY} is {points.shape} {points.dtype}, expected ({scene.n_points},) {LABEL_ACCUMULATED.dtype}"
        return
    if (points[own != IGNORE] != own[own != IGNORE]).any():
        yield f"points/{POINT_ARRAY} contradicts own labels in points/label"
    if not scene.classes.in_3d[points].all() or (points[points != IGNORE] >= len(scene.classes)).any():
        yield f"points/{POINT_ARRAY} holds classes without surface, or train ids that no class has"
    if len(labels.has_label) != len(scene):
        yield f"{GROUP}/{ACCUMULATED_OFFSET.name} is of {len(labels.has_label)} views, the scene of {len(scene)}"
        return
    offset, table = scene.view_table["point_offset"], scene.view_table
    for view in range(len(scene)):
        size = (int(table["image_size"][view, 0]), int(table["image_size"][view, 1]))
        image, wanted = labels.label_image(view, size), scene.read_label(view)
        if image is not None and wanted is not None and (image[wanted != IGNORE] != wanted[wanted != IGNORE]).any():
            yield f"view {view}: {GROUP}/label contradicts the view's own labels"
        if (table["pixel_map"][view, [0, 2]] < 1).any():  # a grid finer than the image: points share pixels
            continue
        rows = slice(int(offset[view]), int(offset[view + 1]))
        shown = np.full(size, IGNORE, np.uint8) if image is None else image
        if (shown.ravel()[scene.view(view).pixel] != points[rows]).any():
            yield f"view {view}: {GROUP}/label differs from points/{POINT_ARRAY} at the points' pixels"
