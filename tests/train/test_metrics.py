"""Scores equal a slow count over pairs, whatever the batches; absent classes are left out or count 0."""

import csv
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rw3d_common.labels import ClassMap, LabelClass
from rw3d_train.metrics import Confusion, Scores, scores_table, write_scores

CLASSES = ClassMap(tuple(LabelClass(i, name, (i,), (i, i, i)) for i, name in enumerate(("road", "car", "sky", "bus"))))
labels = arrays(np.uint8, 40, elements=st.sampled_from([0, 1, 2, 255]))
predictions = arrays(np.uint8, 40, elements=st.sampled_from([0, 1, 2]))


def slow_iou(truth, prediction, label):
    pairs = [(int(t), int(p)) for t, p in zip(truth, prediction, strict=True) if t != 255]
    union = sum(label in pair for pair in pairs)
    return sum(pair == (label, label) for pair in pairs) / union if union else float("nan")


@given(labels, predictions, st.integers(1, 39))
def test_scores_equal_the_slow_count_for_any_batches(truth, prediction, cut):
    confusion = Confusion(4)
    for part in (slice(0, cut), slice(cut, None)):
        confusion.add(torch.from_numpy(truth[part].copy()), torch.from_numpy(prediction[part].copy()))
    scores = confusion.scores(CLASSES)
    expected = np.array([slow_iou(truth, prediction, label) for label in range(4)])
    np.testing.assert_allclose(scores.iou, expected)
    known = truth != 255
    if known.any():
        assert scores.miou == pytest.approx(np.nanmean(expected))
        assert scores.all_acc == pytest.approx((truth == prediction)[known].mean())
    zero = confusion.scores(CLASSES, absent="zero")
    assert zero.miou == pytest.approx(np.nan_to_num(expected).mean())


def test_nothing_counted_is_nan_not_zero():
    scores = Confusion(4).scores(CLASSES)
    assert np.isnan([scores.miou, scores.macc, scores.all_acc]).all()
    assert scores.to_json()["miou"] is None


def test_files_hold_every_class_and_mean(tmp_path):
    scores = Scores.of(np.array([[3, 1], [0, 4]]), ["road", "car"])
    write_scores({"2D": scores, "3D": scores}, tmp_path, "evaluation", step=7)
    tree = json.loads((tmp_path / "evaluation.json").read_text())
    assert tree["step"] == 7
    assert tree["scores"]["3D"]["iou"] == {"road": 0.75, "car": 0.8}
    rows = list(csv.reader((tmp_path / "evaluation.csv").read_text().splitlines()))
    assert rows[0] == ["class", "2D", "3D"]
    assert [row[0] for row in rows] == ["class", "road", "car", "miou", "macc", "all_acc"]
    assert scores_table({"2D": scores}).row_count == 5
