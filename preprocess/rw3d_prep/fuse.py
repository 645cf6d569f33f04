"""Fuse: from the geometry of one view to its points, each with colour and labels of the one source pixel it is from.

Per view, after Rewis3d (Ernst et al., CVPR 2026): keep valid and finite cells, drop the lowest `confidence_percentile`
per view, and look up colour and labels in the full-resolution source through the exact pixel map. No voxel merge and
no voting: one point ↔ one pixel, so the union of the views' points carries every sparse label that has geometry.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from pydantic import Field

from rw3d_common.cameras import F32, NO_PIXEL, PixelMap
from rw3d_common.config import Section
from rw3d_common.labels import IGNORE, U8, ClassMap
from rw3d_prep.reconstruct.base import ViewGeometry


class FuseConfig(Section):
    confidence_percentile: float = Field(10.0, ge=0, lt=100)
    """Share in % of each view's valid points, those of lowest confidence, that is dropped; ties at the limit stay."""


@dataclass(frozen=True)
class FusedView:
    """The points of one view: the columns of `points/`, n rows each, and the confidence limit that was applied."""

    position: F32
    color: U8
    confidence: F32
    pixel: npt.NDArray[np.uint32]
    label: U8
    truth: U8 | None
    confidence_threshold: float
    finite_share: float


@lru_cache(maxsize=8)  # views of a batch share a map; the index of a 518×392 grid is 0.8 MB
def _source_pixels(pixel_map: PixelMap) -> npt.NDArray[np.uint32]:
    index = pixel_map.nearest_source_pixels().ravel()
    index.flags.writeable = False
    return index


def fuse_view(
    geometry: ViewGeometry,
    image: U8,
    label: U8 | None,
    truth: U8 | None,
    classes: ClassMap,
    confidence_percentile: float,
    excluded: npt.NDArray[np.bool_] | None = None,
) -> FusedView:
    """The kept points of one view.

    Args:
        geometry: grids of H × W cells and their exact map to the source image.
        image: (H0, W0, 3) uint8 source image; label, truth: (H0, W0) uint8 train ids, or None.
        classes: pixels whose sparse label is a class without surface (sky) never become points.
        confidence_percentile: % of the valid points to drop per view.
        excluded: (H0, W0) bool, source pixels that never become points; None: there are none.
    """
    pixel_of_cell = _source_pixels(geometry.pixel_map)
    cell = np.flatnonzero(usable_cells(geometry).ravel() & (pixel_of_cell != NO_PIXEL))
    finite_share = cell.size / pixel_of_cell.size if pixel_of_cell.size else float("nan")
    pixel = pixel_of_cell.take(cell)
    if excluded is not None:
        wanted = np.flatnonzero(~excluded.ravel().take(pixel))
        cell, pixel = cell.take(wanted), pixel.take(wanted)
    if label is not None:
        surface = np.flatnonzero(classes.in_3d.take(label.ravel().take(pixel)))
        cell, pixel = cell.take(surface), pixel.take(surface)
    confidence = geometry.confidence.ravel().take(cell)
    threshold = _lowest_kept(confidence, confidence_percentile)
    kept = np.flatnonzero(confidence >= threshold)
    cell, pixel = cell.take(kept), pixel.take(kept)
    return FusedView(
        position=geometry.points.reshape(-1, 3).take(cell, axis=0),
        color=image.reshape(-1, 3).take(pixel, axis=0),
        confidence=confidence.take(kept),
        pixel=pixel,
        label=np.full(pixel.size, IGNORE, np.uint8) if label is None else label.ravel().take(pixel),
        truth=None if truth is None else truth.ravel().take(pixel),
        confidence_threshold=threshold,
        finite_share=finite_share,
    )


def usable_cells(geometry: ViewGeometry) -> npt.NDArray[np.bool_]:
    """(H, W) bool: the backend's validity and a finite position and a confidence that is a number (+inf is one)."""
    x, y, z = (geometry.points[..., axis] for axis in range(3))
    finite = np.isfinite(x + y + z)  # one NaN or infinity survives the sum; float32 metres cannot overflow it
    return geometry.valid & finite & ~np.isnan(geometry.confidence)


def _lowest_kept(confidence: F32, percentile: float) -> float:
    """The confidence of the lowest point that stays when ⌊percentile · n / 100⌋ lower ones are dropped."""
    if confidence.size == 0:
        return float("nan")
    rank = int(percentile * confidence.size / 100)
    # Selecting among the lowest values only is four times faster; a sample tells where they end, and is checked.
    sample = np.sort(confidence[::64])
    limit = sample[min(int((1.5 * percentile / 100 + 0.02) * sample.size), sample.size - 1)]
    lowest = confidence[confidence <= limit]
    return float(np.partition(lowest if lowest.size > rank else confidence, rank)[rank])
