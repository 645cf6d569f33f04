"""Where a picture may show sky, so that stereo makes no points there.

Smooth sky matches at any disparity, and semi-global matching carries the disparity of houses and trees into it. No
label and no network is used. What counts as sky, above the horizon that the pose gives:

1. *seeds*: large, smooth areas, brighter in blue than Otsu's threshold, that touch the upper edge or lie no more than
   a cloud's edge away from one that does;
2. *colour*: pixels near the colour that a plane over the picture, fitted to the seeds, predicts (by the fit's own
   covariance: clouds lie along its long axis), and all that are brighter in blue than it;
3. *gaps*: specks near those that are bright against their surroundings, such as sky between leaves, where colours mix;
4. a *margin* around all of that, and below sky that reaches the horizon the strip of ground too far to be measured.

It errs towards sky: bright walls, signs and the outlines of trees are lost, about a tenth of the built-in street's
points, which costs points but makes no wrong ones. A gap of a pixel whose colour is mostly the leaves' could still slip
through; on the built-in street with three seeds none did (benchmarks/README.md). A picture without any sky can lose a bright wall that touches its upper edge.
Blue because foliage is darkest there, which is why canopy photographs are thresholded in that channel (Leblanc et al.,
Agric. For. Meteorol. 129, 2005); Otsu, IEEE Trans. SMC 9, 1979. Every length below is in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rw3d_common.cameras import F32, F64
from rw3d_common.labels import U8

Mask = npt.NDArray[np.bool_]

SEED_BLUR = 2.0  # standard deviation; sensor noise is then far below SEED_GRADIENT
SEED_GRADIENT = 12  # largest Sobel response (8 × grey levels per pixel) of smooth sky
SEED_AREA = 0.002  # share of the picture
SEED_BRIDGE = 8  # half the width of a cloud's edge, which is not smooth but joins two smooth areas
COLOUR_DISTANCE = 4.0  # Mahalanobis, from the predicted colour
COLOUR_NOISE = 6.0  # grey levels, added to the covariance: the seeds vary less than the rest of the sky does
COLOUR_SAMPLES = 4000
GAP_SIZE, GAP_CONTRAST, GAP_REACH = 7, 30, 40  # specks up to 7 pixels, 30 grey levels above what surrounds them
GAP_LEVEL, GAP_GROUND = 0.5, 0.8  # shares of the sky's blue: a speck is brighter, its surroundings are darker
MARGIN, GAP_MARGIN = 3, 2
BELOW = np.tan(np.radians(4.0))  # how far below the horizon colour is tested: roll, hills, errors of the pose
STRIP = np.tan(np.radians(1.75))  # a camera 1.6 m above the ground sees it beyond 52 m there


def horizon_row(intrinsics: F64, camera_to_world: F64) -> int:
    """Row where the principal column's rays run level.

    Up is the world axis, of the six, that is nearest to the picture's own up: worlds differ in which one it is
    (KITTI-360: +z), and no camera on a car is tilted by 45°. `intrinsics` (3, 3), `camera_to_world` (4, 4) float64.
    """
    rotation = camera_to_world[:3, :3]
    axis = int(np.argmax(np.abs(rotation[:, 1])))
    down = rotation[axis] * np.sign(rotation[axis, 1])  # in the camera's axes
    return round(float(intrinsics[1, 2] - intrinsics[1, 1] * down[2] / down[1]))


def sky_mask(image: U8, intrinsics: F64, camera_to_world: F64) -> Mask:
    """Pixels that may be sky, (H, W) bool, of an RGB image (H, W, 3) uint8; see the module for what that means.

    All False where no seed is found, for example when the horizon is above the picture.
    """
    import cv2

    height, width = image.shape[:2]
    horizon = min(horizon_row(intrinsics, camera_to_world), height)
    last = min(height, horizon + int(BELOW * intrinsics[1, 1]) + 1)
    mask = np.zeros((height, width), bool)
    if horizon < GAP_SIZE:
        return mask
    seeds = _seeds(image[:horizon], height * width)
    if np.count_nonzero(seeds) < 100:
        return mask
    colour = _fit_colour(image, seeds)
    like = _alike(image[:last], colour)
    like[:horizon] |= seeds
    sky = cv2.dilate(like.astype(np.uint8), _square(MARGIN))
    strip = round(STRIP * intrinsics[1, 1])
    sky |= cv2.dilate(_gaps(image[:last], sky, colour.blue, horizon + strip), _square(GAP_MARGIN))
    reaches = sky[max(horizon - 3, 0) : horizon + 1].any(axis=0)
    mask[:last] = sky > 0
    mask[max(horizon - 3, 0) : horizon + strip] |= reaches
    return mask


def _square(radius: int) -> U8:
    return np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)


def _seeds(above: U8, pixels: int) -> Mask:
    """Smooth, bright, large areas of the picture above the horizon (h, W, 3); the largest where none is at the edge."""
    import cv2

    soft = cv2.GaussianBlur(above, (0, 0), SEED_BLUR)
    slopes = (cv2.convertScaleAbs(cv2.Sobel(soft, cv2.CV_16S, x, 1 - x)) for x in (0, 1))
    gradient = np.maximum(*slopes).max(axis=2)
    blue = np.ascontiguousarray(soft[..., 2])
    threshold, _ = cv2.threshold(blue, 0, 255, cv2.THRESH_OTSU)
    even = ((blue > threshold) & (gradient < SEED_GRADIENT)).astype(np.uint8)
    even = cv2.erode(even, _square(2), borderValue=1)
    large = _chosen(even, lambda areas: areas[:, cv2.CC_STAT_AREA] > SEED_AREA * pixels)
    joined = cv2.dilate(large, _square(SEED_BRIDGE))
    return (large & _chosen(joined, lambda areas: areas[:, cv2.CC_STAT_TOP] == 0)) > 0


def _chosen(mask: U8, rule: Callable[[npt.NDArray[np.int32]], Mask]) -> U8:
    """The areas of `mask` (0 and 1) whose row of statistics (OpenCV's) the rule accepts; the largest if it takes none."""
    import cv2

    _, area_of_pixel, areas, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    chosen = rule(areas)
    chosen[0] = False  # what is not in the mask
    if not chosen.any() and len(areas) > 1:
        chosen[1 + areas[1:, cv2.CC_STAT_AREA].argmax()] = True
    return chosen[area_of_pixel].astype(np.uint8)


@dataclass(frozen=True)
class _Colour:
    """The sky's colour c + x·X + y·Y (rows of `plane` (3, 3), RGB; X, Y see `_plane`), and how it scatters.

    `whiten` (3, 3) turns a colour difference (row vector) into one of unit covariance; `blue` is the median.
    """

    plane: F64
    whiten: F64
    blue: float


def _fit_colour(image: U8, seeds: Mask) -> _Colour:
    """Least squares over at most COLOUR_SAMPLES seeds, twice again without what lies beyond three deviations."""
    row, column = np.nonzero(seeds)
    step = -(-len(row) // COLOUR_SAMPLES)
    row, column = row[::step], column[::step]
    x, y = _plane(image.shape[:2])
    design = np.stack([np.ones(len(row)), x[column], y[row]], axis=1)
    seen = image[row, column].astype(np.float64)
    used = np.ones(len(row), bool)
    for _ in range(3):
        some = design[used]
        # Small slopes are preferred: a small seed says little about the other end of the picture.
        ridge = np.diag([0, 0.02, 0.02]) * len(some)
        plane = np.linalg.solve(some.T @ some + ridge, some.T @ seen[used])
        rest = seen - design @ plane
        covariance = np.cov(rest[used].T) + COLOUR_NOISE**2 * np.eye(3)
        whiten = np.linalg.cholesky(np.linalg.inv(covariance))
        used = ((rest @ whiten) ** 2).sum(axis=1) < 9
    return _Colour(plane, whiten, float(np.median(seen[:, 2])))


def _plane(size: tuple[int, ...]) -> tuple[F32, F32]:
    """X of every column, −0.5..0.5, and Y of every row in the same unit, from the upper edge (a crop shares it)."""
    height, width = size
    unit = np.float32(1 / width)
    return np.arange(width, dtype=np.float32) * unit - np.float32(0.5), np.arange(height, dtype=np.float32) * unit


def _alike(image: U8, colour: _Colour) -> Mask:
    """Pixels (h, W) of the upper rows of a picture that look like its sky, or brighter."""
    import cv2

    x, y = _plane(image.shape[:2])
    plane = colour.plane.astype(np.float32)
    expected = plane[0] + plane[1] * x[None, :, None] + plane[2] * y[:, None, None]
    rest = image - np.clip(expected, 0, 255)
    white = cv2.transform(rest, colour.whiten.T.astype(np.float32))
    near = (white * white).sum(axis=2) < COLOUR_DISTANCE**2
    return near | (rest[..., 2] > 0) | (image[..., 2] > colour.blue)


def _gaps(image: U8, sky: U8, level: float, last: int) -> U8:
    """Specks (h, W) of 0 and 1 that are bright against their dark surroundings, near `sky` and above row `last`."""
    import cv2

    blue = np.ascontiguousarray(image[..., 2])
    ground = cv2.morphologyEx(blue, cv2.MORPH_OPEN, np.ones((GAP_SIZE, GAP_SIZE), np.uint8))
    speck = (cv2.subtract(blue, ground) > GAP_CONTRAST) & (blue > GAP_LEVEL * level) & (ground < GAP_GROUND * level)
    speck[last:] = False
    return speck.astype(np.uint8) & cv2.dilate(sky, _square(GAP_REACH))
