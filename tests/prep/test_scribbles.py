"""Scribbles: curves inside regions, and the statistics of published ones."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rw3d_common.images import image_size
from rw3d_common.labels import IGNORE
from rw3d_common.manifest import dataset_entry
from rw3d_prep.datasets import DatasetConfig
from rw3d_prep.sparse_labels.blobs import components
from rw3d_prep.sparse_labels.curves import centre_curve, drawn, lies_in, longest_path, trim
from rw3d_prep.sparse_labels.dense import dense_frames
from rw3d_prep.sparse_labels.make import keyed_generator
from rw3d_prep.sparse_labels.scribbles import DEFAULT, PRESETS, Curve, Preset, draw_scribbles, make_curves, thick_parts

CAMVID = Path(__file__).parents[2].parent / "shared" / "data" / "camvid"
EAGER = Preset(thickness=3, length=1.0, min_area=1, erosion=(1, 3), area_share=(0.01, 0.2))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def blob(mask):
    (one,) = components(mask, 1)
    return one


def disk(size=61):
    row, column = np.mgrid[:size, :size] - size // 2
    return row**2 + column**2 <= (size // 2 - 1) ** 2


def ring():
    row, column = np.mgrid[:81, :81] - 40
    return (row**2 + column**2 <= 39**2) & (row**2 + column**2 >= 30**2)


def l_shape():
    mask = np.zeros((120, 90), bool)
    mask[5:115, 5:20] = mask[100:115, 5:85] = True
    return mask


def arc_length(curve):
    return np.linalg.norm(np.diff(curve, axis=0), axis=1).sum()


SHAPES = {
    "disk": disk(),
    "ring": ring(),
    "L": l_shape(),
    "bar": np.ones((5, 300), bool),
    "pole": np.ones((200, 2), bool),
    "diagonal": np.eye(70, dtype=bool),
    "pixel": np.ones((1, 1), bool),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("seed", range(5))
def test_curve_lies_in_its_blob(name, seed):
    one = blob(SHAPES[name])
    curve = centre_curve(one.mask, one.depth, rng(seed))
    assert curve.shape == (50, 2)
    assert lies_in(curve, one.mask)


@pytest.mark.parametrize(("name", "least"), [("bar", 230), ("L", 130), ("disk", 35), ("pole", 150), ("ring", 75)])
def test_curve_runs_along_the_whole_blob(name, least):
    one = blob(SHAPES[name])
    lengths = [arc_length(centre_curve(one.mask, one.depth, rng(seed))) for seed in range(8)]
    assert min(lengths) > least, "each end stays within a tenth of the path from the blob's"


def test_longest_path_is_the_geodesic_not_the_chord():
    one = blob(l_shape())
    path = longest_path(one.mask, one.depth, rng())
    (top, left), (bottom, right) = sorted(path[[0, -1]].tolist())
    assert top < 15, "one end is the L's upper end"
    assert left < 25
    assert bottom > 90, "the other its right end"
    assert right > 75
    straight = np.hypot(bottom - top, right - left)
    assert arc_length(path) > 1.25 * straight


def test_curve_keeps_to_the_middle():
    one = blob(np.ones((41, 400), bool))
    rows = np.concatenate([centre_curve(one.mask, one.depth, rng(seed))[10:-10, 0] for seed in range(20)])
    assert abs(rows.mean() - 20) < 2
    assert np.abs(rows - 20).max() < 19
    assert rows.std() > 0.5, "a hand swerves"


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 30), st.just(2)), elements=st.floats(-500, 500)),
    st.floats(0.01, 1),
)
def test_trim_keeps_the_middle_by_arc_length(curve, length):
    short = trim(curve, length)
    total = arc_length(curve)
    assert arc_length(short) == pytest.approx(length * total, abs=1e-6 + 1e-9 * total)
    # Symmetric about the middle: turned round, the same piece remains.
    np.testing.assert_allclose(trim(curve[::-1], length)[::-1], short, atol=1e-6)


def test_trim_to_one_is_the_stored_curve():
    curve = np.array([[0.0, 0], [3, 4], [3, 10]])
    assert trim(curve, 1.0) is curve
    np.testing.assert_allclose(trim(curve, 0.5)[[0, -1]], [[1.65, 2.2], [3, 7.25]])


@given(hnp.arrays(np.uint8, (24, 31), elements=st.sampled_from([0, 1, 2, IGNORE])), st.integers(0, 5))
def test_no_pixel_of_another_class_is_ever_drawn(dense, seed):
    curves = make_curves(dense, EAGER, rng(seed))
    label = draw_scribbles(curves, dense, 1.0, 3)
    labelled = label != IGNORE
    assert (label[labelled] == dense[labelled]).all()
    assert set(np.unique(label)) - {IGNORE} == set(np.unique(dense)) - {IGNORE}, "with min_area 1 every class is hit"


def test_void_is_never_drawn():
    assert make_curves(np.full((100, 100), IGNORE, np.uint8), DEFAULT, rng()) == []


def test_curves_are_drawn_where_they_were_stored():
    curve = Curve(4, np.array([[10.0, 5.0], [10.0, 60.0]]))
    label = draw_scribbles([curve], np.full((30, 80), 4, np.uint8), 1.0, 3)
    assert (label[10, 5:61] == 4).all()
    assert np.count_nonzero(label[:, 30] == 4) == 5, "OpenCV draws 3 as 5 px"
    assert drawn([curve.points], 5, (30, 80))[:, 30].sum() == 7


@pytest.mark.parametrize(
    ("name", "share", "rim"),
    [
        ("default", 0.001, 2),
        ("default", 0.0765, 11),
        ("default", 0.5, 20),
        ("cityscapes", 0.0385, 21),
        ("waymo", 1, 40),
    ],
)
def test_rim_is_linear_between_the_published_limits(name, share, rim):
    assert PRESETS[name].rim(share) == rim


def test_every_large_region_gets_its_own_curve_and_small_ones_none():
    dense = np.zeros((200, 300), np.uint8)
    dense[10:60, 10:60] = dense[100:150, 200:260] = 1
    dense[180:188, 100:108] = 1  # 64 pixels, fewer than 80
    of_class_1 = [curve.points.mean(axis=0) for curve in make_curves(dense, DEFAULT, rng()) if curve.train_id == 1]
    assert sorted(tuple(np.round(middle, -2)) for middle in of_class_1) == [(0.0, 0.0), (100.0, 200.0)]


def test_erosion_gives_way_only_where_it_would_leave_nothing_of_a_class():
    poles = np.zeros((200, 300), bool)
    poles[20:180, 50:53] = poles[60:140, 200:203] = True
    (longest,) = thick_parts(poles, DEFAULT)
    assert longest.mask.shape[0] > 150, "of two poles the longer one"
    poles[50:150, 100:140] = True
    (broad,) = thick_parts(poles, DEFAULT)
    assert broad.corner[1] > 99, "a part that survives leaves the thin ones unlabelled, as published scribbles do"


def test_depth_counts_the_border_of_the_image_as_a_rim():
    (one,) = components(np.ones((9, 21), bool), 1)
    assert one.depth[4, 10] == pytest.approx(5, abs=0.1)
    assert one.depth[0, 10] == pytest.approx(1, abs=0.05)


@pytest.mark.skipif(not CAMVID.is_dir(), reason="CamVid is not beside this checkout")
def test_statistics_on_camvid_are_those_of_the_published_generator():
    config = DatasetConfig(name="camvid", splits=("train", "val"), labels="label")
    frames = dense_frames(CAMVID, config, dataset_entry("camvid"))[::18]
    shares, counts, widths, hit, present, poles = [], [], [], 0, 0, 0
    for frame, file in frames:
        dense = file.read(image_size(file.path))
        label = draw_scribbles(make_curves(dense, DEFAULT, keyed_generator(0, frame)), dense, DEFAULT.length, 3)
        labelled = label != IGNORE
        assert (label[labelled] == dense[labelled]).all()
        there, found = set(np.unique(dense)) - {IGNORE}, set(np.unique(label)) - {IGNORE}
        shares.append(labelled.mean())
        hit, present, poles = hit + len(found), present + len(there), poles + (1 in found)
        strokes = [one for train_id in found for one in components(label == train_id, 1)]
        counts.append(len(strokes))
        widths += [ridge_width(one.mask) for one in strokes]
    assert 0.040 < np.mean(shares) < 0.052
    assert 17 <= np.mean(counts) <= 25
    assert 4.2 < np.median(widths) < 5.0
    assert hit / present > 0.9
    assert poles / len(frames) > 0.8, "the published generator hits the poles of one image in ten"


def ridge_width(stroke) -> float:
    distance = cv2.distanceTransform(np.pad(stroke, 2).astype(np.uint8), cv2.DIST_L2, 5)
    ridge = (distance > 0) & (distance >= cv2.dilate(distance, np.ones((3, 3), np.uint8)))
    return 2 * distance[ridge].mean() - 1
