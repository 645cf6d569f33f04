"""`--scheduler`: a real cluster of two worker processes, one of which is killed in mid-batch."""

import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest

import cluster_faults
from builders import cut_short, kitti360_tree, kitti_files
from rw3d_common import UserError, open_collection
from rw3d_common.collection import store_paths
from rw3d_common.errors import Exit, Stopped
from rw3d_prep import cluster
from rw3d_prep.cli_reconstruct import _machines
from rw3d_prep.config import PrepConfig, load_config
from rw3d_prep.outcome import FAILURES
from rw3d_prep.pipeline import find_batches, reconstruct
from rw3d_prep.verify import verify
from rw3d_prep.write import Lock

distributed = pytest.importorskip("dask.distributed", reason="dask is not installed")


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> Iterator[Any]:
    """A client of two workers with one thread and one GPU each, which are started again when they die."""
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            resources={"GPU": 1},
            dashboard_address=":0",
            local_directory=tmp_path_factory.mktemp("dask"),
        ) as local,
        distributed.Client(local, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture
def address(client) -> Iterator[str]:
    yield client.scheduler.address
    client.run(cluster_faults.mend)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two drives of six frames: six scenes of two frames each."""
    return kitti360_tree(tmp_path_factory.mktemp("data") / "kitti", sequences=(0, 3), frames=range(6), size=(64, 128))


def config(size: int = 2) -> PrepConfig:
    return load_config("kitti360", None, "sensor", size, ["batching.min_size=1"])


@pytest.fixture(scope="module")
def expected(root, tmp_path_factory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("here")
    reconstruct(config(), root, out, workers=1)
    return hashes(out)


def hashes(out: Path) -> dict[str, str]:
    return {scene.name: scene.content_hash() for scene in open_collection(out)}


def leftovers(out: Path) -> list[Path]:
    return [*out.rglob("*.tmp*"), *out.rglob("*.lock")]


def when(happens: Callable[[], Any], then: Callable[[Any], None]) -> threading.Thread:
    """Do something in mid-run, with what has happened."""

    def wait() -> None:
        while not (seen := happens()):
            time.sleep(0.01)
        then(seen)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def writers(out: Path) -> list[int]:
    """Processes that hold the lock of a scene that they write."""
    held = [line.split() for line in Path("/proc/locks").read_text().splitlines() if "->" not in line]
    process_of = {words[5].split(":")[2]: int(words[4]) for words in held if words[1] == "FLOCK"}
    inodes = []
    for path in out.rglob("*.zarr.tmp-*.lock"):
        with suppress(FileNotFoundError):
            inodes.append(str(path.stat().st_ino))
    return [process_of[inode] for inode in inodes if inode in process_of]


def test_a_worker_killed_in_mid_batch(client, address, root, expected, tmp_path):
    client.run(cluster_faults.slow, 0.3)
    before = set(client.run(os.getpid).values())
    killing = when(lambda: writers(tmp_path), lambda pids: os.kill(pids[0], signal.SIGKILL))
    outcome = reconstruct(config(), root, tmp_path, workers=1, scheduler=address)
    killing.join()
    assert outcome.exit_code() == Exit.COMPLETE and sorted(outcome.written) == sorted(expected)
    assert hashes(tmp_path) == expected and verify(tmp_path) == [] and leftovers(tmp_path) == []
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert Counter(line["scene"] for line in lines) == Counter(expected.keys())
    client.wait_for_workers(2)
    assert len(before & set(client.run(os.getpid).values())) == 1


def test_paths_are_absolute_for_workers_that_run_elsewhere(address, root, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(root.parent)
    client_out = Path(os.path.relpath(tmp_path, root.parent))
    reconstruct(config(), Path(root.name), client_out, workers=1, scheduler=address)
    assert hashes(tmp_path) == expected


def test_the_resource_is_looked_for_before_anything_is_submitted(client, address, root, tmp_path):
    works, steps = find_batches(config(), root)[0][:2], []
    task = (config(), root, tmp_path, address)
    with pytest.raises(
        UserError, match=r"none of its 2 workers has the resource TPU; start some with dask worker tcp:"
    ):
        next(cluster.run_on_cluster(works, *task, {"TPU": 1.0}, lambda: steps.append(1)))
    assert not store_paths(tmp_path) and not steps
    made = list(cluster.run_on_cluster(works, *task, {"GPU": 1.0}, lambda: steps.append(1)))
    assert {work.name: future.result()["views"] for work, future in made} == {work.name: 2 for work in works}
    assert len(steps) == 4


def test_a_worker_without_the_package_is_named(address, root, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "look_around", cluster_faults.lack_a_module)
    with pytest.raises(
        UserError, match=r"Dask worker tcp:\S+: cannot run rw3d \(ModuleNotFoundError: .*'cv2'\); install"
    ):
        reconstruct(config(), root, tmp_path, workers=1, scheduler=address)
    assert not store_paths(tmp_path) and not [*tmp_path.rglob("*.lock")]


def test_out_of_memory_and_a_poisoned_image(client, address, tmp_path):
    root, out = kitti360_tree(tmp_path / "kitti", frames=range(6), size=(64, 128)), tmp_path / "out"
    image = kitti_files(root, 0, 5)["left"]
    cut_short(image)
    client.run(cluster_faults.fits, 2)
    outcome = reconstruct(config(4), root, out, workers=1, scheduler=address)
    assert outcome.exit_code() == Exit.PARTIAL
    [record] = [json.loads(line) for line in (out / FAILURES).read_text().splitlines()]
    assert str(image) in record["error"] and record["traceback"] is None
    assert [(scene.attrs["batch"]["asked"], len(scene)) for scene in open_collection(out)] == [(3, 2), (3, 1), (3, 2)]
    client.run(cluster_faults.fits, 0)
    failed = reconstruct(config(4), root, out, workers=1, scheduler=address, retry_failed=True).failed
    assert ["1 images do not fit into GPU memory" in sentence for sentence in failed.values()] == [True]


def test_stopped_and_completed(client, address, root, expected, tmp_path):
    def stop(number, _frame):
        raise Stopped(signal.Signals(number).name)

    client.run(cluster_faults.slow, 0.5)
    before = signal.signal(signal.SIGTERM, stop)
    when(lambda: store_paths(tmp_path), lambda _: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with pytest.raises(Stopped):
            reconstruct(config(), root, tmp_path, workers=1, scheduler=address)
    finally:
        signal.signal(signal.SIGTERM, before)
    when(lambda: not any(client.processing().values()), lambda _: None).join()
    assert not client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.tasks))
    assert 0 < len(store_paths(tmp_path)) < len(expected)
    client.run(cluster_faults.mend)
    assert reconstruct(config(), root, tmp_path, workers=1, scheduler=address).exit_code() == Exit.COMPLETE
    assert hashes(tmp_path) == expected and verify(tmp_path) == []


# Without a cluster


def test_a_task_is_small(root):
    """Paths and cameras travel, images and points do not."""
    [work, *_] = find_batches(config(6), root)[0]
    assert len(ForkingPickler.dumps(work)) < 1500 * len(work.frames)


def test_a_batch_that_kills_every_worker_is_put_into_words():
    class Ended:
        def exception(self) -> Exception:
            return distributed.scheduler.KilledWorker("make-scene", None, 3)

    with pytest.raises(RuntimeError, match="every Dask worker that had it was killed, most often for lack of memory"):
        cluster._told(Ended()).result()


@pytest.mark.parametrize(
    ("scheduler", "sentence"),
    [
        (
            "tcp://127.0.0.1:1",
            r"--scheduler tcp://127.0.0.1:1: no Dask scheduler answers there .*`dask scheduler` prints",
        ),
        ("nonsense://x", r"--scheduler nonsense://x: no Dask scheduler answers there"),
        (Path("gone.json"), r"--scheduler-file gone.json: no such file; start the cluster with dask scheduler"),
    ],
)
def test_no_scheduler(scheduler, sentence, root, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.2)
    with pytest.raises(UserError, match=sentence) as error:
        reconstruct(config(), root, tmp_path, workers=1, scheduler=scheduler)
    assert "\n" not in str(error.value)


def test_without_dask(root, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    with pytest.raises(UserError, match=r"--scheduler needs dask.distributed; pip install 'rw3d\[cluster\]'"):
        reconstruct(config(), root, tmp_path, workers=1, scheduler="tcp://127.0.0.1:1")


def test_what_a_worker_sees(root, tmp_path):
    lock = Lock(tmp_path / "cluster")
    assert cluster.look_around(config().backend, root, lock.path) is None
    missing = tmp_path / "elsewhere"
    assert f"does not see {missing};" in cluster.look_around(config().backend, missing, lock.path)
    assert f"does not see {missing};" in cluster.look_around(config().backend, root, missing / "cluster.lock")
    unheld = tmp_path / "unheld.lock"
    unheld.touch()
    assert f"locks in {tmp_path} do not hold between machines; mount" in cluster.look_around(
        config().backend, root, unheld
    )
    lock.release()


def test_options_that_contradict_each_other():
    assert _machines("2/3", None, None, Path("s.json"))[2] == Path("s.json")
    with pytest.raises(UserError, match=r"--gpus and --scheduler name different machines for the same work; give one"):
        _machines(None, "0", "tcp://x:1", None)
