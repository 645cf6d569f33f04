"""Connected parts of a class in a dense label, with their rim taken off."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Blob:
    """A connected part of a class in its bounding box, which starts at `corner` (row, column) of the image.

    `mask` (h, w); `depth` (h, w) float32 pixels to the nearest pixel outside the class or the image; `area` in pixels.
    """

    corner: tuple[int, int]
    mask: Mask
    depth: F32
    area: int


def components(region: Mask, min_area: int) -> list[Blob]:
    """The connected components (8 neighbours) of `region` (H, W) with at least `min_area` pixels."""
    left, top, width, height = cv2.boundingRect(region.astype(np.uint8))
    box = region[top : top + height, left : left + width]
    # One pixel of padding: the border of the image is a rim too.
    depth = cv2.distanceTransform(np.pad(box, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    return split(box, depth, (top, left), min_area)


def eroded(blob: Blob, rim: float, min_area: int) -> list[Blob]:
    """The parts of a blob, of at least `min_area` pixels, that are left when `rim` pixels are taken off all around."""
    return split(blob.mask & (blob.depth > rim), blob.depth, blob.corner, min_area)


def split(mask: Mask, depth: F32, corner: tuple[int, int], min_area: int) -> list[Blob]:
    """The connected parts of `mask` (h, w), whose first pixel is `corner` of the image, each in its own box, top first."""
    _, number, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    # OpenCV numbers parts as its threads come to them; by their boxes the order is the same on every machine.
    boxes = sorted((y, x, h, w, area, n) for n, (x, y, w, h, area) in enumerate(stats.tolist()) if n)
    return [
        Blob((corner[0] + y, corner[1] + x), number[y : y + h, x : x + w] == n, depth[y : y + h, x : x + w], area)
        for y, x, h, w, area, n in boxes
        if area >= min_area
    ]
