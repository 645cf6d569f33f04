"""Pseudo-labels, their weights, and their way between points and pixels, against loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rw3d_train import losses
from rw3d_train.data.collate import Correspondences
from slow_losses import C, entries, problem, softmax


def test_pseudo_labels():
    p = problem((2, 3, 4))
    label, probability = losses.pseudo_labels(p.teacher)
    for (t,), y, w in zip(
        entries(p.teacher.detach()), label.flatten().tolist(), probability.flatten().tolist(), strict=True
    ):
        assert t[y] == max(t)
        assert w == pytest.approx(max(softmax(t)), rel=1e-12)
    assert label.dtype == torch.int64
    assert not probability.requires_grad


def test_classes_without_surface_are_not_taught_to_points():
    in_3d = torch.ones(256, dtype=torch.bool)
    in_3d[2] = False
    for dtype in (torch.uint8, torch.int64):
        label = losses.surface_only(torch.tensor([0, 2, 255, 3], dtype=dtype), in_3d)
        assert label.tolist() == [0, 255, 255, 3]
        assert label.dtype == dtype


def slow_confidence(confidence: list[float], how: str) -> list[float]:
    """Of one sample."""
    if how == "rank":
        return [sum(other <= c for other in confidence) / len(confidence) for c in confidence]
    largest = max((c for c in confidence if c < math.inf), default=0) or 1
    finite = [c if c < math.inf else largest for c in confidence]
    return finite if how == "raw" else [math.log2(1 + c) for c in finite]


values = st.one_of(st.sampled_from([0.0, 1.0, 1.5, math.inf]), st.floats(0, 2.0**100, width=32))


@given(st.lists(st.lists(values, max_size=8), min_size=1, max_size=4), st.sampled_from(["raw", "rank", "log"]))
def test_confidences_are_normalised_within_their_sample(samples, how):
    offset = torch.tensor(np.cumsum([len(sample) for sample in samples]))
    confidence = torch.tensor([c for sample in samples for c in sample], dtype=torch.float32)
    found = losses.normalized_confidence(confidence, offset, how)
    expected = [c for sample in samples for c in slow_confidence(sample, how)]
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    np.testing.assert_allclose(found, np.array(expected, np.float32), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("how", ["raw", "rank", "log"])
def test_measured_geometry_of_confidence_1_keeps_it(how):
    assert losses.normalized_confidence(torch.ones(7), torch.tensor([3, 7]), how).tolist() == [1.0] * 7


def test_infinite_confidences_train():
    p = problem((6,), unlabelled=0)
    confidence = torch.tensor([1, math.inf, 3e38, math.inf, 2, 1])
    weight = losses.normalized_confidence(confidence, torch.tensor([3, 6]))
    assert weight.tolist() == [1, confidence[2], confidence[2], 2, 2, 1]
    loss = losses.cross_modal(p.student.float(), p.label, weight)
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(p.student.grad).all()


def test_dual_confidence():
    prediction, reconstruction = torch.tensor([0.5, 0.0]), torch.tensor([4.0, 2.0])
    expected = {"both": [2, 0], "prediction": [0.5, 0], "reconstruction": [4, 2], "none": [1, 1]}
    for use, weights in expected.items():
        assert losses.dual_confidence(prediction, reconstruction, use).tolist() == weights


# ---- pixels and points ----

DTYPES = (torch.int64, torch.float32, torch.float32, torch.int64)


def correspondences(shape, n_points, n_pairs, seed) -> Correspondences:
    """Pairs anywhere in the images, many at the same pixel, some exactly between two."""
    generator = np.random.default_rng(seed)
    image = generator.integers(0, shape[0], n_pairs)
    row, column = (generator.integers(-2, 4 * n - 2, n_pairs) / 4 for n in shape[1:])
    point = np.sort(generator.choice(n_points, n_pairs, replace=False))
    return Correspondences(
        *(torch.tensor(x, dtype=d) for x, d in zip((image, row, column, point), DTYPES, strict=True))
    )


def nearest(pairs: Correspondences, i: int) -> tuple[int, int, int]:
    row, column = (math.floor(float(x[i]) + 0.5) for x in (pairs.row, pairs.column))
    return int(pairs.image[i]), row, column


@given(st.integers(1, 3), st.integers(2, 5), st.integers(2, 5), st.integers(0, 30), st.integers(0, 100))
def test_points_and_pixels_find_each_other(images, height, width, n_pairs, seed):
    shape, n_points = (images, height, width), 40
    pairs = correspondences(shape, n_points, n_pairs, seed)
    shown = np.full(shape, -1)
    for i in range(n_pairs):
        shown[nearest(pairs, i)] = int(pairs.point[i])  # the last one stays
    found = losses.points_at_pixels(pairs, shape)
    np.testing.assert_array_equal(found, shown)

    of_points = torch.arange(n_points) % 7
    expected = [255 if i < 0 else i % 7 for i in shown.flatten().tolist()]
    assert losses.project_to_pixels(of_points, found, 255).flatten().tolist() == expected

    of_pixels = torch.from_numpy(np.random.default_rng(seed).random(shape))
    gathered = np.full(n_points, 0.0)
    for i in range(n_pairs):
        gathered[int(pairs.point[i])] = of_pixels[nearest(pairs, i)]
    np.testing.assert_array_equal(losses.gather_from_pixels(of_pixels, pairs, n_points, 0), gathered)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.bfloat16])
def test_maps_keep_their_type(dtype):
    pairs = correspondences((1, 3, 3), 9, 4, 0)
    shown = losses.points_at_pixels(pairs, (1, 3, 3))
    assert losses.project_to_pixels(torch.ones(9, dtype=dtype), shown, 0.0).dtype == dtype
    assert losses.gather_from_pixels(torch.ones(1, 3, 3, dtype=dtype), pairs, 9, 0.0).dtype == dtype


def test_sky_is_added_where_no_point_is():
    generator = np.random.default_rng(3)
    logits = torch.from_numpy(generator.normal(size=(2, C, 5, 6)))
    has_point = torch.from_numpy(generator.random((2, 5, 6)) < 0.4)
    label = torch.where(has_point, 1, 255)
    weight = torch.where(has_point, 2.0, 0.0).double()
    new_label, new_weight = losses.add_sky(label, weight, logits, has_point, sky=C - 1)
    share = has_point.double().mean().item()
    seen = 0
    for index in np.ndindex(2, 5, 6):
        p = softmax(logits[index[0], :, index[1], index[2]].tolist())
        if not has_point[index] and p[-1] == max(p):
            seen += 1
            assert new_label[index] == C - 1
            assert new_weight[index].item() == pytest.approx(p[-1] * share, rel=1e-6)
        else:
            assert new_label[index] == label[index]
            assert new_weight[index] == weight[index]
    assert 0 < seen < 60


def test_without_any_point_sky_weighs_nothing():
    logits = torch.zeros(1, 2, 2, 2)
    logits[:, 1] = 5
    nowhere = torch.zeros(1, 2, 2, dtype=torch.bool)
    label, weight = losses.add_sky(torch.full((1, 2, 2), 255), torch.zeros(1, 2, 2), logits, nowhere, 1)
    assert (label == 1).all()
    assert not weight.any()
