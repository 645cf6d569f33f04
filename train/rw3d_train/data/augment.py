"""Augmentation of training items: one geometry for student and teacher, strong appearance for the student alone.

Strengths are those of Rewis3d (methods.md §1.8); each field names what the released code does differently (`official`).
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field

from rw3d_common.config import Section
from rw3d_train.data import photometric, points3d
from rw3d_train.data.geometry2d import (
    F64,
    Size,
    compose,
    crop_matrix,
    flip_matrix,
    resize_matrix,
    warp_image,
    warp_labels,
    warp_pixels,
)
from rw3d_train.data.sample import F32, U8, Sample


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("the lower bound comes first: swap the two")
    return bounds


def _odd(taps: int) -> int:
    if taps % 2 == 0:
        raise ValueError(f"a blur has a centre: take {taps - 1} or {taps + 1}")
    return taps


Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Pixels = Annotated[int, Field(ge=1)]
Bounds = Annotated[tuple[Positive, Positive], AfterValidator(_ordered)]


class GeometryConfig(Section):
    """Shared by student and teacher: resize, crop and flip of image, labels and correspondences."""

    crop: tuple[Pixels, Pixels] | None = (376, 512)
    """Height and width of what the network sees, pixels: KITTI-360's value; null keeps the (resized) size of each image."""
    resize: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Images are shrunk by this factor before all else, in the same step; the released code stores Cityscapes and Waymo
    at 0.5. Evaluate at the same `evaluate.scale`."""
    scale: Bounds = (0.5, 1.2)
    """Bounds of the uniform zoom r; (1, 1) switches it off."""
    distortion: Bounds = (0.9, 1.1)
    """Bounds of the uniform aspect distortion d: width is scaled by r·d, height by r/d; (1, 1) switches it off."""
    shrink: Literal["cover", "pad", "official"] = "cover"
    """What a zoom out does when the image would no longer fill the crop: `cover` enlarges both scales together just
    enough to fill it (never beyond the image's own size), so that no training pixel is spent on padding; `pad` pads
    with black and 255; `official` (RescaleAndDistort) never lets the height shrink, and then neither the width."""
    flip: Probability = 0.5
    """Probability of mirroring left and right."""


class PhotometricConfig(Section):
    """Student only, image only."""

    blur: Probability = 0.5
    """Probability of a Gaussian blur."""
    blur_kernel: Annotated[int, Field(ge=1), AfterValidator(_odd)] = 7
    """Taps of the blur, odd."""
    blur_sigma: Bounds = (0.1, 1.5)
    """Bounds of its uniform sigma, pixels."""
    augmix: Probability = 0.5
    """Probability of AugMix, tone operations only. `official` shears, shifts and turns the image (up to 0.033, W/27,
    3.3°) without its labels, saturates and sharpens it as well."""
    augmix_severity: Annotated[int, Field(ge=1, le=10)] = 2
    """AugMix severity, 1–10."""
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Colour jitter: brightness, contrast and saturation by factors from U(1 − jitter, 1 + jitter); no published
    configuration uses it."""
    cutout: tuple[Probability, ...] = (1.0, 0.5)
    """Probability of each cutout in turn. Labels and correspondences under a cutout stay, as in the released code."""
    cutout_size: tuple[Pixels, Pixels] = (90, 90)
    """Height and width of a cutout, pixels. `official` mixes up rows and columns; that is not offered."""


class PointConfig(Section):
    """The point cloud. Clamping and centring act on student and teacher, everything else on the student."""

    axis: points3d.Axis = "gravity"
    """What the cloud turns about: `gravity`, the world axis nearest to the camera's up, keeps ground below and heights;
    `official` is the optical axis of the view's camera, which turns streets upside down."""
    rotate: Probability = 0.5
    """Probability of a rotation by an angle from U(−π, π) about the camera's centre."""
    scale: Bounds = (0.9, 1.1)
    """Bounds of the uniform scale about the camera's centre; (1, 1) switches it off."""
    flip: tuple[Probability, Probability] = (0.5, 0.5)
    """Probabilities of mirroring along each of the two axes across `axis` (`official`: the camera's x and y)."""
    jitter_sigma: Annotated[float, Field(ge=0)] = 0.005
    """Standard deviation of the noise on each coordinate, metres; 0 switches it off."""
    jitter_limit: Positive = 0.02
    """The noise is clipped to this, metres."""
    center: bool = True
    """Move the bounding box's centre to 0 across `axis`, for student and teacher each alone, so that a cloud's
    coordinates do not tell where in the scene it lies."""
    clamp: tuple[Positive, Positive, Positive] | None = None
    """Half extents of a box around the camera, metres along the frame's axes (with `official`, the camera's x, y, z;
    KITTI-360 70, 30, 130), to which coordinates are clamped. Off by default: it flattens what lies
    outside onto the box's faces, and rows may not be dropped."""


class AugmentConfig(Section):
    """Everything that is drawn anew each time an item is read."""

    geometry: GeometryConfig = GeometryConfig()
    """Shared 2D geometry."""
    photometric: PhotometricConfig = PhotometricConfig()
    """Appearance of the student's image."""
    points: PointConfig = PointConfig()
    """The point cloud."""


def item_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of one item in one epoch: the same draws in every worker, rank and order of reading."""
    key = hashlib.blake2b(f"augment/{seed}/{epoch}/{index}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


def augment(sample: Sample, config: AugmentConfig, generator: np.random.Generator) -> tuple[Sample, Sample]:
    """(student, teacher) of one item: shared 2D geometry, strong student, weak teacher.

    Both have the same points in the same rows, the same labels and the same correspondences; arrays that do not differ
    are shared between them and with the input, so write to none of them in place. `camera_to_world` stays that of the
    scene: augmented positions are no longer seen by it.
    """
    matrix, size = draw_geometry((sample.image.shape[0], sample.image.shape[1]), config.geometry, generator)
    warped = warp_sample(sample, matrix, size)
    image = strong_image(warped.image, config.photometric, generator)
    student, teacher = augment_points(warped.position, warped.camera_to_world, config.points, generator)
    return replace(warped, image=image, position=student), replace(warped, position=teacher)


def draw_geometry(size: Size, config: GeometryConfig, generator: np.random.Generator) -> tuple[F64, Size]:
    """The matrix of one item's resize, crop and flip for an image of `size`, and the size of what comes out.

    Resized sizes are whole pixels, so that the image's edges fall on edges of pixels; offsets are whole pixels, uniform
    over all that keep the crop inside the image (or, where it is smaller, the image inside the crop).
    """
    crop = config.crop or (round(size[0] * config.resize), round(size[1] * config.resize))
    scales = draw_scales(size, crop, config, generator)
    resized = (max(1, round(size[0] * scales[0])), max(1, round(size[1] * scales[1])))
    spare = [have - want for have, want in zip(resized, crop, strict=True)]
    top, left = (int(generator.integers(min(n, 0), max(n, 0) + 1)) for n in spare)
    steps = [resize_matrix(size, resized), crop_matrix(top, left)]
    if generator.random() < config.flip:
        steps.append(flip_matrix(crop[1]))
    return compose(steps), crop


def draw_scales(size: Size, crop: Size, config: GeometryConfig, generator: np.random.Generator) -> tuple[float, float]:
    """Scales of rows and columns: r/d and r·d times `resize`, then what `shrink` says."""
    r, d = generator.uniform(*config.scale), generator.uniform(*config.distortion)
    rows, columns = r / d, r * d
    if config.shrink == "official" and rows < 1:
        rows, columns = 1.0, max(1.0, d * d)
    rows, columns = config.resize * rows, config.resize * columns
    if config.shrink == "cover":
        needed = [min(want / have, 1.0) for want, have in zip(crop, size, strict=True)]
        enlarge = max(1.0, needed[0] / rows, needed[1] / columns)
        rows, columns = rows * enlarge, columns * enlarge
    return rows, columns


def warp_sample(sample: Sample, matrix: F64, size: Size) -> Sample:
    """`sample` with image, label, truth and correspondences moved by `matrix` into an image of `size`."""
    if size == sample.image.shape[:2] and np.array_equal(matrix, np.eye(3)):
        return sample
    return replace(
        sample,
        image=warp_image(sample.image, matrix, size),
        label=warp_labels(sample.label, matrix, size),
        truth=None if sample.truth is None else warp_labels(sample.truth, matrix, size),
        pixel=warp_pixels(sample.pixel, matrix, size),
    )


def strong_image(image: U8, config: PhotometricConfig, generator: np.random.Generator) -> U8:
    """The student's image (H, W, 3) uint8: blur, AugMix, colour jitter, cutouts, in the released code's order."""
    if generator.random() < config.blur:
        image = photometric.gaussian_blur(image, generator.uniform(*config.blur_sigma), config.blur_kernel)
    if generator.random() < config.augmix:
        image = photometric.augmix(image, generator, config.augmix_severity)
    if config.jitter:
        image = photometric.color_jitter(image, generator, config.jitter)
    for probability in config.cutout:
        if generator.random() < probability:
            image = photometric.cutout(image, generator, config.cutout_size)
    return image


def augment_points(
    position: F32, camera_to_world: F64, config: PointConfig, generator: np.random.Generator
) -> tuple[F32, F32]:
    """Positions (n, 3) of student and teacher: turn, clamp, scale, flip, jitter, centre; teacher clamp and centre."""
    frame = points3d.frame_of(camera_to_world, config.axis)
    student = points3d.move(position, frame, draw_motion(config, generator), config.clamp)
    teacher = points3d.move(position, frame, points3d.Motion(), config.clamp)
    if config.jitter_sigma:
        student = points3d.jitter(student, generator, config.jitter_sigma, config.jitter_limit)
    if not config.center:
        return student, teacher
    return points3d.shift_to_center(student, frame), points3d.shift_to_center(teacher, frame)


def draw_motion(config: PointConfig, generator: np.random.Generator) -> points3d.Motion:
    """Rotation, scale and flips of one cloud."""
    turned, angle = generator.random() < config.rotate, generator.uniform(-np.pi, np.pi)
    first, second = (bool(generator.random() < p) for p in config.flip)
    return points3d.Motion(angle if turned else 0.0, generator.uniform(*config.scale), (first, second))
