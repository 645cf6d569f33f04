"""The pipelined run, with a backend that sleeps where a GPU would work: overlap, order, bounds, and what goes wrong."""

import errno
import json
import multiprocessing
import os
import signal
import threading
from collections import Counter
from pathlib import Path
from statistics import median

import pytest

from builders import cut_short, kitti360_tree, kitti_files
from rw3d_common import open_collection
from rw3d_common.errors import DiskFull, Exit, Stopped, UserError
from rw3d_common.log import log
from rw3d_prep import batch_scene, gpu_pipeline
from rw3d_prep.outcome import FAILURES, Outcome, failed_scenes, forget_failures
from rw3d_prep.pipeline import find_batches
from rw3d_prep.verify import verify
from sleeping_backend import SleepingBackend, run_sleeping, sleeping_config

DRIVE = "train/2013_05_28_drive_0000_sync"


@pytest.fixture
def root(tmp_path) -> Path:
    """Twelve frames: three batches of four."""
    return kitti360_tree(tmp_path / "kitti", frames=range(12))


def scene(first: int, last: int) -> str:
    return f"{DRIVE}/{first:010d}-{last:010d}"


def names(out: Path) -> list[str]:
    return [path.relative_to(out).as_posix().removesuffix(".zarr") for path in sorted(out.rglob("*.zarr"))]


def frames_in(out: Path) -> Counter[int]:
    return Counter(store.view(index).frame_id for store in open_collection(out) for index in range(len(store)))


def failures(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / FAILURES).read_text().splitlines()]


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_whole(out: Path) -> None:
    """All twelve frames once, every store in order, nothing beside them, and no worker left."""
    assert frames_in(out) == Counter(range(12))
    assert verify(out) == []
    assert not [*out.rglob("*.tmp*"), *out.rglob("*.lock"), *out.rglob(FAILURES)]
    assert not multiprocessing.active_children()


def test_the_bytes_are_those_of_one_step_after_the_other(root, tmp_path, monkeypatch):
    config = sleeping_config()
    outcome = run_sleeping(monkeypatch, SleepingBackend(), root, tmp_path / "out", workers=2, processes=True)
    assert outcome.exit_code() == Exit.COMPLETE
    assert outcome.written == [scene(0, 3), scene(4, 7), scene(8, 11)], "published in order"
    for batch in find_batches(config, root)[0]:
        batch_scene.reconstruct_batch(batch, config, root, tmp_path / "plain")
    together, alone = open_collection(tmp_path / "out"), open_collection(tmp_path / "plain")
    assert [one.content_hash() for one in together] == [one.content_hash() for one in alone]
    assert all(one.attrs["batch"] == {"asked": 4, "used": 4} for one in [*together, *alone])
    assert_whole(tmp_path / "out")


def test_the_gpu_does_not_wait(tmp_path, monkeypatch, caplog):
    """Finishing sleeps for a quarter of the GPU's time, which one after the other would show in `gpu_busy`."""
    root = kitti360_tree(tmp_path / "kitti", frames=range(16))
    monkeypatch.setattr(log, "propagate", True)
    with caplog.at_level("INFO", logger="rw3d"):
        run_sleeping(monkeypatch, SleepingBackend(gpu=1.6, finish_seconds=0.1), root, tmp_path / "out", processes=True)
    lines = metrics(tmp_path / "out")
    assert [line["views"] for line in lines] == [4] * 4
    assert median(line["gpu_busy"] for line in lines) > 0.9, lines
    for line in lines:
        assert 1.6 <= line["gpu_seconds"] < 2 and line["finish_seconds"] >= 0.4 and line["write_seconds"] > 0
        assert line["views_per_second"] <= 4 / 1.6 and line["gpu_peak_bytes"] == 0
    assert any("16 views in" in message and "the model was at work for" in message for message in caplog.messages)


def test_memory_is_bounded(root, tmp_path, monkeypatch):
    """Slow workers behind a fast GPU: one batch decoded, one on the GPU, one being written, and no more."""
    backend = SleepingBackend(finish_seconds=0.05)
    publish = gpu_pipeline.write_scene

    def publish_and_tell(batch, *arguments):
        counts = publish(batch, *arguments)
        backend.events.append(("published", batch.frames[0].id, len(batch.frames)))
        return counts

    monkeypatch.setattr(gpu_pipeline, "write_scene", publish_and_tell)
    run_sleeping(monkeypatch, backend, root, tmp_path / "out", size=2)
    when = {(what, first): moment for moment, (what, first, _) in enumerate(backend.events)}
    for first in (0, 2, 4, 6):
        assert when["published", first] < when["copy", first + 2], "results leave the GPU one batch at a time"
        assert when["copy", first] < when["load", first + 4], "one batch is decoded ahead"
    assert [first for what, first, _ in backend.events if what == "infer"] == [0, 2, 4, 6, 8, 10]


def test_a_poisoned_image_is_recorded_and_retried_alone(root, tmp_path, monkeypatch):
    out, image = tmp_path / "out", kitti_files(root, 0, 5)["left"]
    content = image.read_bytes()
    cut_short(image)
    outcome = run_sleeping(monkeypatch, SleepingBackend(), root, out)
    assert outcome.exit_code() == Exit.PARTIAL
    assert names(out) == [scene(0, 3), scene(8, 11)]
    [record] = failures(out)
    assert record["scene"] == scene(4, 7) and str(image) in record["error"] and record["traceback"] is None
    assert record["frames"] == [f"{DRIVE}/{frame:010d} image_00" for frame in range(4, 8)]

    again = run_sleeping(monkeypatch, SleepingBackend(), root, out, retry_failed=True)
    assert again.exit_code() == Exit.PARTIAL and len(failures(out)) == 1, "recorded once, however often it is tried"
    image.write_bytes(content)
    backend = SleepingBackend()
    assert run_sleeping(monkeypatch, backend, root, out, retry_failed=True).exit_code() == Exit.COMPLETE
    assert backend.events == [("load", 4, 4), ("infer", 4, 4), ("copy", 4, 4)]
    assert_whole(out)


def test_retry_leaves_what_is_merely_missing(root, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    backend = SleepingBackend()
    assert run_sleeping(monkeypatch, backend, root, tmp_path / "out", retry_failed=True).exit_code() == Exit.COMPLETE
    assert backend.events == [] and names(tmp_path / "out") == []


def test_retry_with_other_options_is_refused(root, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    Outcome().record(scene(3, 7), UserError("x"), out / FAILURES)
    with pytest.raises(UserError, match=r"0000000003-0000000007 is no batch of this recipe; repeat the options"):
        run_sleeping(monkeypatch, SleepingBackend(), root, out, retry_failed=True)
    assert failed_scenes(out / FAILURES) == {scene(3, 7)}


def test_a_bug_in_a_worker_fails_its_batch_with_a_traceback(root, tmp_path, monkeypatch):
    outcome = run_sleeping(monkeypatch, SleepingBackend(poison=(1, 2)), root, tmp_path / "out", processes=True)
    assert outcome.exit_code() == Exit.PARTIAL
    assert names(tmp_path / "out") == [scene(4, 7), scene(8, 11)]
    [record] = failures(tmp_path / "out")
    assert record["error"] == "ZeroDivisionError: poisoned" and "in finish" in record["traceback"]


def test_a_killed_worker_takes_no_more_than_its_batches(root, tmp_path, monkeypatch):
    """Batches in flight when it dies are recorded, new workers do the rest, and a retry completes the run."""
    out, backend = tmp_path / "out", SleepingBackend(gpu=0.2, deadly=(1,), scar=tmp_path / "scar")
    with monkeypatch.context() as patch:
        outcome = run_sleeping(patch, backend, root, out, processes=True)
    assert (tmp_path / "scar").exists()
    assert outcome.exit_code() == Exit.PARTIAL
    assert scene(0, 3) in outcome.failed and len(outcome.failed) <= 2
    assert all("a worker process was killed" in record["error"] for record in failures(out))
    assert scene(8, 11) in names(out)
    assert run_sleeping(monkeypatch, backend, root, out, retry_failed=True).exit_code() == Exit.COMPLETE
    assert_whole(out)


def test_a_full_disk_stops_the_run_and_leaves_nothing_unfinished(root, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    backend = SleepingBackend(gpu=0.1)
    with monkeypatch.context() as patch, pytest.raises(DiskFull, match="no space left"):
        patch.setattr("rw3d_prep.write.ShardedColumn.append", full)
        run_sleeping(patch, backend, root, tmp_path / "out")
    assert not [*(tmp_path / "out").rglob("*.zarr*")] and not multiprocessing.active_children()
    assert run_sleeping(monkeypatch, backend, root, tmp_path / "out").exit_code() == Exit.COMPLETE
    assert_whole(tmp_path / "out")


def test_stopped_while_all_stages_are_busy(root, tmp_path, monkeypatch):
    """The signal meets the main thread in the model, a worker in a view, and the writer waiting for it."""

    def stop(number, _frame):
        raise Stopped(signal.Signals(number).name)

    publish = gpu_pipeline.write_scene

    def stop_in_the_second(batch, *arguments):
        if batch.frames[0].id == 4:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        return publish(batch, *arguments)

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            patch.setattr(gpu_pipeline, "write_scene", stop_in_the_second)
            run_sleeping(patch, SleepingBackend(gpu=0.5, finish_seconds=0.1), root, tmp_path / "out", processes=True)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not [*(tmp_path / "out").rglob("*.tmp*"), *(tmp_path / "out").rglob("*.lock")]
    assert not multiprocessing.active_children()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("load", "write"))]
    assert names(tmp_path / "out") == [scene(0, 3)]
    run_sleeping(monkeypatch, SleepingBackend(), root, tmp_path / "out")
    assert_whole(tmp_path / "out")


# failures.jsonl


def test_a_damaged_list_of_failures_is_named(tmp_path):
    path = tmp_path / FAILURES
    assert failed_scenes(path) == set()
    for damage in ("{", "[]", '{"frames": []}'):
        path.write_text('{"scene": "a/b/1-2", "frames": []}\n' + damage + "\n")
        with pytest.raises(UserError, match=r"line 2 .*delete that line.*--retry-failed") as error:
            failed_scenes(path)
        assert str(path) in str(error.value)


def test_only_earlier_failures_are_forgotten(tmp_path):
    path, outcome = tmp_path / FAILURES, Outcome()
    forget_failures(path, 0)
    outcome.record("old", UserError("x"), path)
    size = path.stat().st_size
    outcome.record("new", UserError("y"), path)
    forget_failures(path, size)
    assert failed_scenes(path) == {"new"}
    forget_failures(path, path.stat().st_size)
    assert not path.exists()
