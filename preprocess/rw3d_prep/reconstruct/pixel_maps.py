"""Which grid MapAnything reconstructs on, and where exactly its cells lie in the source image.

The rules are those of `mapanything.utils.image.load_images` (facebookresearch/map-anything f7ebafb, v1.1.1), observed
by running it: one grid size for all images of a call, from the mean of their aspect ratios; each image is first
resized so that it just contains the grid, then cropped around its centre. `resample` does that resize itself, so that
picture and map cannot disagree whatever version of the package is installed. All sizes are (height, width).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from rw3d_common.cameras import PixelMap
from rw3d_common.errors import UserError
from rw3d_common.labels import U8

Size = tuple[int, int]
Resize = Literal["fixed_mapping", "longest_side"]
PATCH = 14  # pixels per side of a DINOv2 patch: the model rejects sides that are no multiple of it

# resolution set → aspect ratio (width / height) → (width, height); MapAnything itself runs on multiples of 14 only
FIXED_MAPPING: dict[int, dict[float, Size]] = {
    518: {
        1.0: (518, 518),
        1.321: (518, 392),
        1.542: (518, 336),
        1.762: (518, 294),
        2.056: (518, 252),
        3.083: (518, 168),
        0.757: (392, 518),
        0.649: (336, 518),
        0.567: (294, 518),
        0.486: (252, 518),
    },
    512: {
        1.0: (512, 512),
        1.333: (512, 384),
        1.524: (512, 336),
        1.778: (512, 288),
        2.0: (512, 256),
        3.2: (512, 160),
        0.75: (384, 512),
        0.656: (336, 512),
        0.562: (288, 512),
        0.5: (256, 512),
    },
    504: {
        1.0: (504, 504),
        1.333: (504, 378),
        1.565: (504, 322),
        1.8: (504, 280),
        2.118: (504, 238),
        3.273: (504, 154),
        0.75: (378, 504),
        0.639: (322, 504),
        0.556: (280, 504),
        0.472: (238, 504),
    },
}


def target_size(image_sizes: Sequence[Size], resize: Resize, resolution: int) -> Size:
    """The grid that all images of one call share; `resolution` is the longest side in pixels.

    Raises:
        UserError: the images are so elongated that the grid's short side would vanish.
    """
    mean_aspect = sum(width / height for height, width in image_sizes) / len(image_sizes)
    if resize == "fixed_mapping":
        return fixed_mapping_target(mean_aspect, resolution)
    return longest_side_target(mean_aspect, resolution)


def fixed_mapping_target(mean_aspect: float, resolution: int) -> Size:
    """The listed grid of the nearest aspect ratio (width / height): sizes that the model was trained on."""
    table = FIXED_MAPPING[resolution]
    nearest = min(sorted(table), key=lambda aspect: abs(aspect - mean_aspect))  # of two equally near, the smaller
    width, height = table[nearest]
    return height, width


def longest_side_target(mean_aspect: float, longest: int) -> Size:
    """A grid `longest` pixels long and as high as the aspect ratio asks, in whole patches (half a patch to even).

    Raises:
        UserError: the short side would have no patch at all.
    """
    elongation = max(mean_aspect, 1 / mean_aspect)
    # load_images multiplies by the ratio of portrait images, where it divides by that of landscape ones
    patches = longest // PATCH
    shortest = round(patches / mean_aspect if mean_aspect >= 1 else patches * mean_aspect) * PATCH
    if shortest == 0:
        raise UserError(
            f"images {elongation:.0f} times as long as wide have no grid at resolution {longest}; "
            "cut them into pieces, or use --set backend.resize=fixed_mapping"
        )
    return (shortest, longest) if mean_aspect >= 1 else (longest, shortest)


def pixel_map_for(image_size: Size, target: Size) -> PixelMap:
    """The exact map from the cells of grid `target` to the pixels of an image of `image_size`.

    u = (column + left + 0.5)·W/W2 − 0.5 and likewise v, with W2 the resized width and `left` the crop.
    """
    resized, top, left = _resize_and_crop(image_size, target)
    return PixelMap.resize_then_crop(image_size, resized, target, left, top)


def resample(picture: U8, target: Size) -> U8:
    """An image (H, W, 3) uint8 on the grid `target`: Lanczos when shrinking, bicubic when enlarging, then cropped."""
    from PIL import Image

    resized, top, left = _resize_and_crop((picture.shape[0], picture.shape[1]), target)
    shrinks = _scale((picture.shape[0], picture.shape[1]), target) < 1
    kernel = Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC
    image = Image.fromarray(picture).resize(resized[::-1], resample=kernel)
    return np.asarray(image.crop((left, top, left + target[1], top + target[0])))


def _scale(image_size: Size, target: Size) -> float:
    # 1e-8 keeps the floor of the resized side from falling one pixel short of the grid
    return max(target[0] / image_size[0], target[1] / image_size[1]) + 1e-8


def _resize_and_crop(image_size: Size, target: Size) -> tuple[Size, int, int]:
    """Resized (height, width), and the top and left of the centred crop."""
    scale = _scale(image_size, target)
    height, width = math.floor(image_size[0] * scale), math.floor(image_size[1] * scale)
    return (height, width), (height - target[0]) // 2, (width - target[1]) // 2
