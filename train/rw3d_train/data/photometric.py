"""Photometric augmentations of an image (H, W, 3) uint8 RGB: none of them moves a pixel.

Every function returns a new array and leaves its input as it is; labels and correspondences stay true untouched.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]
Histogram = npt.NDArray[np.int64]  # (3, 256) pixels per channel and value

_LEVELS = np.arange(256)
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601-2, as Pillow's mode L
_STEPS = 9  # AugMix counts magnitudes in tenths; severity s draws one of the first s of 0/9, 1/9, … of the maximum


def gaussian_blur(image: U8, sigma: float, kernel: int = 7) -> U8:
    """Convolution with a Gaussian of `sigma` pixels cut to `kernel` (odd) taps and normalised; borders are repeated."""
    reach = kernel // 2
    taps = np.exp(-0.5 * (np.arange(reach + 1) / sigma) ** 2)
    taps /= taps[0] + 2 * taps[1:].sum()
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    columns = _symmetric(padded.astype(np.float32), taps, axis=0)
    blurred = _symmetric(columns, taps, axis=1)
    blurred += np.float32(0.5)
    return blurred.astype(np.uint8)


def augmix(image: U8, generator: np.random.Generator, severity: int = 2, width: int = 3, alpha: float = 1.0) -> U8:
    """AugMix (Hendrycks et al. 2020) of tone operations: `width` chains of 1–3 operations, mixed with the image.

    The geometric operations of AugMix are left out: shared geometry is done once, in `geometry2d`, for image, labels and
    correspondences; here, for the student alone, they would part it from its teacher, pixel by pixel. The operations
    left (auto-contrast, equalise, posterise, solarise, brightness, contrast) are each one table per channel, and so are
    their chains and mixtures: one look-up per pixel does it all, whatever the width.
    """
    histogram = channel_histogram(image)
    keep, _ = generator.dirichlet([alpha, alpha])
    weights = generator.dirichlet([alpha] * width) * (1 - keep)
    mixed = keep * np.tile(_LEVELS, (3, 1))
    for weight in weights:
        mixed = mixed + weight * _tone_chain(histogram, generator, severity)
    return apply_table(image, np.rint(mixed).astype(np.uint8))


def color_jitter(image: U8, generator: np.random.Generator, strength: float) -> U8:
    """Brightness, contrast and saturation, each by a factor drawn from U(1 − strength, 1 + strength)."""
    picture = Image.fromarray(image)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = enhance(picture).enhance(generator.uniform(1 - strength, 1 + strength))
    return np.array(picture)


def cutout(image: U8, generator: np.random.Generator, size: tuple[int, int], fill: int = 0) -> U8:
    """A rectangle of `size` (height, width) pixels set to `fill`, uniformly placed and wholly inside the image.

    The released code draws x from the width and then indexes rows with it, so that part of its cutouts is empty and
    the right of the image is never cut (methods.md §1.8); rows are rows here. Larger than the image: all of it.
    """
    top, left = (int(generator.integers(max(n - cut, 0) + 1)) for n, cut in zip(image.shape[:2], size, strict=True))
    holed = image.copy()
    holed[top : top + size[0], left : left + size[1]] = fill
    return holed


def channel_histogram(image: U8) -> Histogram:
    """Pixels per value of each channel, (3, 256) int64."""
    return np.array(Image.fromarray(image).histogram(), np.int64).reshape(3, 256)


def apply_table(image: U8, table: U8) -> U8:
    """Each channel looked up in its row of `table` (3, 256) uint8."""
    return np.array(Image.fromarray(image).point(table.ravel().tolist()))


def autocontrast(histogram: Histogram) -> U8:
    """Table (3, 256) that stretches each channel's range to 0..255; a channel of one value stays."""
    tables = np.tile(_LEVELS.astype(np.float64), (3, 1))
    for channel, counts in enumerate(histogram):
        used = np.flatnonzero(counts)
        if len(used) > 1:
            tables[channel] = (_LEVELS - used[0]) * (255 / (used[-1] - used[0]))
    return _as_table(tables)


def equalize(histogram: Histogram) -> U8:
    """Table (3, 256) that spreads each channel's values evenly (Pillow's rule); a channel of one value stays."""
    tables = np.tile(_LEVELS, (3, 1))
    for channel, counts in enumerate(histogram):
        used = counts[counts > 0]
        step = int(used.sum() - used[-1]) // 255 if len(used) else 0
        if step:
            tables[channel] = (step // 2 + np.cumsum(counts) - counts) // step
    return _as_table(tables)


def posterize(histogram: Histogram, bits: int) -> U8:
    """Table (3, 256) that keeps the `bits` highest of eight bits."""
    return _as_table(np.tile(_LEVELS & (0xFF << (8 - bits)), (3, 1)))


def solarize(histogram: Histogram, threshold: float) -> U8:
    """Table (3, 256) that inverts values above `threshold`."""
    return _as_table(np.tile(np.where(threshold < _LEVELS, 255 - _LEVELS, _LEVELS), (3, 1)))


def brightness(histogram: Histogram, factor: float) -> U8:
    """Table (3, 256) that multiplies by `factor`."""
    return _as_table(np.tile(_LEVELS * factor, (3, 1)))


def contrast(histogram: Histogram, factor: float) -> U8:
    """Table (3, 256) that scales the distance to the image's mean grey by `factor`."""
    grey = float(_LUMA @ (histogram @ _LEVELS) / max(int(histogram[0].sum()), 1))
    return _as_table(np.tile(grey + (_LEVELS - grey) * factor, (3, 1)))


def _tone_chain(histogram: Histogram, generator: np.random.Generator, severity: int) -> U8:
    """One to three drawn operations as one table; each sees the histogram that those before it leave."""
    total = _as_table(np.tile(_LEVELS, (3, 1)))
    for _ in range(int(generator.integers(1, 4))):
        table = _draw_tone(histogram, generator, severity)
        total = np.take_along_axis(table, total.astype(np.int64), axis=1)
        histogram = np.stack([np.bincount(t, h, 256) for t, h in zip(table, histogram, strict=True)]).astype(np.int64)
    return total


def _draw_tone(histogram: Histogram, generator: np.random.Generator, severity: int) -> U8:
    kind, strength = int(generator.integers(6)), int(generator.integers(severity)) / _STEPS
    factor = 1 + 0.9 * strength * (1 if generator.random() < 0.5 else -1)
    match kind:
        case 0:
            return autocontrast(histogram)
        case 1:
            return equalize(histogram)
        case 2:
            return posterize(histogram, 4 - round(4 * strength))
        case 3:
            return solarize(histogram, 255 * (1 - strength))
        case 4:
            return brightness(histogram, factor)
        case _:
            return contrast(histogram, factor)


def _as_table(values: npt.NDArray[np.generic]) -> U8:
    return np.clip(np.rint(values.astype(np.float64)), 0, 255).astype(np.uint8)


def _symmetric(image: F32, taps: F64, axis: int) -> F32:
    """Correlation along `axis` with taps[0] in the centre and taps[k] at ±k; the axis loses both reaches."""
    reach = len(taps) - 1
    kept = image.shape[axis] - 2 * reach

    def shifted(offset: int) -> F32:
        start = reach + offset
        return image[start : start + kept] if axis == 0 else image[:, start : start + kept]

    total: F32 = shifted(0) * np.float32(taps[0])
    pair = np.empty_like(total)
    for offset in range(1, reach + 1):
        np.add(shifted(-offset), shifted(offset), out=pair)
        pair *= np.float32(taps[offset])
        total += pair
    return total
