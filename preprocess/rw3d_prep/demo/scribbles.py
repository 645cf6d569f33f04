"""Strokes such as an annotator draws: one curve inside each region, wholly of the region's class."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
SMALLEST = 16  # pixels; nobody annotates a smaller region
PER_CLASS = 3  # strokes in one image
CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


def scribble(labels: U8, rng: np.random.Generator) -> U8:
    """Sparse labels (H, W) uint8 for dense raw ids `labels` (H, W): the raw id on strokes, 0 elsewhere.

    The largest regions of each class get a stroke each; slivers get none, unless they are all that a class has.
    """
    out = np.zeros_like(labels)
    for label in np.unique(labels):
        _, regions, stats, _ = cv2.connectedComponentsWithStats((labels == label).astype(np.uint8), connectivity=4)
        areas = stats[1:, cv2.CC_STAT_AREA]
        largest = np.argsort(-areas, kind="stable")[:PER_CLASS]
        for rank, region in enumerate(largest[areas[largest] >= SMALLEST]):
            inside, erosions = _eroded((regions == region + 1).astype(np.uint8))
            if erosions or rank == 0:
                out[_stroke(inside, erosions, rng)] = label
    return out


def _eroded(region: U8) -> tuple[U8, int]:
    """The region without its rim, wider the larger it is, and the number of pixels taken off."""
    wanted = 1 + round(7 * min(1.0, region.mean() / 0.03))
    for erosions in range(wanted):
        inner = cv2.erode(region, CROSS, borderValue=0)
        if inner.sum() < max(6, 0.2 * region.sum()):
            return region, erosions
        region = inner
    return region, wanted


def _stroke(inside: U8, erosions: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """A bent stroke (H, W) within an eroded region, 3 to 5 pixels wide at most (in a picture of 704 columns)."""
    start, control, end = _curve(np.argwhere(inside)[:, ::-1].astype(np.float64), rng)
    t = np.linspace(rng.uniform(0.05, 0.35), rng.uniform(0.65, 0.95), 60)[:, None]
    curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end
    width = min(1 + 2 * erosions, max(1, round(inside.shape[1] / 704 * rng.integers(3, 6))))
    canvas = np.zeros_like(inside)
    cv2.polylines(canvas, [np.round(curve).astype(np.int32)[:, None]], False, 1, int(width))
    return (canvas > 0) & (inside > 0)


def _curve(points: npt.NDArray[np.float64], rng: np.random.Generator) -> tuple[npt.NDArray[np.float64], ...]:
    """Start, control point and end (x, y) of a parabola through a region, from a random sample of its points (N, 2)."""
    sample = points[rng.integers(len(points), size=60)]
    start = sample[0]
    end = sample[np.argmax(np.linalg.norm(sample - start, axis=1))]
    middle = sample[np.argmin(np.linalg.norm(sample - (start + end) / 2, axis=1))]
    return start, 2 * middle - (start + end) / 2, end
