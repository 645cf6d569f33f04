"""One training item: an image with its sparse label, and the 3D points that were drawn for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Sample:
    """A view and its precomputed subsample of points, as numpy arrays.

    Image part: `image` (H, W, 3) uint8 RGB; `label` (H, W) uint8 sparse train ids, 255 = unlabelled; `truth` (H, W)
    uint8 dense train ids for metrics only, or None.

    Point part, n rows each, the view's own points first: `position` (n, 3) float32 metres in the scene's world;
    `color` (n, 3) uint8; `confidence` (n,) float32, raw; `point_label` and `point_truth` (n,) uint8 train ids.

    Correspondences: own point i lies at `pixel[i]` = (row, column) of `image`, float32 (n_own, 2), integer coordinates
    at pixel centres. Augmentation moves them exactly, so they need not stay integers; a point that leaves the image
    has NaN there and keeps its row.

    `key` is the frame's key, split/sequence/frame id/camera#draw; `camera_to_world` (4, 4) float64 in the scene's
    world, OpenCV axes, tells which way is up.
    """

    key: str
    image: U8
    label: U8
    truth: U8 | None
    position: F32
    color: U8
    confidence: F32
    point_label: U8
    point_truth: U8 | None
    pixel: F32
    camera_to_world: npt.NDArray[np.float64]

    @property
    def n_own(self) -> int:
        """How many points come from this view."""
        return len(self.pixel)
