"""Coarse labels: simple polygons well inside each region, as annotators draw them in a hurry (Cityscapes' gtCoarse)."""

from __future__ import annotations

import cv2
import numpy as np

from rw3d_common.labels import IGNORE, U8
from rw3d_prep.sparse_labels.blobs import Blob, Mask, components, eroded

MIN_AREA = 1e-4  # of the image: nobody outlines a smaller region


def make_coarse(dense: U8, margin: float) -> U8:
    """Train ids (H, W) uint8 inside polygons, 255 elsewhere, for dense train ids (H, W); no pixel differs from `dense`.

    Every region loses a rim of `margin` of the image's height, but no more than half of its own half-width, so that
    thin things stay; its outline is then simplified by up to half as much.
    """
    label = np.full_like(dense, IGNORE)
    least, rim = max(1, round(MIN_AREA * dense.size)), margin * dense.shape[0]
    for train_id in np.flatnonzero(np.bincount(dense.ravel(), minlength=256)[:IGNORE]).tolist():
        region = dense == train_id
        for blob in components(region, least):
            taken = min(rim, float(blob.depth[blob.mask].max()) / 2)
            for part in eroded(blob, taken, 1):
                _fill(label, part, region, train_id, taken / 2)
    return label


def _fill(label: U8, part: Blob, region: Mask, train_id: int, tolerance: float) -> None:
    outlines, _ = cv2.findContours(part.mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    polygons = [cv2.approxPolyDP(outline, tolerance, True) for outline in outlines]
    canvas = np.zeros(part.mask.shape, np.uint8)
    cv2.fillPoly(canvas, polygons, 1)  # even-odd: holes stay holes
    (top, left), (height, width) = part.corner, part.mask.shape
    box = np.s_[top : top + height, left : left + width]
    label[box][(canvas != 0) & region[box]] = train_id
