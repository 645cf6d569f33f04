"""Kill it, stop it, run it twice at once, damage what it wrote: the next run or `verify` puts it right or says so."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from builders import kitti360_tree
from rw3d_common import UserError, open_collection, open_scene
from rw3d_common.collection import store_paths
from rw3d_prep.verify import verify, verify_store

KILLS = 20
LEFTOVERS = ("*.tmp*", "*.lock", "*.partial")
Hashes = dict[str, str]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two drives of six frames: six scenes of two frames each."""
    return kitti360_tree(tmp_path_factory.mktemp("data") / "kitti", sequences=(0, 3), frames=range(6), size=(64, 128))


class Run:
    """`rw3d-prep reconstruct` in a process group of its own."""

    def __init__(self, root: Path, out: Path, workers: int = 1) -> None:
        options = ["--dataset", "kitti360", "--backend", "sensor", "--root", root, "--out", out, "--batch-size", 2]
        command = [sys.executable, "-c", "from rw3d_prep.cli import main; main()", "reconstruct", *options]
        self.process = subprocess.Popen(
            [str(word) for word in [*command, "--workers", workers]],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started = time.monotonic()

    def until_working(self) -> None:
        """Wait for the first line, which is written when the imports are through."""
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        assert line.startswith("reconstruct kitti360"), line

    def finish(self) -> tuple[int, str]:
        """Exit code and the rest of stderr."""
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err

    def kill(self, everyone: bool = False) -> None:
        """SIGKILL to the program alone, or to its workers as well; returns when none of them lives."""
        if everyone:
            os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()
        self.finish()
        self.until_alone()

    def until_alone(self) -> None:
        """Wait for the end of workers and other helpers, which see their parent's end a moment later."""
        deadline = time.monotonic() + 10
        while alive := living(self.process.pid):
            assert time.monotonic() < deadline, f"processes {alive} outlive their parent"
            time.sleep(0.02)

    def until_finished_scenes(self, out: Path, count: int) -> None:
        while self.process.poll() is None and len(store_paths(out)) < count:
            time.sleep(0.005)


def living(group: int) -> list[int]:
    """Processes of a process group that still run; dead ones that nobody has reaped yet do not count."""
    alive = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, process_group = path.read_text().rsplit(")", 1)[1].split()[:3]
            if int(process_group) == group and state not in "ZX":
                alive.append(int(path.parent.name))
    return alive


def complete(root: Path, out: Path, workers: int = 1) -> None:
    code, err = Run(root, out, workers).finish()
    assert code == 0, err


def hashes(out: Path) -> Hashes:
    return {scene.name: scene.content_hash() for scene in open_collection(out)}


def leftovers(out: Path) -> list[Path]:
    return [path for pattern in LEFTOVERS for path in out.rglob(pattern)]


def assert_finished_scenes_are_whole(out: Path, expected: Hashes) -> None:
    """Whatever bears a final name now opens and verifies; the newest holds what an uninterrupted run writes."""
    stores = sorted(store_paths(out), key=lambda path: path.stat().st_mtime)
    assert [fault for path in stores for fault in verify_store(path)] == []
    for path in stores[-1:]:
        scene = open_scene(path)
        assert scene.content_hash() == expected[scene.name]


@pytest.fixture(scope="module")
def uninterrupted(root, tmp_path_factory) -> tuple[Path, float]:
    """A finished output folder, and the seconds of work that it takes after the imports (the faster of two runs)."""
    folder, seconds = tmp_path_factory.mktemp("uninterrupted"), []
    for name in ("warm", "out"):
        run = Run(root, folder / name)
        run.until_working()
        started = time.monotonic()
        code, err = run.finish()
        assert code == 0, err
        seconds.append(time.monotonic() - started)
    assert len(store_paths(folder / "out")) == 6
    return folder / "out", min(seconds)


@pytest.fixture(scope="module")
def expected(uninterrupted) -> Hashes:
    return hashes(uninterrupted[0])


# Killed


def kill_moments(seconds: float, seed: int) -> list[float]:
    """KILLS moments, one at random in each of as many equal parts of the run, shuffled."""
    generator = random.Random(seed)
    moments = [(part + generator.random()) / KILLS * seconds for part in range(KILLS)]
    generator.shuffle(moments)
    return moments


def test_killed_at_random_moments_then_completed(root, uninterrupted, expected, tmp_path):
    """Four folders, each killed five times on its way: later runs meet finished scenes and orphans alike."""
    interrupted = 0
    for index, moment in enumerate(kill_moments(uninterrupted[1], seed=1)):
        out = tmp_path / f"out{index // 5}"
        run = Run(root, out)
        run.until_working()
        time.sleep(moment)
        run.kill()
        assert_finished_scenes_are_whole(out, expected)
        finished = store_paths(out)
        interrupted += len(finished) < len(expected)
        for path in finished[::2]:  # so that the next kill meets work, too
            shutil.rmtree(path)
    assert interrupted >= KILLS // 3, "kills must meet runs that are not through"
    for out in sorted(tmp_path.iterdir()):
        complete(root, out)
        assert hashes(out) == expected
        assert leftovers(out) == []
        assert verify(out) == []


def test_workers_die_with_their_killed_parent(root, uninterrupted, expected, tmp_path):
    for index, share in enumerate((0.2, 0.9, 1.6)):
        run = Run(root, tmp_path / "out", workers=2)
        run.until_working()
        time.sleep(share * uninterrupted[1])
        run.kill(everyone=index == 1)
        assert_finished_scenes_are_whole(tmp_path / "out", expected)
    complete(root, tmp_path / "out", workers=2)
    assert hashes(tmp_path / "out") == expected
    assert leftovers(tmp_path / "out") == []


def test_kill_after_a_manifest_was_written(root, uninterrupted, expected, tmp_path):
    """An old manifest must not make the scenes of a run that died look foreign."""
    out = tmp_path / "out"
    shutil.copytree(uninterrupted[0], out)
    for path in store_paths(out)[1:]:
        shutil.rmtree(path)
    run = Run(root, out)
    run.until_working()
    run.until_finished_scenes(out, 3)
    run.kill()
    assert verify(out) == []


# Stopped


@pytest.mark.parametrize(
    ("number", "workers", "scenes"),
    [
        (signal.SIGTERM, 1, 0),
        (signal.SIGTERM, 1, 2),
        (signal.SIGTERM, 2, 2),
        (signal.SIGINT, 1, 2),
        (signal.SIGINT, 2, 0),
        (signal.SIGINT, 2, 2),
        (signal.SIGUSR1, 1, 2),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_stopped_by_a_signal_and_completed(root, expected, tmp_path, number, workers, scenes):
    """A signal after so many finished scenes; with 0 the workers are still starting."""
    run = Run(root, tmp_path / "out", workers)
    run.until_working()
    run.until_finished_scenes(tmp_path / "out", scenes)
    if number == signal.SIGINT:
        os.killpg(run.process.pid, number)  # as Ctrl-C in a terminal does
    else:
        run.process.send_signal(number)
    code, err = run.finish()
    assert code == 75, err
    assert f"stopped by {number.name}" in err
    assert "same command" in err
    assert "Traceback" not in err, err
    assert "resource_tracker" not in err
    run.until_alone()
    assert_finished_scenes_are_whole(tmp_path / "out", expected)
    complete(root, tmp_path / "out", workers)
    assert hashes(tmp_path / "out") == expected
    assert leftovers(tmp_path / "out") == []


def test_stop_that_arrives_in_a_finalizer_is_not_lost():
    """Python drops exceptions in `__del__` and weak reference callbacks, where a signal may well arrive."""
    program = """
import os, signal, sys, time
from rw3d_prep import cli

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            pass

def work(*_, **__):
    Finalized()
    time.sleep(20)

cli.app = work
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=15, check=False)
    assert (done.returncode, done.stderr.splitlines()) == (
        75,
        ["stopped by SIGTERM; the same command goes on from here"],
    )


# Side by side


def test_two_workers_write_the_same(root, expected, tmp_path):
    complete(root, tmp_path / "out", workers=2)
    assert hashes(tmp_path / "out") == expected
    assert verify(tmp_path / "out") == []


def test_two_runs_into_one_folder(root, expected, tmp_path):
    runs = [Run(root, tmp_path / "out") for _ in range(2)]
    for run in runs:
        code, err = run.finish()
        assert code == 0, err
    assert hashes(tmp_path / "out") == expected
    assert verify(tmp_path / "out") == []
    assert leftovers(tmp_path / "out") == []


# Damaged


@pytest.fixture
def damaged(uninterrupted, tmp_path) -> Path:
    """A copy of the finished folder, to be damaged."""
    shutil.copytree(uninterrupted[0], tmp_path / "out")
    return tmp_path / "out"


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 5] ^= 0x10
    path.write_bytes(content)


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def read_everything(store: Path) -> None:
    scene = open_scene(store)
    scene.content_hash()
    for index in range(len(scene)):
        scene.view(index)


SHARD = "points/position/c/0/0"


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (SHARD, Path.unlink),
        (SHARD, halve),
        (SHARD, flip_a_bit),
        ("points/color/c/0/0", flip_a_bit),
        ("points/label/c/0", Path.unlink),
        ("points/label/c/0", lambda path: path.write_bytes(b"")),
        ("views/intrinsics/c/0/0/0", Path.unlink),
        ("views/frame_id/c/0", flip_a_bit),
        ("views/camera_to_world", shutil.rmtree),
        ("points/confidence", shutil.rmtree),
        ("zarr.json", Path.unlink),
        ("zarr.json", halve),
        ("zarr.json", lambda path: path.write_text("[]")),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", "damage").strip("<>"),
)
def test_damage_is_named_and_never_read_as_data(damaged, name: str, damage: Callable[[Path], object]):
    store = store_paths(damaged)[2]
    damage(store / name)
    faults = verify(damaged)
    assert any(str(store) in fault and name in fault for fault in faults), faults
    others = [path for path in store_paths(damaged) if path != store]
    assert not any(str(path) in fault for fault in faults for path in others), faults
    with pytest.raises(UserError, match=r"verify|delete") as error:
        read_everything(store)
    assert str(store) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [('"complete"', '"incomplete"'), ('"schema_version": 1', '"schema_version": 99')],
    ids=["completion record deleted", "another schema version"],
)
def test_store_that_says_it_is_unfinished_or_foreign(damaged, old, new):
    store = store_paths(damaged)[0]
    text = (store / "zarr.json").read_text()
    assert old in text
    (store / "zarr.json").write_text(text.replace(old, new))
    assert any(str(store) in fault for fault in verify_store(store))
    with pytest.raises(UserError, match="reconstruct"):
        open_scene(store)


def test_edited_attributes_show_against_the_manifest(damaged):
    store = store_paths(damaged)[0]
    text = (store / "zarr.json").read_text()
    (store / "zarr.json").write_text(text.replace('"sequence": "2013', '"sequence": "2014', 1))
    assert any(fault.startswith(str(store / "zarr.json")) for fault in verify(damaged))


def test_lost_truth_shows_in_verify(damaged):
    """A scene may lack dense labels, so reading goes on without them."""
    shutil.rmtree(store_paths(damaged)[0] / "points" / "truth")
    assert any("points/truth/c/0 is missing" in fault for fault in verify(damaged))


def test_edited_array_metadata(damaged):
    path = store_paths(damaged)[0] / "points" / "label" / "zarr.json"
    path.write_text(path.read_text().replace('"fill_value": 255', '"fill_value": 0'))
    assert any("points/label/zarr.json was altered" in fault for fault in verify(damaged))


def test_foreign_file_in_a_store(damaged):
    (store_paths(damaged)[0] / "points" / ".DS_Store").write_text("x")
    assert any("points/.DS_Store does not belong to the store" in fault for fault in verify(damaged))


def test_scene_that_was_removed(damaged):
    gone = store_paths(damaged)[0]
    shutil.rmtree(gone)
    assert any(str(gone) in fault and "not there" in fault for fault in verify(damaged))


def test_verify_exits_3_and_the_deleted_scene_is_made_again(root, damaged, expected):
    store = store_paths(damaged)[1]
    (store / SHARD).unlink()
    code, out, err = in_a_process("verify", damaged)
    assert code == 3
    assert f"{store}: {SHARD} is missing" in out
    assert "delete the faulty scenes" in err
    shutil.rmtree(store)
    complete(root, damaged)
    assert hashes(damaged) == expected
    assert in_a_process("verify", damaged)[0] == 0


def test_run_into_a_folder_with_a_broken_store_says_which(root, damaged):
    store = store_paths(damaged)[1]
    (store / "zarr.json").unlink()
    code, err = Run(root, damaged).finish()
    assert code == 2
    assert f"{store}: its zarr.json is missing; delete this folder" in err
    assert "Traceback" not in err, err


def in_a_process(*arguments: object) -> tuple[int, str, str]:
    command: Sequence[str] = [sys.executable, "-c", "from rw3d_prep.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_hash_tells_content_not_time(uninterrupted, expected):
    """The control: the hash is the same twice, and differs between scenes."""
    assert hashes(uninterrupted[0]) == expected
    assert len(set(expected.values())) == len(expected)
    assert all(np.isfinite(scene.read("position")).all() for scene in open_collection(uninterrupted[0]))
