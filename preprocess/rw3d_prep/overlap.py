"""What two overlapping scenes have in common: the views of the same frames, and the 3D points of their pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rw3d_common.cameras import F32, F64
from rw3d_common.scene import Scene

MOST = 20_000  # correspondences per pair of scenes, spread evenly over the views that they share


@dataclass(frozen=True)
class Correspondences:
    """The same source pixels in two scenes.

    `source` (n, 3) metres in the later scene's world, `target` (n, 3) in the earlier one's; `depth` (n,) metres along
    the optical axis of the earlier scene's view; `weights` (n,) in (0, 1]: the smaller of both confidence ranks.
    """

    source: F64
    target: F64
    depth: F64
    weights: F64
    views: int


def view_keys(scene: Scene) -> dict[tuple[int, str], int]:
    """(frame id, camera) of every view → its index."""
    cameras: Any = scene.views.attrs["cameras"]
    table = scene.view_table
    return {
        (int(frame), cameras[camera]): index
        for index, (frame, camera) in enumerate(zip(table["frame_id"], table["camera"], strict=True))
    }


def shared_views(earlier: Scene, later: Scene) -> npt.NDArray[np.int64]:
    """(k, 2) indices of the views of the same frames in both scenes, in the order of the later one."""
    there = view_keys(earlier)
    pairs = [(there[key], index) for key, index in view_keys(later).items() if key in there]
    return np.asarray(pairs, np.int64).reshape(-1, 2)


def correspondences(earlier: Scene, later: Scene) -> Correspondences:
    """The points of the pixels that both scenes have in their shared views; possibly none.

    A pixel of a frame shows one place of the world, whatever moves there, so its two points are the same place.

    Raises:
        UserError: the points of a scene cannot be read.
    """
    pairs = shared_views(earlier, later)
    columns: list[tuple[npt.NDArray[Any], ...]] = []
    for first, second in pairs:
        here, there = later.view(int(second)), earlier.view(int(first))
        _, i, j = np.intersect1d(here.pixel, there.pixel, return_indices=True)
        some = np.unique(np.linspace(0, len(i) - 1, MOST // len(pairs)).astype(np.int64)) if len(i) else i
        i, j = i[some], j[some]
        weights = np.minimum(_ranks(here.confidence)[i], _ranks(there.confidence)[j])
        columns.append((here.position[i], there.position[j], there.depth[j], weights))
    if not columns:
        return Correspondences(np.empty((0, 3)), np.empty((0, 3)), np.empty(0), np.empty(0), 0)
    source, target, depth, weights = (
        np.concatenate(column).astype(np.float64) for column in zip(*columns, strict=True)
    )
    ahead = depth > 0
    return Correspondences(source[ahead], target[ahead], depth[ahead], weights[ahead], len(pairs))


def _ranks(confidence: F32) -> F64:
    """Share of a view's points with no more confidence: raw values differ in meaning between models and runs."""
    return np.searchsorted(np.sort(confidence), confidence, side="right") / len(confidence)
