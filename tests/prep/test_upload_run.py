"""`rw3d-prep reconstruct --upload`: scenes go up while others are made, and a broken network loses and repeats nothing."""

import json
import threading
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from builders import kitti360_tree
from run_command import run_command
from rw3d_common import UserError, open_collection, remote
from rw3d_common.collection import store_paths
from rw3d_common.errors import Stopped
from rw3d_common.remote import RemotePath
from rw3d_prep import upload_run
from rw3d_prep.outcome import FAILURES, Outcome, failed_scenes
from rw3d_prep.upload_run import RunUploads
from rw3d_prep.write import sha256_of
from s3_server import Proxy, s3_bucket

TARGET = "s3://bucket/stores"
PLACE = RemotePath("s3://bucket", "stores")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Four frames: two scenes of two."""
    return kitti360_tree(tmp_path_factory.mktemp("data") / "kitti360", frames=range(4), size=(24, 64))


@pytest.fixture
def endpoint():
    with s3_bucket() as found:
        yield found


@pytest.fixture
def rw3d_reconstruct(root, tmp_path, monkeypatch):
    def run(*more: str) -> int:
        options = ("--dataset", "kitti360", "--backend", "sensor", "--batch-size", "2", "--upload", TARGET)
        return run_command(
            monkeypatch, "reconstruct", *options, "--root", str(root), "--out", str(tmp_path / "out"), *more
        )

    return run


def local(out: Path) -> dict[str, int]:
    """What must be there: sizes by name."""
    files = [path for store in store_paths(out) for path in store.rglob("*") if path.is_file()]
    return {path.relative_to(out).as_posix(): path.stat().st_size for path in [*files, out / "manifest.json"]}


def records(out: Path) -> dict[str, str]:
    return {str(path): sha256_of(path / "zarr.json") for path in store_paths(out)}


def test_scenes_and_manifest_are_there_when_the_command_ends(rw3d_reconstruct, endpoint, tmp_path, monkeypatch):
    assert rw3d_reconstruct() == 0
    assert PLACE.sizes() == local(tmp_path / "out")
    assert [scene.content_hash() for scene in open_collection(TARGET)] == [
        scene.content_hash() for scene in open_collection(tmp_path / "out")
    ]
    assert run_command(monkeypatch, "verify", TARGET) == 0


def test_each_shard_uploads_its_own_and_the_last_one_the_manifest(rw3d_reconstruct, endpoint, tmp_path):
    assert rw3d_reconstruct("--shard", "2/2") == 0
    assert len(store_paths(TARGET)) == 1
    assert not (PLACE / "manifest.json").exists()
    assert rw3d_reconstruct("--shard", "1/2") == 0
    assert PLACE.sizes() == local(tmp_path / "out")


def test_a_broken_network_ends_with_3_and_the_same_command_goes_on(
    rw3d_reconstruct, endpoint, tmp_path, monkeypatch, capfd
):
    out = tmp_path / "out"
    proxy = Proxy(endpoint, breaks=10**9, after=2_000)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        patch.setitem(remote.RETRY, "max_retries", 1)
        assert rw3d_reconstruct() == 3
    proxy.close()
    assert "2 of 2 scenes were not uploaded" in capfd.readouterr().err
    assert len(store_paths(out)) == 2 and store_paths(TARGET) == []
    lines = [json.loads(line) for line in (out / FAILURES).read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["upload", "upload"]
    assert all("no answer, or one that broke off" in line["error"] for line in lines)
    assert failed_scenes(out / FAILURES) == set(), "--retry-failed has nothing to make again"

    made = records(out)
    assert rw3d_reconstruct() == 0
    assert records(out) == made
    assert PLACE.sizes() == local(out)
    assert not (out / FAILURES).exists()


def test_what_cannot_work_is_said_before_anything_is_made(rw3d_reconstruct, endpoint, tmp_path, capfd):
    for mistake, sentence in (
        (("--upload", "bucket/stores"), "--upload bucket/stores: no URL of object storage"),
        (("--upload", "s3://buket/stores"), "there is no bucket s3://buket; create it"),
        (("--redo-unhealthy",), "--redo-unhealthy removes scenes, which would stay there"),
    ):
        assert rw3d_reconstruct(*mistake) == 2
        assert sentence in capfd.readouterr().err
    assert store_paths(tmp_path / "out") == []


# The thread


def test_the_run_does_not_wait_for_the_network(tmp_path, monkeypatch):
    """Uploads that hang until the run is over, and one that fails with a bug of ours."""
    over, done = threading.Event(), []

    def slow(store, *_):
        assert over.wait(30)
        if store.name == "b.zarr":
            raise ZeroDivisionError("poisoned")
        done.append(store.name)

    monkeypatch.setattr(upload_run, "upload_scene", slow)
    outcome = Outcome(written=["a", "b"])
    with RunUploads(tmp_path, PLACE) as uploads:
        uploads.add("a")
        uploads.add("b")
        assert done == []
        over.set()
        uploads.finish(["a", "b", "earlier"], outcome, tmp_path / FAILURES)
    assert done == ["a.zarr", "earlier.zarr"]
    assert outcome.not_uploaded == {"b": "ZeroDivisionError: poisoned"}
    assert "in slow" in json.loads((tmp_path / FAILURES).read_text())["traceback"]


def test_a_stopped_run_abandons_the_upload_at_its_next_object(tmp_path, monkeypatch):
    started, ended = threading.Event(), []

    def endless(store, out, target, result, advance):
        started.set()
        try:
            while True:
                advance()
        except CancelledError:
            ended.append(store.name)
            raise

    monkeypatch.setattr(upload_run, "upload_scene", endless)
    with pytest.raises(Stopped), RunUploads(tmp_path, PLACE) as uploads:
        uploads.add("a")
        uploads.add("b")
        assert started.wait(30)
        raise Stopped
    uploads.thread.shutdown()
    assert ended == ["a.zarr"] and uploads.uploads["b"].cancelled()


def test_after_a_broken_connection_others_are_not_tried(tmp_path, monkeypatch):
    tried = []

    def broken(store, *_):
        tried.append(store.name)
        raise remote.Unreachable("no answer")

    monkeypatch.setattr(upload_run, "upload_scene", broken)
    outcome = Outcome(written=["a", "b"])
    with RunUploads(tmp_path, PLACE) as uploads:
        uploads.finish(["a", "b"], outcome, tmp_path / FAILURES)
    assert tried == ["a.zarr"] and set(outcome.not_uploaded) == {"a", "b"}


def test_without_a_target_nothing_happens(tmp_path):
    with RunUploads(tmp_path, None) as uploads:
        uploads.add("a")
        uploads.finish(["a"], Outcome(), tmp_path / FAILURES)
    assert uploads.uploads == {}
    with pytest.raises(UserError, match="no URL of object storage"):
        upload_run.upload_target("stores")
