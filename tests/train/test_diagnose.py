"""What a run says of its teachers equals what one finds by looking at every correspondence."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from method_builders import POINTS, SKY, H, W, batch, logits_of, method_of, sample, slow_targets
from rw3d_train import logbook
from rw3d_train.data.collate import collate
from rw3d_train.diagnose import BINS, diagnose
from rw3d_train.logbook import Logbook
from rw3d_train.methods import EmaConfig, Rewis3dConfig


class Items(list):
    """As much of a SceneDataset as is read: pairs of a student's and a teacher's sample."""

    def with_truth(self):
        return self


def run_of(method, samples):
    networks = {f"student_{name}": net for name, net in method.students.items()}
    networks |= {f"teacher_{name}": teacher.module for name, teacher in method.teachers.items()}
    return SimpleNamespace(
        method=method,
        device=torch.device("cpu"),
        config=SimpleNamespace(run=SimpleNamespace(diagnose=2)),
        data=SimpleNamespace(train=Items((one, one) for one in samples)),
        networks=lambda: networks,
    )


def labelled(seed: int, truth: bool = True):
    points = np.random.default_rng(seed).integers(0, 3, POINTS).astype(np.uint8)
    return replace(sample(seed, truth), point_truth=points if truth else None)


@pytest.mark.parametrize("threshold", [0, 0.5])
def test_numbers_are_those_of_a_slow_look_at_every_pair(threshold):
    samples = [labelled(1), labelled(2)]
    method, one = method_of(Rewis3dConfig(cross_modal={"threshold": threshold})), collate(samples)
    found = diagnose(run_of(method, samples))
    _, taught_2d, _, taught_3d = logits_of(method, one)
    at_pixels, pixel_weight, at_points, point_weight = slow_targets(one, taught_2d, taught_3d)
    _, pixel_probability, _, point_probability = slow_targets(one, taught_2d, taught_3d, "prediction")
    assert found["diagnose/correspondences"] == pytest.approx(float((at_pixels != 255).sum()) / (2 * H * W))
    kept = pixel_probability[at_pixels != 255] >= threshold
    assert found["diagnose/taught"] == pytest.approx(float(kept.double().mean()))
    at_pixels[pixel_probability < threshold] = 255
    at_points[point_probability < threshold] = 255
    pixels, points = at_pixels != 255, at_points != 255
    said_2d, said_3d = taught_2d.argmax(1), taught_3d.argmax(1)
    right = (at_pixels == one.truth)[pixels].double()
    assert found["diagnose/agreement"] == pytest.approx(float((at_pixels == said_2d)[pixels].double().mean()))
    assert found["diagnose/precision_2d"] == pytest.approx(float(right.mean()))
    weight = pixel_weight[pixels].double()
    assert found["diagnose/weighted_precision_2d"] == pytest.approx(float((right * weight).sum() / weight.sum()))
    assert found["diagnose/known_2d"] == pytest.approx(float((said_2d == one.truth)[pixels].double().mean()))
    taught = (at_points == one.point_truth)[points].double()
    weight = point_weight[points].double()
    assert found["diagnose/precision_3d"] == pytest.approx(float(taught.mean()))
    assert found["diagnose/weighted_precision_3d"] == pytest.approx(float((taught * weight).sum() / weight.sum()))
    assert found["diagnose/known_3d"] == pytest.approx(float((said_3d == one.point_truth)[points].double().mean()))
    edges = found["diagnose/weight_edges"]
    counts, _ = np.histogram(pixel_weight[pixels].numpy(), edges)
    assert (len(edges), sum(found["diagnose/weights_2d"])) == (BINS + 1, int(pixels.sum()))
    np.testing.assert_allclose(found["diagnose/weights_2d"], counts, atol=1)  # a weight on an edge may round either way


def test_without_truth_only_what_needs_none_is_told():
    found = diagnose(run_of(method_of(Rewis3dConfig()), [labelled(1, truth=False), labelled(2, truth=False)]))
    assert {"diagnose/agreement", "diagnose/correspondences", "diagnose/weights_2d"} <= found.keys()
    assert not [name for name in found if "precision" in name or "known" in name]


def test_pixels_of_the_sky_teacher_are_no_lesson_of_geometry():
    config = Rewis3dConfig(cross_modal={"start": 0, "sky_teacher": True})
    samples = [labelled(1), labelled(2)]
    plain = diagnose(run_of(method_of(Rewis3dConfig(), sky_bias=100), samples))
    method = method_of(config, sky_bias=100)
    method.begin_epoch(0)
    assert (method.targets_2d(batch(), batch(), logits_of(method, batch())[3])[0] == SKY).any()
    assert diagnose(run_of(method, samples)) == plain


def test_a_method_without_points_has_nothing_to_tell():
    assert diagnose(run_of(method_of(EmaConfig()), [labelled(1)])) == {}


def test_the_file_has_the_histogram_and_trackers_only_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(logbook, "find_spec", lambda _: None)
    run = SimpleNamespace(step=7, epoch=3)
    seen = []
    with Logbook(tmp_path, run) as book:
        book._trackers = [SimpleNamespace(send=lambda step, numbers: seen.append(numbers), close=lambda: None)]
        book.diagnosis({"diagnose/agreement": 0.5, "diagnose/weights_2d": [1, 2]})
        book.diagnosis({})
    (line,) = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (line["step"], line["epoch"], line["diagnose/weights_2d"]) == (7, 3, [1, 2])
    assert seen == [{"epoch": 3, "diagnose/agreement": 0.5}]
