"""Scribbles from dense labels: one curve inside every region that survives an erosion of its rim.

The idea and the settings per dataset are Scribbles4All's (Boettcher et al., NeurIPS 2024; wbkit/Scribbles4All, the
configs of s4ScribbleGenerator). Each connected component of a class loses a rim, wider the larger it is; each part
that is left gets one curve. Unlike there, the curve follows the longest path through the middle of the part and is not
searched by trial; the erosion gives way where it would leave nothing of a whole class, so that poles and signs get
scribbles; the image's height is not squeezed before the erosion; and strokes are clipped to their class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rw3d_common.labels import IGNORE, U8
from rw3d_prep.sparse_labels.blobs import Blob, Mask, components, eroded
from rw3d_prep.sparse_labels.curves import F64, centre_curve, drawn, trim


@dataclass(frozen=True)
class Preset:
    """How the scribbles of a dataset are made; `area_share` is of the image, the rest is in pixels."""

    thickness: int
    """As OpenCV's polylines understands it: 3 is up to 5 px wide, 5 up to 7."""
    length: float
    """Share of each curve that is drawn, about its middle."""
    min_area: int
    """Smaller regions get no scribble."""
    erosion: tuple[int, int]
    """Rim taken off the smallest and the largest regions; linear in the area between."""
    area_share: tuple[float, float]
    """Share of the image that the smallest and the largest regions cover."""

    def rim(self, share: float) -> int:
        """Pixels to take off a region that covers `share` of the image."""
        least, most = self.area_share
        position = min(max((share - least) / (most - least), 0.0), 1.0)
        return int(self.erosion[0] + position * (self.erosion[1] - self.erosion[0]))


DEFAULT = Preset(thickness=3, length=0.9, min_area=80, erosion=(2, 20), area_share=(0.003, 0.15))
PRESETS = {
    "default": DEFAULT,
    "cityscapes": Preset(thickness=5, length=0.95, min_area=300, erosion=(2, 40), area_share=(0.007, 0.07)),
    "waymo": Preset(thickness=5, length=0.9, min_area=1500, erosion=(2, 40), area_share=(0.002, 0.05)),
    "kitti360": DEFAULT,  # only its drawing is published: thickness 3, length 0.9
}


@dataclass(frozen=True)
class Curve:
    """One scribble before trimming: (n, 2) float64 (row, column), rounded to tenths of a pixel."""

    train_id: int
    points: F64


def make_curves(dense: U8, preset: Preset, rng: np.random.Generator) -> list[Curve]:
    """The curves of dense train ids (H, W) uint8; 255 gets none. In the order of classes, then from the top."""
    return [
        Curve(train_id, np.round(centre_curve(blob.mask, blob.depth, rng) + blob.corner, 1))
        for train_id in np.flatnonzero(np.bincount(dense.ravel(), minlength=256)[:IGNORE]).tolist()
        for blob in thick_parts(dense == train_id, preset)
    ]


def draw_scribbles(curves: list[Curve], dense: U8, length: float, thickness: int) -> U8:
    """Train ids (H, W) uint8 on the middle share `length` of every curve, 255 elsewhere; no pixel differs from `dense`."""
    label = np.full_like(dense, IGNORE)
    for train_id in sorted({curve.train_id for curve in curves}):
        strokes = [trim(curve.points, length) for curve in curves if curve.train_id == train_id]
        label[drawn(strokes, thickness, dense.shape) & (dense == train_id)] = train_id
    return label


def thick_parts(region: Mask, preset: Preset) -> list[Blob]:
    """What erosion leaves of a class (H, W); where that is nothing, the largest part that a narrower rim leaves."""
    whole = components(region, preset.min_area)
    rims = [preset.rim(blob.area / region.size) for blob in whole]
    parts = _without_rims(whole, rims, preset.min_area)
    while not parts and any(rims):
        rims = [rim // 2 for rim in rims]
        parts = sorted(_without_rims(whole, rims, preset.min_area), key=lambda part: -part.area)[:1]
    return parts


def _without_rims(whole: list[Blob], rims: list[int], min_area: int) -> list[Blob]:
    return [part for blob, rim in zip(whole, rims, strict=True) for part in eroded(blob, rim, min_area)]
