"""`--gpus`: one process per GPU. The GPUs are locked files; the processes, their deaths and the signals are real."""

import json
import multiprocessing
import os
import signal
import threading
from collections import Counter
from pathlib import Path

import pytest

from builders import kitti360_tree
from fake_gpus import FakeGpus
from rw3d_common import open_collection
from rw3d_common.errors import DiskFull, Exit, Stopped, UserError
from rw3d_prep import batch_scene
from rw3d_prep.devices import MOST_DEATHS, parse_gpus
from rw3d_prep.outcome import FAILURES, Outcome
from rw3d_prep.pipeline import find_batches, reconstruct
from rw3d_prep.reconstruct.sensor import SensorConfig
from rw3d_prep.verify import verify
from sleeping_backend import sleeping_config

FRAMES = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Twelve frames: six batches of two."""
    return kitti360_tree(tmp_path_factory.mktemp("data") / "kitti", frames=range(FRAMES), size=(32, 64))


@pytest.fixture(autouse=True)
def no_gpus_are_hidden(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def run(monkeypatch, backend: FakeGpus, root: Path, out: Path, gpus=(0, 1), size: int = 2) -> Outcome:
    monkeypatch.setattr(batch_scene, "backend_of", lambda _: backend)
    return reconstruct(sleeping_config(size), root, out, workers=2, gpus=gpus)


def frames_in(out: Path) -> Counter[int]:
    return Counter(store.view(index).frame_id for store in open_collection(out) for index in range(len(store)))


def assert_clean(out: Path) -> None:
    assert not [*out.rglob("*.tmp*"), *out.rglob("*.lock")]
    assert not multiprocessing.active_children()


def assert_whole(out: Path, but: tuple[int, ...] = ()) -> None:
    """Every frame once, but for those, every store intact, nothing beside them, and no process left."""
    assert frames_in(out) == Counter(set(range(FRAMES)) - set(but))
    assert verify(out) == []
    assert_clean(out)


def test_the_bytes_are_those_of_one_gpu_and_no_gpu_has_two_batches_at_once(root, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7,GPU-9")  # as a scheduler has it
    backend = FakeGpus(folder=tmp_path, gpu=0.1, together=2)
    outcome = run(monkeypatch, backend, root, tmp_path / "out", gpus=(0, 2))
    assert outcome.exit_code() == Exit.COMPLETE
    for batch in find_batches(sleeping_config(2), root)[0]:
        batch_scene.reconstruct_batch(batch, sleeping_config(2), root, tmp_path / "plain")
    together, alone = open_collection(tmp_path / "out"), open_collection(tmp_path / "plain")
    assert [one.content_hash() for one in together] == [one.content_hash() for one in alone]
    processes = {gpu: {row[1] for row in backend.computed() if row[0] == gpu} for gpu in ("5", "GPU-9")}
    assert [len(ids) for ids in processes.values()] == [1, 1], "one model per GPU"
    assert sorted(outcome.written) == sorted(scene.name for scene in together)
    assert_whole(tmp_path / "out")


def test_killed_processes_give_their_batches_back(root, tmp_path, monkeypatch, caplog):
    """One batch kills a process once and is made by another; one kills every process and fails, alone."""
    monkeypatch.setattr("rw3d_common.log.log.propagate", True)
    out, backend = tmp_path / "out", FakeGpus(folder=tmp_path, killing={1: 1, 5: 99})
    outcome = run(monkeypatch, backend, root, out)
    assert outcome.exit_code() == Exit.PARTIAL and len(outcome.written) == FRAMES // 2 - 1
    [record] = [json.loads(line) for line in (out / FAILURES).read_text().splitlines()]
    assert record["scene"].endswith("0000000004-0000000005") and [*outcome.failed] == [record["scene"]]
    assert "two processes died while they had this batch (signal 9)" in record["error"]
    for first in (0, 4):
        assert len({process for _, process, *_ in backend.computed(first)}) == 2
    told = {id(record) for record in caplog.records if "its process died (signal 9)" in record.getMessage()}
    assert len(told) == 3
    assert_whole(out, but=(4, 5))


def test_a_gpu_on_which_every_process_dies_is_left_alone(root, tmp_path, monkeypatch):
    backend = FakeGpus(folder=tmp_path, killing=dict.fromkeys(range(FRAMES), 99))
    outcome = run(monkeypatch, backend, root, tmp_path / "out", gpus=(3,))
    assert len(outcome.failed) == FRAMES // 2 and not outcome.written
    assert len(backend.computed()) == MOST_DEATHS
    assert sum("no GPU is left" in sentence for sentence in outcome.failed.values()) > 0
    assert_clean(tmp_path / "out")


def test_out_of_memory_and_a_bug(root, tmp_path, monkeypatch):
    """Halves go by way of the parent; a bug is recorded with the traceback of its process."""
    backend = FakeGpus(folder=tmp_path, fits=4, poison=(1,))
    outcome = run(monkeypatch, backend, root, tmp_path / "out", gpus=(0,), size=6)
    assert outcome.exit_code() == Exit.PARTIAL
    [record] = [json.loads(line) for line in (tmp_path / "out" / FAILURES).read_text().splitlines()]
    assert record["scene"].endswith("0000000000-0000000002") and "ZeroDivisionError: poisoned" in record["error"]
    assert "in finish" in record["traceback"]
    assert {scene.attrs["batch"]["used"] for scene in open_collection(tmp_path / "out")} == {3}
    assert_whole(tmp_path / "out", but=(0, 1, 2))


def test_a_full_disk_and_a_missing_gpu_stop_the_run(root, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(DiskFull, match="no space left"):
        run(patch, FakeGpus(folder=tmp_path, full=(0,)), root, tmp_path / "out", gpus=(0,))
    assert_clean(tmp_path / "out")
    with pytest.raises(UserError, match=r"^GPU 4: no CUDA device is available$"):
        run(monkeypatch, FakeGpus(folder=tmp_path, absent=("4",)), root, tmp_path / "out", gpus=(4,))
    assert_clean(tmp_path / "out")


def test_stopped_in_mid_batch_and_completed(root, tmp_path, monkeypatch):
    def stop(number, _frame):
        raise Stopped(signal.Signals(number).name)

    def stop_when_both_compute():
        while len(backend.computed()) < 3:
            finished.wait(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    backend, finished = FakeGpus(folder=tmp_path, gpu=0.2), threading.Event()
    before = signal.signal(signal.SIGUSR1, stop)
    threading.Thread(target=stop_when_both_compute, daemon=True).start()
    try:
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            run(patch, backend, root, tmp_path / "out")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert_clean(tmp_path / "out")
    assert 0 < len(backend.computed()) < FRAMES // 2
    assert run(monkeypatch, FakeGpus(folder=tmp_path), root, tmp_path / "out", gpus=(1,)).exit_code() == Exit.COMPLETE
    assert_whole(tmp_path / "out")


@pytest.mark.parametrize("text", ["", "a", "0,", "0,0", "-1", "0;1"])
def test_gpus_that_cannot_be_read(text):
    with pytest.raises(UserError, match=r"--gpus .*: give different numbers of GPUs .*for example 0,2"):
        parse_gpus(text)


def test_gpus_that_the_scheduler_has_not_given(monkeypatch):
    assert parse_gpus(" 2,0") == (2, 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert parse_gpus("1") == (1,)
    with pytest.raises(UserError, match=r"--gpus 0,2: CUDA_VISIBLE_DEVICES=5,7 leaves 2 GPUs.*choose among 0, 1"):
        parse_gpus("0,2")


def test_a_backend_without_a_gpu_refuses_gpus(root, tmp_path):
    config = sleeping_config().model_copy(update={"backend": SensorConfig()})
    with pytest.raises(UserError, match=r"--gpus 0,1: the sensor backend works without a GPU; use --workers"):
        reconstruct(config, root, tmp_path / "out", 1, gpus=(0, 1))
