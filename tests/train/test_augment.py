"""Augmentation against slow per-pixel references, and that geometry stays true on ramps and on real frames."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from rw3d_common.config import validate
from rw3d_common.errors import UserError
from rw3d_train.data import photometric, points3d
from rw3d_train.data.augment import AugmentConfig, augment, draw_geometry, item_generator, strong_image, warp_sample
from rw3d_train.data.geometry2d import (
    compose,
    crop_matrix,
    flip_matrix,
    resize_matrix,
    warp_image,
    warp_labels,
    warp_pixels,
)
from rw3d_train.data.sample import Sample

SEVEN_SCENES = Path(__file__).parents[2].parent / "shared" / "data" / "7scenes_rgbd_seq"
STILL = {"crop": None, "scale": (1, 1), "distortion": (1, 1), "flip": 0}
PLAIN = {"blur": 0, "augmix": 0, "cutout": ()}
UNMOVED = {"rotate": 0, "scale": (1, 1), "flip": (0, 0), "jitter_sigma": 0, "center": False}
sizes = st.tuples(st.integers(1, 23), st.integers(1, 23))


def config(geometry=STILL, photo=PLAIN, points=UNMOVED) -> AugmentConfig:
    return AugmentConfig.model_validate({"geometry": geometry, "photometric": photo, "points": points})


def camera(pitch: float = 0.0) -> np.ndarray:
    """A camera in a z-up world that looks along +y, pitched down by `pitch` radians, at (1, 2, 3)."""
    c, s = math.cos(pitch), math.sin(pitch)
    pose = np.eye(4)
    pose[:3, :3] = np.array([[1, 0, 0], [0, -s, c], [0, -c, -s]])
    pose[:3, 3] = 1, 2, 3
    return pose


def item(size=(40, 60), points=500, own=300, truth=True, seed=0) -> Sample:
    g = np.random.default_rng(seed)
    own = min(own, size[0] * size[1])
    flat = g.choice(size[0] * size[1], own, replace=False)
    labels = g.integers(0, 20, (2, *size), dtype=np.uint8)
    return Sample(
        key="train/seq/0001/cam#0",
        image=g.integers(0, 256, (*size, 3), dtype=np.uint8),
        label=labels[0],
        truth=labels[1] if truth else None,
        position=g.normal(0, 10, (points, 3)).astype(np.float32),
        color=g.integers(0, 256, (points, 3), dtype=np.uint8),
        confidence=g.random(points, dtype=np.float32),
        point_label=g.integers(0, 20, points, dtype=np.uint8),
        point_truth=None,
        pixel=np.stack(np.unravel_index(flat, size), axis=1).astype(np.float32),
        camera_to_world=camera(0.3),
    )


def same(one: Sample, two: Sample) -> bool:
    pairs = [(getattr(one, f.name), getattr(two, f.name)) for f in fields(Sample)]
    return all(
        a is b or (a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
        if a is not None
        else a is b
        for a, b in pairs
        if not isinstance(a, str)
    )


def some_matrix(size, resized, top, left, width, flip):
    steps = [resize_matrix(size, resized), crop_matrix(top, left)]
    return compose(steps + [flip_matrix(width)] * flip)


def source_of(matrix, row, column):
    """The formula, one pixel at a time: output pixel → source position, by the inverse of the matrix."""
    return (np.linalg.inv(matrix) @ [row, column, 1.0])[:2]


def bilinear(image, row, column):
    """Value of `image` at a fractional position; border pixels continue for ever."""
    h, w = image.shape[:2]
    r, c = math.floor(row), math.floor(column)
    total = np.zeros(image.shape[2:])
    for i in (r, r + 1):
        for j in (c, c + 1):
            weight = (1 - abs(row - i)) * (1 - abs(column - j))
            total += weight * image[min(max(i, 0), h - 1), min(max(j, 0), w - 1)]
    return total


geometries = st.builds(
    lambda size, resized, out, top, left, flip: (size, out, some_matrix(size, resized, top, left, out[1], flip)),
    sizes, sizes, sizes, st.integers(-6, 12), st.integers(-6, 12), st.booleans(),
)  # fmt: skip


@settings(max_examples=60)
@given(geometries)
def test_image_and_labels_equal_the_slow_formula(geometry):
    size, out, matrix = geometry
    sample = item(size)
    image, label = warp_image(sample.image, matrix, out), warp_labels(sample.label, matrix, out)
    for row, column in np.ndindex(out):
        r, c = source_of(matrix, row, column)
        if min(abs(r + 0.5), abs(r - size[0] + 0.5), abs(c + 0.5), abs(c - size[1] + 0.5)) < 1e-6:
            continue  # on the image's very edge: padding or not is a matter of rounding in this reference
        inside = -0.5 < r < size[0] - 0.5 and -0.5 < c < size[1] - 0.5
        if not inside:
            assert not image[row, column].any() and label[row, column] == 255
            continue
        assert np.abs(image[row, column] - bilinear(sample.image, r, c)).max() <= 0.5 + 1e-3
        distance = (np.arange(size[0]) - r)[:, None] ** 2 + (np.arange(size[1]) - c)[None, :] ** 2
        assert label[row, column] in sample.label[distance <= distance.min() + 1e-6]


def test_a_tie_takes_the_larger_index():
    labels = np.arange(8, dtype=np.uint8).reshape(1, 8)
    assert warp_labels(labels, resize_matrix((1, 8), (1, 4)), (1, 4)).tolist() == [[1, 3, 5, 7]]
    flipped = compose([resize_matrix((1, 8), (1, 4)), flip_matrix(4)])
    assert warp_labels(labels, flipped, (1, 4)).tolist() == [[7, 5, 3, 1]]


@settings(max_examples=100)
@given(geometries)
def test_correspondences_are_the_matrix(geometry):
    size, out, matrix = geometry
    sample = item(size)
    moved = warp_pixels(sample.pixel, matrix, out)
    assert moved.shape == sample.pixel.shape
    for before, after in zip(sample.pixel, moved, strict=True):
        expected = (matrix @ [*before, 1.0])[:2]
        if np.isnan(after).any():
            assert np.isnan(after).all()
            assert (expected < -0.5 + 1e-4).any() or (expected > np.array(out) - 0.5 - 1e-4).any()
        else:
            np.testing.assert_allclose(after, expected, atol=1e-5)
            nearest = np.floor(after + np.float32(0.5)).astype(int)
            assert (nearest >= 0).all() and (nearest < out).all()


def test_a_correspondence_lost_before_stays_lost():
    lost = np.array([[np.nan, np.nan], [1, 1]], np.float32)
    assert np.isnan(warp_pixels(lost, np.eye(3), (4, 4))).tolist() == [[True, True], [False, False]]


@settings(max_examples=30)
@given(sizes, st.booleans(), st.integers(0, 5))
def test_identity_returns_the_input_bit_for_bit(size, truth, epoch):
    sample = item(size, truth=truth)
    student, teacher = augment(sample, config(), item_generator(0, epoch, 0))
    assert same(student, sample) and same(teacher, sample)


@settings(max_examples=30)
@given(sizes)
def test_flipping_twice_is_the_identity(size):
    sample = item(size)
    flip = flip_matrix(size[1])
    once = warp_sample(sample, flip, size)
    assert np.array_equal(once.image, sample.image[:, ::-1]) and np.array_equal(once.label, sample.label[:, ::-1])
    assert same(warp_sample(once, flip, size), sample)
    assert np.array_equal(compose([flip, flip]), np.eye(3))


@settings(max_examples=50)
@given(geometries, st.integers(0, 4), st.integers(0, 4))
def test_one_matrix_does_what_the_sequence_does(geometry, top, left):
    """Crops and flips are exact, so after a first resize the sequence gives the composition's bytes."""
    size, out, matrix = geometry
    assume(out[0] > top and out[1] > left)
    crop, small = crop_matrix(top, left), (out[0] - top, out[1] - left)
    sample = item(size)
    steps = warp_sample(warp_sample(warp_sample(sample, matrix, out), crop, small), flip_matrix(small[1]), small)
    once = warp_sample(sample, compose([matrix, crop, flip_matrix(small[1])]), small)
    assert np.array_equal(steps.label, once.label)
    assert np.abs(steps.image.astype(int) - once.image).max(initial=0) <= 1
    kept = ~np.isnan(steps.pixel)
    np.testing.assert_allclose(steps.pixel[kept], once.pixel[kept], atol=1e-5)


def test_a_matrix_that_rotates_is_refused():
    with pytest.raises(ValueError, match="one scale and shift per axis"):
        warp_labels(np.zeros((2, 2), np.uint8), np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1.0]]), (2, 2))


def ramp(size) -> np.ndarray:
    """Red grows with the row, green with the column, blue with their sum: colour names the place."""
    rows, columns = np.meshgrid(*(np.linspace(5, 250, n) for n in size), indexing="ij")
    return np.rint(np.stack([rows, columns, (rows + columns) / 2], axis=2)).astype(np.uint8)


def sampled(image, pixels) -> np.ndarray:
    """Bilinear values of `image` at (n, 2) fractional pixels, vectorised."""
    limit = np.array(image.shape[:2]) - 1
    low = np.clip(np.floor(pixels).astype(int), 0, limit)
    high = np.minimum(low + 1, limit)
    (wr, wc) = np.clip(pixels - low, 0, 1).T[..., None]
    top = image[low[:, 0], low[:, 1]] * (1 - wc) + image[low[:, 0], high[:, 1]] * wc
    bottom = image[high[:, 0], low[:, 1]] * (1 - wc) + image[high[:, 0], high[:, 1]] * wc
    return top * (1 - wr) + bottom * wr


def test_points_keep_their_colour_through_1000_augmentations():
    """The ramp's steps are ≥ 1 level per pixel; half a pixel of error would show in the mean difference."""
    size = (60, 90)
    sample = replace(item(size, own=800), image=ramp(size))
    seen = sample.image[tuple(sample.pixel.astype(int).T)].astype(float)
    bias = []
    for epoch in range(1000):
        crop = (30 + epoch % 40, 30 + epoch % 70)
        shrink = ("cover", "pad", "official")[epoch % 3]
        setting = config({"crop": crop, "shrink": shrink})
        student, teacher = augment(sample, setting, item_generator(1, epoch, 0))
        assert student.pixel is teacher.pixel and len(student.pixel) == sample.n_own
        kept = (teacher.pixel >= 1).all(axis=1) & (teacher.pixel <= np.array(crop) - 2).all(axis=1)
        inner = ((sample.pixel >= 4) & (sample.pixel < np.array(size) - 4)).all(axis=1)
        chosen = kept & inner
        error = sampled(teacher.image, teacher.pixel[chosen].astype(float)) - seen[chosen]
        # rounding: half a level in the ramp, up to as much again in each of the two interpolations
        assert np.abs(error).max(initial=0) <= 2.0, epoch
        bias.append(error.mean(axis=0) if chosen.any() else np.zeros(3))
    assert np.abs(np.mean(bias, axis=0)).max() < 0.05


@pytest.mark.skipif(not SEVEN_SCENES.is_dir(), reason=f"no 7-Scenes frames at {SEVEN_SCENES}")
def test_points_keep_their_colour_on_real_frames():
    for number, path in enumerate(sorted(SEVEN_SCENES.glob("*.color.jpg"))[:4]):
        with Image.open(path) as picture:
            image = np.array(picture.convert("RGB"))
        sample = replace(item(image.shape[:2], own=20_000, seed=number), image=image)
        where = tuple(sample.pixel.astype(int).T)
        color = image[where]
        patch = np.stack(
            [np.roll(image.astype(int), (i, j), (0, 1)) for i in (-2, -1, 0, 1, 2) for j in (-2, -1, 0, 1, 2)]
        )
        spread = (patch.max(axis=0) - patch.min(axis=0)).max(axis=2)  # in the 5×5 around each pixel
        inner = ((sample.pixel >= 3) & (sample.pixel < np.array(image.shape[:2]) - 3)).all(axis=1)
        for epoch in range(25):
            student, teacher = augment(sample, config({"crop": (400, 480)}), item_generator(2, epoch, number))
            assert np.array_equal(sample.image[where], color)
            kept = inner & ((teacher.pixel >= 1) & (teacher.pixel <= np.array([398, 478]))).all(axis=1)
            assert kept.sum() > 5000
            difference = np.abs(sampled(teacher.image, teacher.pixel[kept].astype(float)) - color[kept]).max(axis=1)
            assert (difference <= spread[where][kept] + 1).all()  # interpolation stays among the neighbours
            assert difference[spread[where][kept] <= 6].max() <= 4
            assert np.median(difference) <= 2
            assert np.array_equal(student.image, teacher.image)


@pytest.mark.parametrize("size", [(20, 30), (20, 300), (300, 20), (90, 90)])
@pytest.mark.parametrize("shrink", ["cover", "pad", "official"])
def test_images_smaller_than_the_crop_are_padded(size, shrink):
    sample, crop = item(size), (64, 80)
    for epoch in range(20):
        student, teacher = augment(sample, config({"crop": crop, "shrink": shrink}), item_generator(0, epoch, 0))
        assert teacher.image.shape == (*crop, 3) and student.label.shape == teacher.truth.shape == crop
        padded = (teacher.label == 255) & (teacher.truth == 255)
        assert not teacher.image[padded].any()
        for axis in (0, 1):
            filled = int((~padded).any(axis=1 - axis).sum())
            assert filled <= min(crop[axis], math.ceil(size[axis] * 1.33))
            if shrink == "cover":
                assert filled >= min(crop[axis], size[axis])


@pytest.mark.parametrize("shrink", ["cover", "pad", "official"])
def test_resized_images_are_drawn_from_as_if_stored_small(shrink):
    """Two ways to train on half-size images: halving in the same step, or images that are stored so."""
    options = {"crop": (32, 40), "shrink": shrink}
    for index in range(50):
        stored, size = draw_geometry((40, 80), config(options).geometry, item_generator(0, 0, index))
        whole, same = draw_geometry((80, 160), config({**options, "resize": 0.5}).geometry, item_generator(0, 0, index))
        assert same == size
        np.testing.assert_allclose(whole, stored @ resize_matrix((80, 160), (40, 80)))
    free = config({"crop": None, "resize": 0.5}).geometry
    assert draw_geometry((80, 160), free, item_generator(0, 0, 0))[1] == (40, 80)


def test_cover_never_pads_an_image_that_holds_the_crop_and_official_keeps_the_height():
    for index in range(300):
        generator = item_generator(0, 0, index)
        matrix, size = draw_geometry((376, 1408), config({"crop": (376, 512)}).geometry, generator)
        corners = np.linalg.inv(matrix) @ np.array([[-0.5, size[0] - 0.5], [-0.5, size[1] - 0.5], [1, 1]])
        assert corners[:2].min() >= -0.5 - 1e-9 and (corners[:2].max(axis=1) <= np.array([375.5, 1407.5]) + 1e-9).all()
    official = config({"crop": (376, 512), "shrink": "official"}).geometry
    drawn = [draw_geometry((376, 1408), official, item_generator(0, 1, index))[0] for index in range(2000)]
    scales = np.abs([np.diag(matrix)[:2] for matrix in drawn])
    assert scales[:, 0].min() == 1 and scales[:, 1].min() > 0.80 and scales[:, 1].max() < 1.33
    assert abs((scales[:, 0] == 1).mean() - 0.71) < 0.04  # the shares measured in the released code
    assert abs((scales == 1).all(axis=1).mean() - 0.32) < 0.04


def test_cutout_cuts_exactly_one_rectangle_everywhere():
    image = np.full((50, 120, 3), 7, np.uint8)
    cut = np.zeros((50, 120), int)
    for index in range(400):
        holed = photometric.cutout(image, item_generator(0, 0, index), (20, 30)) == 0
        rows, columns = np.flatnonzero(holed.any(axis=(1, 2))), np.flatnonzero(holed.any(axis=(0, 2)))
        assert len(rows) == np.ptp(rows) + 1 == 20 and len(columns) == np.ptp(columns) + 1 == 30
        assert holed.sum() == 20 * 30 * 3
        cut += holed[..., 0]
    assert cut.any(axis=0).all() and cut.any(axis=1).all() and (image == 7).all()
    assert not photometric.cutout(image, item_generator(0, 0, 0), (90, 200)).any()


def test_strong_appearance_is_the_students_and_leaves_labels_and_correspondences():
    sample = item((120, 130))
    setting = config(photo={"blur": 1, "augmix": 1, "jitter": 0.3})
    student, teacher = augment(sample, setting, item_generator(0, 0, 0))
    assert same(teacher, sample) and same(replace(student, image=sample.image), sample)
    assert (student.image != sample.image).mean() > 0.5


@pytest.mark.parametrize(
    "photo", [{"blur": 1}, {"augmix": 1, "augmix_severity": 10}, {"jitter": 0.5}], ids=["blur", "augmix", "jitter"]
)
def test_photometric_operations_move_nothing(photo):
    """A row that was constant stays constant along the column, and the profile does not slide."""
    size = (64, 96)
    rows = np.repeat(np.repeat(ramp(size)[:, :1], size[1], axis=1)[..., :1], 3, axis=2)
    edge = np.zeros((*size, 3), np.uint8)
    edge[:, size[1] // 2 :] = 200
    for index in range(40):
        result = strong_image(rows, config(photo={**PLAIN, **photo}).photometric, item_generator(0, 0, index))
        assert (result == result[:, :1]).all()
        step = strong_image(edge, config(photo={**PLAIN, **photo}).photometric, item_generator(0, 0, index))
        profile = step[32, :, 0].astype(int)
        assert np.abs(profile + profile[::-1] - profile[0] - profile[-1]).max() <= 1  # still symmetric about the edge


def test_blur_equals_the_slow_sum_and_tone_tables_equal_pillow():
    image = item((9, 11)).image
    taps = np.exp(-0.5 * (np.arange(-3, 4) / 1.2) ** 2)
    taps /= taps.sum()
    padded = np.pad(image.astype(float), ((3, 3), (3, 3), (0, 0)), mode="edge")
    slow = sum(taps[i] * taps[j] * padded[i : i + 9, j : j + 11] for i in range(7) for j in range(7))
    assert np.abs(photometric.gaussian_blur(image, 1.2) - slow).max() <= 0.5 + 1e-3
    smooth = ramp((40, 50)) // 2 + 30
    histogram, picture = photometric.channel_histogram(smooth), Image.fromarray(smooth)
    apply = photometric.apply_table
    assert np.array_equal(apply(smooth, photometric.equalize(histogram)), ImageOps.equalize(picture))
    assert np.array_equal(apply(smooth, photometric.posterize(histogram, 3)), ImageOps.posterize(picture, 3))
    assert np.array_equal(apply(smooth, photometric.solarize(histogram, 99)), ImageOps.solarize(picture, 100))
    stretched = apply(smooth, photometric.autocontrast(histogram)).astype(int)
    assert np.abs(stretched - np.asarray(ImageOps.autocontrast(picture))).max() <= 1  # Pillow truncates


def test_a_chain_of_tone_tables_equals_the_operations_in_turn(monkeypatch):
    """The histogram carried through the tables is that of the image they make."""
    image, operations = ramp((30, 40)), []

    def draw(histogram, generator, severity):
        operation = photometric.equalize if operations else (lambda h: photometric.brightness(h, 1.3))
        operations.append(operation)
        return operation(histogram)

    monkeypatch.setattr(photometric, "_draw_tone", draw)
    table = photometric._tone_chain(photometric.channel_histogram(image), item_generator(0, 0, 5), 10)
    assert len(operations) > 1
    expected = image
    for operation in operations:
        expected = photometric.apply_table(expected, operation(photometric.channel_histogram(expected)))
    assert np.array_equal(photometric.apply_table(image, table), expected)


@pytest.mark.parametrize("pitch", [0.0, 0.5, -0.5])
def test_gravity_is_the_world_axis_nearest_to_the_cameras_up(pitch):
    frame = points3d.frame_of(camera(pitch), "gravity")
    assert frame.axes[2].tolist() == [0, 0, 1] and np.linalg.det(frame.axes) == pytest.approx(1)
    first_camera = points3d.frame_of(np.eye(4), "gravity")  # a world in OpenCV axes: up is −y
    assert first_camera.axes[2].tolist() == [0, -1, 0] and np.linalg.det(first_camera.axes) == pytest.approx(1)
    optical = points3d.frame_of(camera(pitch), "official").axes[2]
    np.testing.assert_allclose(optical, [0, math.cos(pitch), -math.sin(pitch)], atol=1e-12)


@pytest.mark.parametrize("axis", ["gravity", "official"])
def test_turning_keeps_heights_along_the_axis_and_all_distances(axis):
    sample = item()
    turning = {**UNMOVED, "axis": axis, "rotate": 1}
    student, teacher = augment(sample, config(points=turning), item_generator(0, 0, 1))
    frame = points3d.frame_of(sample.camera_to_world, axis)
    heights = (student.position - frame.origin) @ frame.axes[2]
    np.testing.assert_allclose(heights, (sample.position - frame.origin) @ frame.axes[2], atol=1e-4)
    assert np.abs(student.position - sample.position).max() > 1
    np.testing.assert_allclose(distances(student.position), distances(sample.position), atol=1e-4)
    assert teacher.position is sample.position


def distances(points) -> np.ndarray:
    return np.linalg.norm(points[:-1].astype(float) - points[1:], axis=1)


def test_scale_flip_jitter_and_centre_do_what_they_say():
    sample = item()
    for index in range(20):
        scaled, _ = augment(
            sample, config(points={**UNMOVED, "scale": (0.9, 1.1), "flip": (0.5, 0.5)}), item_generator(0, 0, index)
        )
        ratio = distances(scaled.position) / distances(sample.position)
        assert np.ptp(ratio) < 1e-4 and 0.9 <= ratio.mean() <= 1.1
        origin = sample.camera_to_world[:3, 3]
        signs = np.sign((scaled.position - origin) / (sample.position - origin)).mean(axis=0)
        assert np.abs(signs).min() > 0.99 and signs[2] > 0  # whole axes are mirrored, and never the vertical one
    shaken, _ = augment(
        sample, config(points={**UNMOVED, "jitter_sigma": 0.01, "jitter_limit": 0.015}), item_generator(0, 0, 0)
    )
    noise = shaken.position - sample.position
    assert np.abs(noise).max() <= 0.015 + 1e-5 and 0.007 < noise.std() < 0.01
    student, teacher = augment(sample, config(points={**UNMOVED, "rotate": 1, "center": True}), item_generator(0, 0, 0))
    for position in (student.position, teacher.position):
        middle = (position.min(axis=0) + position.max(axis=0)) / 2
        np.testing.assert_allclose(middle[:2], 0, atol=1e-4)
    np.testing.assert_array_equal(teacher.position[:, 2], sample.position[:, 2])


def test_clamping_keeps_every_row_of_student_and_teacher():
    sample = item()
    for cloud in augment(
        sample, config(points={**UNMOVED, "axis": "official", "clamp": (7, 3, 13)}), item_generator(0, 0, 0)
    ):
        local = (cloud.position - sample.camera_to_world[:3, 3]) @ sample.camera_to_world[:3, :3]
        assert len(local) == len(sample.position) and (np.abs(local).max(axis=0) <= [7.0001, 3.0001, 13.0001]).all()
        inside = (
            np.abs((sample.position - sample.camera_to_world[:3, 3]) @ sample.camera_to_world[:3, :3]) < [7, 3, 13]
        ).all(1)
        np.testing.assert_allclose(cloud.position[inside], sample.position[inside], atol=1e-5)


def test_defaults_keep_rows_and_leave_the_input_alone():
    sample, before = item((200, 300), points=3000, own=1000), item((200, 300), points=3000, own=1000)
    for epoch in range(10):
        student, teacher = augment(sample, AugmentConfig(), item_generator(0, epoch, 0))
        for made in (student, teacher):
            assert made.key == sample.key and made.position.shape == (3000, 3) and made.position.dtype == np.float32
            assert made.color is sample.color and made.confidence is sample.confidence
            assert made.point_label is sample.point_label and made.pixel.shape == (1000, 2)
            assert made.image.shape == (376, 512, 3) and made.image.dtype == made.label.dtype == np.uint8
            assert np.isfinite(made.position).all() and made.image.flags.writeable
        assert np.array_equal(student.label, teacher.label) and student.pixel is teacher.pixel
    assert same(sample, before)


@pytest.mark.parametrize(("points", "own"), [(0, 0), (500, 0)])
def test_samples_without_own_points_or_truth(points, own):
    sample = item(points=points, own=own, truth=False)
    student, teacher = augment(sample, AugmentConfig(), item_generator(0, 0, 0))
    assert student.truth is None and teacher.pixel.shape == (0, 2) and student.position.shape == (points, 3)


def test_same_seed_same_bytes_and_every_item_and_epoch_its_own():
    sample = item((100, 150))

    def drawn(*key):
        return augment(sample, AugmentConfig(), item_generator(*key))

    assert all(same(a, b) for a, b in zip(drawn(3, 1, 7), drawn(3, 1, 7), strict=True))
    keys = [(3, 1, 7), (3, 2, 7), (3, 1, 8), (4, 1, 7), (31, 7, 0), (3, 17, 0)]
    assert len({drawn(*key)[0].position.tobytes() for key in keys}) == len(keys)
    # recorded: a change here changes every training run that is repeated with the same seed
    assert item_generator(0, 0, 0).integers(2**32, size=2).tolist() == RECORDED


RECORDED = [3774577225, 897043046]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"geometry": {"scale": [1.2, 0.5]}}, "lower bound"),
        ({"photometric": {"blur_kernel": 6}}, "5 or 7"),
        ({"points": {"axis": "up"}}, "points.axis"),
        ({"photometric": {"blurr": 1}}, "did you mean 'blur'"),
        ({"geometry": {"crop": [0, 5]}}, "greater than or equal to 1"),
    ],
)
def test_bad_configurations_are_named(tree, message):
    with pytest.raises(UserError, match=message):
        validate(AugmentConfig, tree, "x.yaml")
