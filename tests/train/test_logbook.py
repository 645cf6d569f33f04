"""What a run writes of itself: means over steps, densities, waiting, and the same numbers for every tracker."""

import json
import sys
import time
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import pytest
import torch

from rw3d_common.labels import ClassMap, LabelClass
from rw3d_train import logbook
from rw3d_train.logbook import Logbook
from rw3d_train.metrics import Confusion


class Tracker:
    """Stands for TensorBoard's writer and for a run of Weights & Biases."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, float, int]] = []
        self.closed = False

    def add_scalar(self, name, value, step):
        self.seen.append((name, value, step))

    def log(self, numbers, step):
        self.seen += [(name, value, step) for name, value in numbers.items()]

    def close(self):
        self.closed = True

    finish = close


@dataclass
class Batch:
    """As much of a batch as is counted: two images of ten pixels each, four points, five correspondences."""

    labelled: int
    point_label: torch.Tensor = field(default_factory=lambda: torch.tensor([0, 255, 255, 255], dtype=torch.uint8))
    correspondences: tuple[int, ...] = (0,) * 5

    @property
    def label(self) -> torch.Tensor:
        label = torch.full((2, 2, 5), 255, dtype=torch.uint8)
        label.view(-1)[: self.labelled] = 1
        return label

    def __len__(self) -> int:
        return 2


@pytest.fixture
def run() -> SimpleNamespace:
    """A run of three steps per epoch."""
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.5}])
    method = SimpleNamespace(students={"2d": None})
    return SimpleNamespace(
        step=0, position=0, epoch=0, steps_per_epoch=3, bad_steps=1, optimizers={"2d": optimizer}, method=method
    )


@pytest.fixture
def trackers(monkeypatch) -> dict[str, Tracker]:
    """TensorBoard and W&B as if they were installed."""
    found = {"tensorboard": Tracker(), "wandb": Tracker()}
    board, wandb = ModuleType("torch.utils.tensorboard"), ModuleType("wandb")
    board.SummaryWriter = lambda _: found["tensorboard"]
    wandb.init = lambda **_: found["wandb"]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(logbook, "find_spec", lambda _: True)
    return found


def steps(book: Logbook, run, losses) -> None:
    for number, loss in enumerate(losses):
        book.note({"2d": torch.tensor(loss)}, [(Batch(number), Batch(0))])
        run.step, run.position = run.step + 1, run.position + 1


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_an_epoch_ends_with_the_means_of_its_steps(run, tmp_path, monkeypatch):
    monkeypatch.setattr(logbook, "find_spec", lambda _: None)
    with Logbook(tmp_path, run) as book:
        steps(book, run, [1.0, 2.0, 6.0])
    (line,) = lines(tmp_path)
    assert line["loss/2d"] == pytest.approx(3)
    assert line["labelled_pixels"] == pytest.approx((0 + 1 + 2) / 3 / 20)
    assert line["labelled_points"] == pytest.approx(1 / 4)
    assert line["correspondences_per_pixel"] == pytest.approx(5 / 20)
    assert (line["step"], line["lr/2d"], line["bad_steps"]) == (3, 0.5, 1)
    assert "loss 2d 3.000" in book.summary


def test_lines_come_every_few_steps(run, tmp_path, monkeypatch):
    monkeypatch.setattr(logbook, "find_spec", lambda _: None)
    monkeypatch.setattr(logbook, "EVERY_STEPS", 2)
    with Logbook(tmp_path, run) as book:
        steps(book, run, [1.0, 2.0, 6.0])
    assert [(line["step"], line["loss/2d"]) for line in lines(tmp_path)] == [(2, 1.5), (3, 6.0)]


def test_waiting_for_data_is_measured(run, tmp_path, monkeypatch):
    monkeypatch.setattr(logbook, "find_spec", lambda _: None)
    clock = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))  # every look takes a second
    book = Logbook(tmp_path, run)  # 0
    for number in book.timed(iter([0, 1, 2])):  # 1–2, 3–4, 5–6
        book.note({"2d": torch.tensor(0.0)}, [(Batch(0), Batch(0))])  # the third looks at 7
        run.position = number + 1
    assert lines(tmp_path)[0]["data_wait_share"] == pytest.approx(3 / 7)
    assert lines(tmp_path)[0]["samples_per_s"] == pytest.approx(6 / 7)


def test_what_is_not_a_number_is_null(run, tmp_path, monkeypatch):
    monkeypatch.setattr(logbook, "find_spec", lambda _: None)
    with Logbook(tmp_path, run) as book:
        steps(book, run, [float("nan")] * 3)
        book.scores({"student": Confusion(1).scores(ClassMap((LabelClass(0, "road", (0,), (0, 0, 0)),)))})
    assert lines(tmp_path)[0]["loss/2d"] is None
    assert lines(tmp_path)[1]["select/student/miou"] is None


def test_trackers_see_what_the_file_has_and_are_closed(run, tmp_path, trackers):
    with pytest.raises(KeyboardInterrupt), Logbook(tmp_path, run, wandb=True) as book:
        steps(book, run, [1.0, 2.0, 6.0])
        raise KeyboardInterrupt
    written = {(name, value, 3) for name, value in lines(tmp_path)[0].items() if name not in ("time", "step")}
    assert set(trackers["tensorboard"].seen) == set(trackers["wandb"].seen) == written
    assert trackers["tensorboard"].closed
    assert trackers["wandb"].closed


def test_wandb_is_asked_for(run, tmp_path, trackers):
    with Logbook(tmp_path, run) as book:
        steps(book, run, [1.0, 2.0, 6.0])
    assert trackers["tensorboard"].seen
    assert not trackers["wandb"].seen
