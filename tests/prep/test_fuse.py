"""Fusing a view against a slow reference that handles one cell at a time."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rw3d_common.cameras import PixelMap
from rw3d_common.labels import ClassMap, LabelClass
from rw3d_prep.fuse import fuse_view
from rw3d_prep.reconstruct.base import ViewGeometry

CLASSES = ClassMap((LabelClass(0, "road", (7,), (1, 2, 3)), LabelClass(1, "sky", (23,), (4, 5, 6), in_3d=False)))


def random_view(seed: int, grid=(6, 8), image=(9, 13)) -> tuple[ViewGeometry, np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    points = generator.normal(size=(*grid, 3)).astype(np.float32)
    confidence = (1 + generator.exponential(size=grid)).astype(np.float32)
    for value, where in ((np.nan, points), (np.inf, points), (np.nan, confidence), (np.inf, confidence)):
        where.reshape(grid[0], grid[1], -1)[generator.random(grid) < 0.05] = value
    pixel_map = PixelMap.resize_then_crop(image, (7, 10), grid, left=1, top=0)
    geometry = ViewGeometry(points, confidence, generator.random(grid) < 0.8, np.eye(3), np.eye(4), pixel_map)
    rgb = generator.integers(0, 255, (*image, 3)).astype(np.uint8)
    label = generator.choice(np.array([0, 1, 255], np.uint8), image)
    return geometry, rgb, label, generator.integers(0, 2, image).astype(np.uint8)


def slow_fuse(geometry, rgb, label, truth, percentile):
    rows = []
    for row in range(geometry.valid.shape[0]):
        for column in range(geometry.valid.shape[1]):
            u = geometry.pixel_map.column_scale * column + geometry.pixel_map.column_offset
            v = geometry.pixel_map.row_scale * row + geometry.pixel_map.row_offset
            y, x = int(np.floor(v + 0.5)), int(np.floor(u + 0.5))
            point, confidence = geometry.points[row, column], geometry.confidence[row, column]
            if (
                not (geometry.valid[row, column] and np.isfinite(point).all())
                or np.isnan(confidence)
                or label[y, x] == 1
            ):
                continue
            rows.append((point, rgb[y, x], confidence, y * rgb.shape[1] + x, label[y, x], truth[y, x]))
    if not rows:
        return rows
    limit = sorted(row[2] for row in rows)[int(percentile / 100 * len(rows))]
    return [row for row in rows if row[2] >= limit]


@given(st.integers(0, 10_000), st.sampled_from([0.0, 10.0, 50.0, 99.0]))
def test_equals_the_slow_reference(seed, percentile):
    geometry, rgb, label, truth = random_view(seed)
    fused = fuse_view(geometry, rgb, label, truth, CLASSES, percentile)
    expected = slow_fuse(geometry, rgb, label, truth, percentile)
    assert len(fused.position) == len(expected)
    if not expected:
        return
    for name, column in zip(
        ("position", "color", "confidence", "pixel", "label", "truth"), zip(*expected, strict=True), strict=True
    ):
        np.testing.assert_array_equal(getattr(fused, name), np.stack(column), err_msg=name)


def test_monotone_rescaling_of_confidence_keeps_the_same_points():
    geometry, rgb, label, truth = random_view(3)
    other = ViewGeometry(
        geometry.points,
        np.log(geometry.confidence) * 50,
        geometry.valid,
        geometry.intrinsics,
        geometry.camera_to_world,
        geometry.pixel_map,
    )
    first, second = (fuse_view(g, rgb, label, truth, CLASSES, 10.0) for g in (geometry, other))
    np.testing.assert_array_equal(first.pixel, second.pixel)


def test_equal_confidences_all_stay():
    geometry, rgb, label, truth = random_view(5)
    flat = ViewGeometry(
        np.nan_to_num(geometry.points, posinf=1),
        np.ones((6, 8), np.float32),
        np.ones((6, 8), bool),
        np.eye(3),
        np.eye(4),
        geometry.pixel_map,
    )
    assert len(fuse_view(flat, rgb, np.zeros_like(label), truth, CLASSES, 50.0).position) == 48


def test_a_view_without_a_valid_cell_gives_no_points():
    geometry, rgb, label, truth = random_view(1)
    empty = ViewGeometry(
        geometry.points, geometry.confidence, np.zeros((6, 8), bool), np.eye(3), np.eye(4), geometry.pixel_map
    )
    fused = fuse_view(empty, rgb, label, truth, CLASSES, 10.0)
    assert len(fused.position) == len(fused.pixel) == 0
    assert np.isnan(fused.confidence_threshold)


def test_an_unlabelled_view_gives_unlabelled_points():
    geometry, rgb, _, _ = random_view(2)
    fused = fuse_view(geometry, rgb, None, None, CLASSES, 10.0)
    assert (fused.label == 255).all()
    assert fused.truth is None
