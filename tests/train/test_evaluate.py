"""Evaluation equals slow per-pixel references: windows, scales, labels at another size, points, several processes."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rw3d_common import UserError
from rw3d_common.collection import store_paths
from rw3d_train.data.views import LabelledView, ViewDataset
from rw3d_train.engine import fit
from rw3d_train.evaluate import EvaluateConfig, evaluate_2d, evaluate_3d, predict_logits
from rw3d_train.models.images import normalize
from rw3d_train.score import evaluate_run
from rw3d_train.trained import load
from train_builders import tiny_config, training_stores

CPU = torch.device("cpu")
C = 3
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


class Stride4(nn.Module):
    """Logits at a quarter of the size that depend on what the window shows and on where its edges are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 8, 7, 4, 3), nn.Tanh(), nn.Conv2d(8, C, 3, 1, 1))
        self.seen: list[tuple[int, int]] = []

    def forward(self, image):
        self.seen.append(tuple(image.shape[-2:]))
        return self.net(image)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def slow_average(model, image: np.ndarray, tops, lefts, window) -> torch.Tensor:
    """Pixel by pixel: the mean over the windows that hold it."""
    whole = normalize(torch.from_numpy(image).permute(2, 0, 1)[None])
    parts = {}
    for top in tops:
        for left in lefts:
            part = whole[..., top : top + window[0], left : left + window[1]]
            parts[top, left] = F.interpolate(model(part), part.shape[-2:], mode="bilinear")[0]
    out = torch.zeros(C, *image.shape[:2])
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            held = [
                logits[:, row - top, column - left]
                for (top, left), logits in parts.items()
                if 0 <= row - top < window[0] and 0 <= column - left < window[1]
            ]
            out[:, row, column] = sum(held) / len(held)
    return out


@torch.inference_mode()
def test_windows_are_averaged_pixel_by_pixel():
    model, image = Stride4(), picture(20, 40)
    config = EvaluateConfig(window=(16, 16), overlap=0.5)
    found = predict_logits(model, image, config, CPU)
    torch.testing.assert_close(found, slow_average(model, image, (0, 4), (0, 8, 16, 24), (16, 16)))
    assert set(model.seen) == {(16, 16)}


@torch.inference_mode()
def test_listed_windows_are_summed_at_the_networks_stride():
    model, image, lefts = Stride4(), picture(16, 40), (0, 12, 24)
    config = EvaluateConfig(window=(16, 16), lefts=lefts, combine="sum")
    canvas = torch.zeros(C, 4, 10)
    for left in lefts:
        logits = model(normalize(torch.from_numpy(image).permute(2, 0, 1)[None])[..., left : left + 16])[0]
        for row in range(4):
            for column in range(4):
                canvas[:, row, left // 4 + column] += logits[:, row, column]
    expected = F.interpolate(canvas[None], (8, 20), mode="bilinear")[0]
    torch.testing.assert_close(predict_logits(model, image, config, CPU, size=(8, 20)), expected)


@torch.inference_mode()
@pytest.mark.parametrize("combine", ["average", "sum"])
def test_whole_image_is_one_window(combine):
    model, image = Stride4(), picture(18, 30)
    expected = F.interpolate(
        model(normalize(torch.from_numpy(image).permute(2, 0, 1)[None])), (18, 30), mode="bilinear"
    )
    torch.testing.assert_close(predict_logits(model, image, EvaluateConfig(combine=combine), CPU), expected[0])
    assert predict_logits(model, image, EvaluateConfig(window=(64, 64)), CPU).shape == (C, 18, 30)


def test_shrunken_images_are_predicted_small_and_answered_at_full_size():
    model = Stride4()
    assert predict_logits(model, picture(24, 40), EvaluateConfig(scale=0.5), CPU).shape == (C, 24, 40)
    assert model.seen == [(12, 20)]


@given(st.integers(8, 40), st.integers(8, 40), st.integers(5, 20), st.sampled_from(["average", "sum"]))
@torch.inference_mode()
def test_any_image_and_window_are_answered_everywhere(height, width, window, combine):
    config = EvaluateConfig(window=(window, window), overlap=0.25, combine=combine)
    net = lambda image: F.avg_pool2d(image, 4, ceil_mode=True)  # noqa: E731
    logits = predict_logits(net, picture(height, width), config, CPU)
    assert logits.shape == (3, height, width)
    assert logits.isfinite().all()


@pytest.mark.parametrize(("lefts", "width"), [((0, 20), 40), ((4, 24), 40), ((0, 16), 40), ((0, 16, 40), 40)])
def test_windows_that_leave_columns_out_are_refused(lefts, width):
    config = EvaluateConfig(window=(16, 16), lefts=lefts)
    with pytest.raises(UserError, match=r"evaluate\.lefts \[.*do not cover, or lie beyond, the 40 columns.*=null"):
        predict_logits(Stride4(), picture(16, width), config, CPU)


@pytest.mark.parametrize("label_scale", [1.0, 0.5])
def test_confusion_counts_every_labelled_pixel_once(label_scale):
    model = Stride4()
    rng = np.random.default_rng(1)
    views = [
        LabelledView(str(i), picture(16, 24, i), rng.choice([0, 1, 2, 255], (16, 24)).astype(np.uint8)) for i in (0, 1)
    ]
    config = EvaluateConfig(label_scale=label_scale)
    found = evaluate_2d({"net": model}, views, C, config, CPU)["net"].counts
    expected = torch.zeros(C, C, dtype=torch.int64)
    step = round(1 / label_scale)
    for view in views:
        logits = model(normalize(torch.from_numpy(view.image).permute(2, 0, 1)[None]))
        size = (16 // step, 24 // step)
        said = F.interpolate(logits, size, mode="bilinear")[0].argmax(0)
        for row in range(size[0]):
            for column in range(size[1]):
                truth = int(view.label[row * step + step // 2, column * step + step // 2])
                if truth != 255:
                    expected[truth, said[row, column]] += 1
    assert found.dtype == torch.int64
    torch.testing.assert_close(found, expected)


def points(truth) -> SimpleNamespace:
    """As much of a batch as evaluation reads: point i lies at x = i, so a network can answer by position."""
    n = 0 if truth is None else len(truth)
    batch = SimpleNamespace(
        keys=("train/a/1/cam#0",),
        position=torch.arange(n, dtype=torch.float32)[:, None].repeat(1, 3),
        color=torch.zeros(n, 3, dtype=torch.uint8),
        offset=torch.tensor([n]),
        point_truth=truth,
    )
    batch.to = lambda _: batch
    return batch


def test_points_without_surface_or_label_are_not_counted_in_3d():
    truth = torch.tensor([0, 1, 1, 2, 255, 0], dtype=torch.uint8)  # 2 has no surface
    net = lambda position, *_: F.one_hot((position[:, 0] % 2).long(), 2).float()  # noqa: E731
    counts = evaluate_3d({"net": net}, [points(truth), points(truth[:2])], 2, CPU)["net"].counts
    assert counts.tolist() == [[2, 1], [1, 2]]


def test_points_without_dense_labels_are_told():
    with pytest.raises(UserError, match=r"train/a/1/cam#0: its points have no dense labels; evaluate on scenes"):
        evaluate_3d({"net": lambda *_: None}, [points(None)], 2, CPU)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of rewis3d on three drives; read only but for evaluations."""
    folder = tmp_path_factory.mktemp("evaluate")
    stores = training_stores(folder, frames=3)
    fit(tiny_config(stores, "rewis3d", run__epochs=1, run__batch_size=2), folder / "run", CPU)
    return folder


def test_scores_of_a_run_are_those_of_its_predictions(trained):
    scores = evaluate_run(trained / "run", CPU, workers=0)
    assert set(scores) == {"2D student", "2D teacher", "3D student", "3D teacher"}
    val = [path for path in store_paths(trained / "stores") if "/val/" in path.as_posix()]
    segmenter = load(trained / "run", "teacher")
    hits = total = 0
    for view in ViewDataset(val, "truth"):
        known = view.label != 255
        hits += (segmenter.predict(view.image) == view.label)[known].sum()
        total += known.sum()
    assert scores["2D teacher"].all_acc == pytest.approx(hits / total)
    assert scores["2D teacher"].pixels.sum() == total
    written = json.loads((trained / "run" / "evaluation-val.json").read_text())
    assert written["scores"]["2D teacher"]["all_acc"] == pytest.approx(hits / total, abs=1e-6)
    assert (trained / "run" / "evaluation-val.csv").read_text().startswith("class,2D student,2D teacher,3D student")


def test_absent_classes_count_zero_only_where_asked(trained):
    ours = evaluate_run(trained / "run", CPU, workers=0)["2D student"]
    official = evaluate_run(trained / "run", CPU, workers=0, assignments=["evaluate.absent=zero"])["2D student"]
    assert np.isnan(ours.iou).any()
    assert official.miou == pytest.approx(np.nan_to_num(ours.iou).mean())
    assert official.miou < ours.miou or ours.miou == 0


def test_two_processes_count_what_one_counts(trained, tmp_path):
    one = evaluate_run(trained / "run", CPU, workers=0)
    name = "rw3d_train evaluate --workers 0 --device cpu --set evaluate.combine=average"
    start = "-m torch.distributed.run --standalone --nproc-per-node=2 -m"
    done = subprocess.run(
        [sys.executable, *start.split(), *name.split(), str(trained / "run")],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mIoU") == 1  # rank 0 alone speaks
    two = json.loads((trained / "run" / "evaluation-val.json").read_text())["scores"]
    assert two == {name: json.loads(json.dumps(scores.to_json())) for name, scores in one.items()}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"split": "test"}, r"no scene of split 'test'; reconstruct it with"),
        ({"assignments": ["evaluate.combien=sum"]}, r"unknown key 'evaluate\.combien' \(did you mean 'combine'\?\)"),
    ],
)
def test_what_cannot_be_evaluated_is_told(trained, options, sentence):
    with pytest.raises(UserError, match=sentence):
        evaluate_run(trained / "run", CPU, workers=0, **options)
