"""Out of GPU memory: batches are halved, always in the same place, and resumed, retried and counted as what they are."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import kitti360_tree
from rw3d_common import open_collection
from rw3d_common.errors import Exit
from rw3d_prep.batching import Batch, listed_parts, missing_parts
from rw3d_prep.frames import Frame
from rw3d_prep.outcome import FAILURES
from rw3d_prep.reconstruct import gpu_memory
from rw3d_prep.verify import verify
from sleeping_backend import OutOfMemoryError, SleepingBackend, run_sleeping, sleeping_config

DRIVE = "train/2013_05_28_drive_0000_sync"


def rig(moments: int, cameras: int = 1) -> Batch:
    frames = [
        Frame("train", "s", moment, f"c{camera}", Path("x.png"))
        for moment in range(moments)
        for camera in range(cameras)
    ]
    return Batch(tuple(frames))


# Halving


@given(st.integers(1, 40), st.integers(1, 3))
def test_halves_keep_every_frame_and_every_timestamp(moments, cameras):
    batch, leaves = rig(moments, cameras), []
    todo = [batch]
    while todo:
        part = todo.pop(0)
        halves = part.halves()
        if halves is None:
            leaves.append(part)
            continue
        assert halves[0].frames + halves[1].frames == part.frames
        assert 0 <= len(halves[0].frames) - len(halves[1].frames) <= cameras
        assert halves[0].frames[-1].id < halves[1].frames[0].id
        assert [half.asked for half in halves] == [len(batch.frames)] * 2
        todo += halves
    assert len(leaves) == moments and all(len(leaf.frames) == cameras for leaf in leaves)
    assert len({leaf.name for leaf in leaves}) == moments


@given(st.integers(1, 12), st.data())
def test_what_is_missing_and_what_is_finished_make_up_the_batch(moments, data):
    """Split at random as a run would, finish some parts at random: nothing is lost and nothing made twice."""
    whole, finished, todo = rig(moments), [], [rig(moments)]
    while todo:
        part = todo.pop()
        halves = part.halves()
        if halves and data.draw(st.booleans()):
            todo += halves
        elif data.draw(st.booleans()):
            finished.append(part)
    missing = missing_parts(whole, {part.name for part in finished})
    assert Counter(f.id for part in [*finished, *missing] for f in part.frames) == Counter(range(moments))
    assert missing == [whole] or finished
    assert all(part.asked == moments for part in missing)


def test_listed_parts_are_found_at_any_depth():
    first, second = rig(8).halves()
    deep = second.halves()[1]
    names = {first.name, deep.name, "train/s/0000000090-0000000099"}
    assert [part.name for part in listed_parts(rig(8), names)] == [first.name, deep.name]
    assert listed_parts(rig(8), {rig(8).name, deep.name}) == [rig(8)]


def test_the_smallest_size_is_no_part_of_a_scenes_identity():
    assert sleeping_config(min_size=1).hash() == sleeping_config(min_size=9).hash() != sleeping_config(size=5).hash()


@pytest.mark.parametrize(
    ("error", "exhausted"),
    [
        (OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (MemoryError("of the host"), False),
    ],
)
def test_which_errors_mean_that_gpu_memory_is_exhausted(error, exhausted):
    assert gpu_memory.is_exhausted(error) is exhausted


def test_torch_still_calls_it_that():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    assert gpu_memory.is_exhausted(torch.OutOfMemoryError("CUDA out of memory"))
    assert (gpu_memory.take_peak(), gpu_memory.release()) == (0, None), "without a GPU both do nothing"


# In a run


@pytest.fixture
def root(tmp_path) -> Path:
    return kitti360_tree(tmp_path / "kitti", frames=range(16))


def sizes(out: Path) -> dict[str, tuple[int, int]]:
    """Scene name → frames asked for, frames used."""
    return {
        scene.name.split("/")[-1]: (scene.attrs["batch"]["asked"], scene.attrs["batch"]["used"])
        for scene in open_collection(out)
    }


def frames_in(out: Path) -> Counter[int]:
    return Counter(scene.view(index).frame_id for scene in open_collection(out) for index in range(len(scene)))


def inferred(backend: SleepingBackend) -> list[tuple[int, int]]:
    return [(first, count) for what, first, count in backend.events if what == "infer"]


def test_halved_until_it_fits_and_resumed_as_it_is(root, tmp_path, monkeypatch, caplog):
    out, backend = tmp_path / "out", SleepingBackend(fits=4)
    monkeypatch.setattr("rw3d_common.log.log.propagate", True)
    outcome = run_sleeping(monkeypatch, backend, root, out, size=8, min_size=2)
    assert outcome.exit_code() == Exit.COMPLETE and not (out / FAILURES).exists()
    assert sizes(out) == {f"{n:010d}-{n + 3:010d}": (8, 4) for n in (0, 4, 8, 12)}
    assert frames_in(out) == Counter(range(16)) and verify(out) == []
    assert sorted(inferred(backend)) == [(0, 4), (0, 8), (4, 4), (8, 4), (8, 8), (12, 4)]
    assert any(
        "8 images do not fit into GPU memory" in message and "--batch-size 4" in message for message in caplog.messages
    )

    again = SleepingBackend(fits=4)
    assert run_sleeping(monkeypatch, again, root, out, size=8, min_size=2).exit_code() == Exit.COMPLETE
    assert again.events == [], "scenes of both halves are the batch"
    [gone] = [scene.path for scene in open_collection(out) if scene.name.endswith("0000000007")]
    gone.rename(tmp_path / "gone")
    run_sleeping(monkeypatch, again, root, out, size=8, min_size=2)
    assert inferred(again) == [(4, 4)], "neither the other half again nor the whole batch"
    assert frames_in(out) == Counter(range(16)) and verify(out) == []


def test_not_below_the_smallest_size(root, tmp_path, monkeypatch):
    """Recorded with its frames; a retry with a lower limit, or more memory, makes just that batch."""
    out = tmp_path / "out"
    outcome = run_sleeping(monkeypatch, SleepingBackend(fits=4), root, out, size=12, min_size=6)
    assert outcome.exit_code() == Exit.BAD_INPUT, "no batch fitted, so nothing was made"
    records = [json.loads(line) for line in (out / FAILURES).read_text().splitlines()]
    assert [len(record["frames"]) for record in records] == [8, 8] and records[0]["traceback"] is None
    error = records[0]["error"]
    assert all(part in error for part in (f"{DRIVE}/0000000000", "8 images", "--min-batch 6", "CUDA out of memory"))
    assert len(error) < 400 and "\n" not in error
    retried = run_sleeping(monkeypatch, SleepingBackend(fits=4), root, out, size=12, min_size=4, retry_failed=True)
    assert retried.exit_code() == Exit.COMPLETE and not (out / FAILURES).exists()
    assert frames_in(out) == Counter(range(16)) and set(sizes(out).values()) == {(8, 4)}


def test_a_failing_half_is_retried_as_a_half(root, tmp_path, monkeypatch):
    out = tmp_path / "out"
    outcome = run_sleeping(monkeypatch, SleepingBackend(fits=4, poison=(1,)), root, out, size=8)
    assert outcome.exit_code() == Exit.PARTIAL
    assert list(outcome.failed) == [f"{DRIVE}/0000000000-0000000003"]
    backend = SleepingBackend(fits=4)
    run_sleeping(monkeypatch, backend, root, out, size=8, retry_failed=True)
    assert inferred(backend) == [(0, 4)]
    assert frames_in(out) == Counter(range(16)) and verify(out) == []
