"""Running cells with a stand-in for the trainer: skip, fail, stop, go on, share, and one GPU each."""

import fcntl
import json
import os
import signal
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest

from compare_builders import cells_in, recipe_file
from rw3d_common.errors import Stopped, UserError
from rw3d_train.compare import runner
from rw3d_train.compare.cells import is_finished, record_of
from rw3d_train.compare.runner import Machine, expected_seconds, remaining, run_cells


@pytest.fixture(autouse=True)
def fake_trainer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "TRAINER", (sys.executable, str(Path(__file__).parents[1] / "fake_trainer.py")))
    monkeypatch.setattr(runner, "POLL", 0.01)


def plan(**cells: object) -> None:
    Path("fake.json").write_text(json.dumps({name.replace("_", " "): what for name, what in cells.items()}))


def starts() -> list[dict]:
    path = Path("starts.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def cells_here(tmp_path, **changes):
    return cells_in(recipe_file(tmp_path, **{"reference": None, **changes}), Path("runs"))


def test_finished_cells_are_skipped(tmp_path):
    cells = cells_here(tmp_path)
    assert run_cells(cells, Machine(), {"rw3d": "1"}) == []
    assert [line["cell"] for line in starts()] == ["supervised 0", "ema 0", "supervised 1", "ema 1"]
    assert run_cells(cells, Machine(), {}) == []
    assert len(starts()) == 4
    record = record_of(cells[0])
    assert record["versions"]["rw3d"] == "1"
    assert record["versions"]["device"].startswith("cpu")
    assert record["command"].startswith(
        f"rw3d-train run --config {cells[0].folder}/recipe.yaml --out {cells[0].folder}"
    )
    assert record["seconds"] > 0


def test_a_failed_cell_is_listed_and_the_others_go_on(tmp_path):
    plan(ema_0="fail")
    cells = cells_here(tmp_path)
    (failure,) = run_cells(cells, Machine(), {})
    assert (failure.cell, failure.code) == (cells[1], 2)
    assert failure.said.splitlines()[-1] == "  rw3d-train: stores/x: no scene; make some"
    assert [is_finished(cell) for cell in cells] == [True, False, True, True]
    plan()
    assert run_cells(cells, Machine(), {}) == []
    assert [(line["cell"], line["resumed"]) for line in starts()[4:]] == [("ema 0", True)]


def test_a_stopped_comparison_ends_its_cells_and_goes_on(tmp_path):
    plan(ema_0="hang", supervised_1="hang")
    cells = cells_here(tmp_path)

    def stop(number, frame):
        raise Stopped("SIGTERM")

    def when_both_hang():
        while sum(line["end"] is None for line in starts()) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=when_both_hang).start()
    try:
        with pytest.raises(Stopped):
            run_cells(cells, Machine(jobs=2), {})
    finally:
        signal.signal(signal.SIGTERM, before)
    hung = [line["pid"] for line in starts() if line["end"] is None]
    assert len(hung) == 2
    for pid in hung:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    spent = record_of(cells[1])["seconds"]
    assert spent > 0
    plan()
    done = len(starts())
    assert run_cells(cells, Machine(jobs=2), {}) == []
    assert [line["resumed"] for line in starts()[done:] if line["cell"] in ("ema 0", "supervised 1")] == [True, True]
    assert record_of(cells[1])["seconds"] > spent  # what it took before counts


def test_a_cell_that_another_process_trains_is_waited_for(tmp_path):
    cells = cells_here(tmp_path)
    cells[0].folder.mkdir(parents=True)
    log = (cells[0].folder / "cell.log").open("ab")
    fcntl.flock(log, fcntl.LOCK_EX)
    threading.Timer(0.3, log.close).start()
    assert run_cells(cells, Machine(), {}) == []
    assert sorted(line["cell"] for line in starts()) == ["ema 0", "ema 1", "supervised 0", "supervised 1"]
    assert starts()[0]["cell"] == "ema 0"


def test_a_gpu_trains_one_cell_at_a_time(tmp_path):
    plan(seconds=0.1)
    assert run_cells(cells_here(tmp_path, seeds=[0, 1, 2]), Machine(2, ("2", "5")), {}) == []
    lines = starts()
    assert {line["gpu"] for line in lines} == {"2", "5"}
    for gpu in ("2", "5"):
        times = sorted((line["begin"], line["end"]) for line in lines if line["gpu"] == gpu)
        assert all(end <= begin for (_, end), (begin, _) in pairwise(times))
    command = record_of(cells_here(tmp_path)[0])["command"]
    assert command.endswith("--device cuda")  # a missing GPU is an error there, not a training on the CPU


@pytest.mark.parametrize(
    ("jobs", "gpus", "device", "sentence"),
    [
        (3, ("0", "1"), "auto", r"--jobs 3: only 2 GPUs are named, and each trains one cell at a time"),
        (None, ("0", "0"), "auto", r"--gpus 0,0: one of them comes twice"),
        (None, ("7",), "auto", r"--gpus 7: torch finds no CUDA GPU on this machine; leave it out, or give --jobs"),
        (None, ("0",), "cpu", r"--gpus 0 and --device cpu name different machines; give one of them"),
        (2, (), "cuda", r"--jobs 2: these trainings would share one GPU; name several, as in --gpus 0,1"),
    ],
)
def test_a_gpu_is_never_shared(jobs, gpus, device, sentence, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=sentence):
        Machine.of(jobs, gpus, device)


def test_cores_are_shared_out_to_the_jobs(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(runner, "cores", lambda: 7)
    assert run_cells(cells_here(tmp_path)[:2], Machine(jobs=2, device="cpu"), {}) == []
    assert [line["threads"] for line in starts()] == ["3", "3"]


def test_the_time_left_is_estimated_from_cells_of_the_same_method(tmp_path):
    cells = cells_here(tmp_path)
    assert remaining(cells, cells, 1) == ""
    run_cells(cells[:2], Machine(), {})
    for cell, seconds in zip(cells[:2], (60, 600), strict=True):
        path = cell.folder / "cell.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": seconds}))
    assert expected_seconds(cells[2], cells) == 60
    assert expected_seconds(cells[3], cells) == 600
    assert remaining(cells[2:], cells, 2) == "6 min"  # 330 s
