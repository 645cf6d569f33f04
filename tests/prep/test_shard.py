"""`--shard i/n`: jobs that know nothing of each other make every scene once, and put the folder right together."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import cut_short, kitti360_tree, kitti_files
from rw3d_common import UserError, open_collection
from rw3d_common.collection import store_paths
from rw3d_common.errors import Exit
from rw3d_prep.batching import Batch
from rw3d_prep.config import PrepConfig, load_config
from rw3d_prep.frames import Frame
from rw3d_prep.outcome import Outcome
from rw3d_prep.pipeline import reconstruct
from rw3d_prep.shard import WHOLE, Shard
from rw3d_prep.verify import verify
from rw3d_prep.work import scene_names

FAILURES, MANIFEST = "failures.jsonl", "manifest.json"


def batches(sizes: list[int]) -> list[Batch]:
    """One batch of so many frames after the other."""
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [
        Batch(tuple(Frame("train", "s", start + frame, "c", Path("x.png")) for frame in range(size)))
        for start, size in zip(starts, sizes, strict=True)
    ]


# Who makes what


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 12))
def test_parts_are_disjoint_complete_and_balanced(sizes, count):
    works = batches(sizes)
    parts = [Shard(index, count).of(works) for index in range(1, count + 1)]
    assert list(chain.from_iterable(parts)) == works
    for part in parts:
        assert abs(sum(len(work.frames) for work in part) - sum(sizes) / count) < max(sizes, default=1)


def test_equal_batches_are_dealt_out_evenly():
    assert [len(Shard(index, 4).of(batches([5] * 10))) for index in (1, 2, 3, 4)] in ([2, 3, 2, 3], [3, 2, 3, 2])
    assert WHOLE.of(batches([3, 1])) == batches([3, 1])


def test_names_of_scenes_are_those_of_all_halves():
    assert len(scene_names(batches([4]))) == 7


@pytest.mark.parametrize("text", ["", "3", "0/2", "3/2", "1/0", "-1/2", "1/2/3", "a/b", "1 /2"])
def test_shards_that_cannot_be_read(text):
    with pytest.raises(UserError, match=r"--shard .*: give i/n with i from 1 to n, for example --shard 3/8") as error:
        Shard.parse(text)
    assert text in str(error.value)


def test_files_of_a_shard(tmp_path):
    path, shard = tmp_path / FAILURES, Shard.parse("2/3")
    assert shard.file(path) == tmp_path / "failures-2of3.jsonl" and WHOLE.file(path) == path
    shard.file(path).touch()
    assert shard.files_read(path) == [shard.file(path)]
    assert WHOLE.files_read(path) == [shard.file(path), path]


# In processes, all at once


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two drives of six frames: six scenes of two frames each."""
    return kitti360_tree(tmp_path_factory.mktemp("data") / "kitti", sequences=(0, 3), frames=range(6), size=(64, 128))


def config() -> PrepConfig:
    return load_config("kitti360", None, "sensor", 2, [])


@pytest.fixture(scope="module")
def expected(root, tmp_path_factory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("whole")
    reconstruct(config(), root, out, workers=1)
    return hashes(out)


def hashes(out: Path) -> dict[str, str]:
    return {scene.name: scene.content_hash() for scene in open_collection(out)}


def job(root: Path, out: Path, shard: str, *more: object) -> subprocess.Popen[str]:
    options = ["--dataset", "kitti360", "--backend", "sensor", "--root", root, "--out", out, "--batch-size", 2]
    command = [
        sys.executable,
        "-c",
        "from rw3d_prep.cli import main; main()",
        "reconstruct",
        *options,
        "--shard",
        shard,
    ]
    words = [str(word) for word in [*command, *more]]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def metrics(path: Path) -> list[str]:
    return [json.loads(line)["scene"] for line in path.read_text().splitlines()]


def test_jobs_side_by_side_make_what_one_makes(root, expected, tmp_path):
    jobs = [job(root, tmp_path, f"{index}/3") for index in (1, 2, 3)]
    for code, err in map(ended, jobs):
        assert code == 0, err
    assert hashes(tmp_path) == expected
    made = [metrics(tmp_path / f"metrics-{index}of3.jsonl") for index in (1, 2, 3)]
    assert sorted(chain.from_iterable(made)) == sorted(expected), "each once"
    assert all(made)
    assert set(json.loads((tmp_path / MANIFEST).read_text())["scenes"]) == {f"{name}.zarr" for name in expected}
    assert verify(tmp_path) == []
    assert not [*tmp_path.rglob("*.tmp*"), *tmp_path.rglob("*.lock"), *tmp_path.glob("failures*")]


def test_stopped_by_a_schedulers_signal_to_all_processes(root, expected, tmp_path):
    """`sbatch --signal` reaches every process of a job step: workers must leave it to their parent."""
    process = job(root, tmp_path, "1/1", "--workers", 2)
    while not store_paths(tmp_path):
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGUSR1)
    code, err = ended(process)
    assert code == 75 and "stopped by SIGUSR1" in err, err
    assert "failed" not in err and "Traceback" not in err, err
    assert not [*tmp_path.rglob("*.tmp*"), *tmp_path.rglob("*.lock")]
    reconstruct(config(), root, tmp_path, workers=1)
    assert hashes(tmp_path) == expected


# One after the other


def run(root: Path, out: Path, shard: Shard = WHOLE, retry_failed: bool = False) -> Outcome:
    return reconstruct(config(), root, out, workers=1, retry_failed=retry_failed, shard=shard)


def test_the_manifest_is_written_by_whoever_finds_every_scene(root, expected, tmp_path):
    assert run(root, tmp_path, Shard(2, 2)).exit_code() == Exit.COMPLETE
    assert not (tmp_path / MANIFEST).exists(), "one that lacks scenes would call them foreign"
    assert verify(tmp_path) == []
    assert len(run(root, tmp_path, Shard(1, 2)).written) == 3
    assert set(json.loads((tmp_path / MANIFEST).read_text())["scenes"]) == {f"{name}.zarr" for name in expected}
    again = run(root, tmp_path, Shard(1, 2))
    assert len(again.skipped) == 3 and not again.written
    assert verify(tmp_path) == [] and (tmp_path / MANIFEST).exists()


def test_more_jobs_than_scenes(root, expected, tmp_path):
    outcomes = [run(root, tmp_path, Shard(index, 9)) for index in range(1, 10)]
    assert sorted(chain.from_iterable(outcome.written for outcome in outcomes)) == sorted(expected)
    assert {outcome.exit_code() for outcome in outcomes} == {Exit.COMPLETE}
    assert (tmp_path / MANIFEST).exists() and verify(tmp_path) == []


@pytest.mark.parametrize("retried_by", [Shard(2, 2), WHOLE], ids=["its own job", "a whole run"])
def test_failures_of_a_job_are_its_own_and_a_whole_run_knows_all(tmp_path, retried_by):
    root, out = kitti360_tree(tmp_path / "kitti", frames=range(6), size=(64, 128)), tmp_path / "out"
    image = kitti_files(root, 0, 3)["left"]
    content = image.read_bytes()
    cut_short(image)
    assert run(root, out, Shard(2, 2)).exit_code() == Exit.PARTIAL
    assert run(root, out, Shard(1, 2)).exit_code() == Exit.COMPLETE
    failures = Shard(2, 2).file(out / FAILURES)
    assert len(failures.read_text().splitlines()) == 1 and not (out / FAILURES).exists()
    assert not (out / MANIFEST).exists()
    image.write_bytes(content)
    assert len(run(root, out, Shard(1, 2), retry_failed=True).written) == 0
    assert failures.exists()
    assert len(run(root, out, retried_by, retry_failed=True).written) == 1
    assert not [*out.glob("failures*")]
    assert len(open_collection(out)) == 3 and (out / MANIFEST).exists() and verify(out) == []


def test_a_job_sweeps_only_after_itself(root, tmp_path):
    """Where locks do not hold between machines, another job's running writer looks dead."""
    first, second = (
        tmp_path / f"{min(names)}.zarr.tmp-1"
        for names in (
            {"train/2013_05_28_drive_0000_sync/0000000000-0000000001"},
            {"train/2013_05_28_drive_0003_sync/0000000004-0000000005"},
        )
    )
    for store in (first, second):
        store.mkdir(parents=True)
    run(root, tmp_path, Shard(1, 2))
    assert not first.exists() and second.exists()
    run(root, tmp_path, Shard(2, 2))
    assert not second.exists() and verify(tmp_path) == []


def test_a_redo_looks_at_all_scenes(root, tmp_path):
    code, err = ended(job(root, tmp_path, "1/2", "--redo-unhealthy"))
    assert code == 2 and "give it without --shard 1/2, when all jobs are through" in err
