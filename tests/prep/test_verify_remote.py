"""`rw3d-prep verify s3://…` finds what is altered, cut off, missing, foreign or not uploaded to its end."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import obstore
import pytest

from run_command import run_command
from rw3d_common import UserError, remote
from rw3d_common.collection import store_paths
from rw3d_common.remote import CHECKSUM, RemotePath, client
from rw3d_prep.cli_upload import upload_stores
from rw3d_prep.verify import verify
from s3_server import Proxy, s3_bucket
from sample_builders import sampled_stores

TARGET = "s3://bucket/stores/demo"
PLACE = RemotePath("s3://bucket", "stores/demo")


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Path:
    return sampled_stores(tmp_path_factory.mktemp("verify"), sequences=(0,), frames=2, settings=("embed_images=true",))


@pytest.fixture(scope="module")
def served(stores):
    with s3_bucket() as endpoint:
        upload_stores(stores, TARGET)
        yield endpoint


@pytest.fixture
def store(stores) -> RemotePath:
    return PLACE / store_paths(stores)[0].relative_to(stores).as_posix()


@contextmanager
def replaced(place: RemotePath, content: bytes | None, checksum: str | None = None) -> Iterator[None]:
    """Another content in the place of an object, or none, bearing its old checksum or `checksum`."""
    answer = obstore.get(client(place), place.key)
    before, attributes = bytes(answer.bytes()), answer.attributes
    try:
        if content is None:
            obstore.delete(client(place), place.key)
        else:
            more = attributes if checksum is None else {CHECKSUM: checksum}
            obstore.put(client(place), place.key, content, attributes=more)
        yield
    finally:
        obstore.put(client(place), place.key, before, attributes=attributes)


def test_all_is_well(served, monkeypatch, capfd):
    assert run_command(monkeypatch, "verify", TARGET) == 0
    assert f"{TARGET}: all 1 scenes are intact" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("group", "fault"),
    [
        ("points/position", "corrupted"),
        ("views/intrinsics", "truncated"),
        ("files/image", "missing"),
        ("samples/label", "truncated"),
        ("samples/position", "missing"),
    ],
)
def test_faulty_objects(served, store, group, fault, monkeypatch, capfd):
    name = next(name for name in store.sizes() if name.startswith(f"{group}/c/"))
    content = (store / name).read_bytes()
    bad = {"corrupted": bytes([content[0] ^ 1]) + content[1:], "truncated": content[:-1], "missing": None}[fault]
    with replaced(store / name, bad):
        assert run_command(monkeypatch, "verify", TARGET) == 3
    out, err = capfd.readouterr()
    assert f"{store}: {name} {'is missing' if fault == 'missing' else 'was altered'}" in out
    assert "1 faults; delete the faulty objects there, then `rw3d-prep upload` sends them again" in err
    assert "Traceback" not in err


def test_a_foreign_object(served, store):
    place = store / "points" / "notes.txt"
    obstore.put(client(place), place.key, b"?")
    try:
        assert verify(TARGET) == [f"{store}: points/notes.txt does not belong to the store"]
    finally:
        obstore.delete(client(place), place.key)


def test_completion_records(served, store):
    """A record that was altered, one that was uploaded by other tools, and one whose upload did not end."""
    root, content = store / "zarr.json", (store / "zarr.json").read_bytes()
    altered = content.replace(b'"split"', b'"split" ', 1)
    listed = f"{root}: differs from the SHA-256 in manifest.json"
    with replaced(root, altered):
        assert verify(TARGET) == [
            listed, f"{store}: zarr.json was altered (SHA-256 differs from when it was uploaded)"
        ]  # fmt: skip
    with replaced(root, content, checksum=""):
        [fault] = verify(TARGET)
        assert "zarr.json was altered" in fault
    with replaced(root, None):
        faults = verify(TARGET)
        assert (
            f"{store}: its zarr.json, which comes last, is not there; end its upload with `rw3d-prep upload`" in faults
        )
        assert any("listed in manifest.json but not there" in fault for fault in faults)
    samples = store / "samples" / "zarr.json"
    with replaced(samples, samples.read_bytes().replace(b'"draws"', b'"draws" ', 1)):
        assert verify(store) == [f"{store}: samples/zarr.json was altered (SHA-256 differs from when it was uploaded)"]


def test_a_connection_that_breaks_is_no_fault(served, monkeypatch):
    proxy = Proxy(served, breaks=3, after=3_000)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    assert verify(TARGET) == []
    assert proxy.broken == 3
    proxy.close()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setitem(remote.RETRY, "max_retries", 1)
    with pytest.raises(UserError, match="no answer, or one that broke off"):
        verify(TARGET)


def test_nothing_there(served):
    with pytest.raises(UserError, match="no scene store here"):
        verify(RemotePath("s3://bucket", "elsewhere"))


def test_objects_are_streamed(served, store, monkeypatch):
    """No object is read whole to be hashed, and a copy in the cache says nothing of what is there."""
    from rw3d_prep import verify_remote

    table = {name: hashlib.sha256((store / name).read_bytes()).hexdigest() for name in store.sizes()}
    monkeypatch.setattr(RemotePath, "read_bytes", None)
    monkeypatch.setattr(verify_remote, "CHUNK_BYTES", 100)
    there = verify_remote.object_table(store)
    assert {name: facts["sha256"] for name, facts in there.items()} == {
        name: checksum for name, checksum in table.items() if name != "zarr.json"
    }
