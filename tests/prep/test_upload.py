"""Stores are uploaded whole, resumed, replaced and refused, against a real S3 endpoint over HTTP."""

import json
import shutil
from pathlib import Path

import obstore
import pytest

from rw3d_common import UserError, open_collection, open_scene, remote
from rw3d_common.collection import store_paths
from rw3d_common.errors import Exit
from rw3d_common.log import configure
from rw3d_common.remote import RemotePath, client
from rw3d_prep.cli_upload import upload_stores
from rw3d_prep.write import sha256_of
from s3_server import Proxy, s3_bucket
from sample_builders import add_samples, sampled_stores

TARGET = "s3://bucket/stores/demo"
PLACE = RemotePath("s3://bucket", "stores/demo")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return sampled_stores(tmp_path_factory.mktemp("upload"), frames=2, settings=("embed_images=true",))


@pytest.fixture
def stores(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "stores"))


@pytest.fixture
def endpoint():
    with s3_bucket() as found:
        yield found


@pytest.fixture
def said(caplog):
    """Lines that users see."""
    from rw3d_common.log import log

    log.propagate = True
    log.setLevel("INFO")
    yield caplog
    configure()


def objects_of(stores: Path) -> dict[str, str]:
    """What must lie in the bucket: SHA-256 by name."""
    wanted = [path for store in store_paths(stores) for path in store.rglob("*") if path.is_file()]
    return {path.relative_to(stores).as_posix(): sha256_of(path) for path in [*wanted, stores / "manifest.json"]}


def remote_objects() -> dict[str, str]:
    import hashlib

    return {name: hashlib.sha256((PLACE / name).read_bytes()).hexdigest() for name in PLACE.sizes()}


def puts(monkeypatch) -> list[str]:
    """Names in the order in which they are put from now on."""
    names, put = [], obstore.put

    def spy(store, path, *args, **more):
        done = put(store, path, *args, **more)
        names.append(path.removeprefix("stores/demo/"))
        return done

    monkeypatch.setattr(obstore, "put", spy)
    return names


def test_all_files_go_up_records_and_manifest_last_and_a_second_run_sends_only_the_manifest(
    stores, endpoint, monkeypatch
):
    order = puts(monkeypatch)
    assert upload_stores(stores, TARGET) == Exit.COMPLETE
    assert remote_objects() == objects_of(stores)
    assert order[-1] == "manifest.json"
    for store in store_paths(stores):
        name = store.relative_to(stores).as_posix()
        mine = [item for item in order if item.startswith(name)]
        assert mine[-2:] == [f"{name}/samples/zarr.json", f"{name}/zarr.json"]
    assert len(order) == len(set(order))
    order.clear()
    assert upload_stores(stores, TARGET) == Exit.COMPLETE
    assert order == ["manifest.json"]


def test_an_interrupted_upload_is_no_store_and_goes_on(stores, endpoint, monkeypatch):
    put, count = obstore.put, 0

    def dies(*args, **more):
        nonlocal count
        count += 1
        if count > 30:
            raise KeyboardInterrupt
        return put(*args, **more)

    monkeypatch.setattr(obstore, "put", dies)
    with pytest.raises(KeyboardInterrupt):
        upload_stores(stores, TARGET)
    there = PLACE.sizes()
    assert 0 < len(there) <= 30
    assert store_paths(TARGET) == []
    first = PLACE / store_paths(stores)[0].relative_to(stores).as_posix()
    with pytest.raises(UserError, match=r"comes last, is not there; end its upload with `rw3d-prep upload`"):
        open_scene(first)
    monkeypatch.setattr(obstore, "put", put)
    order = puts(monkeypatch)
    assert upload_stores(stores, TARGET) == Exit.COMPLETE
    assert not set(order) & set(there)
    assert remote_objects() == objects_of(stores)


def test_samples_added_later_follow(stores, endpoint):
    for store in store_paths(stores):
        shutil.rmtree(store / "samples")
    assert upload_stores(stores, TARGET) == Exit.COMPLETE
    assert not any("samples/" in name for name in PLACE.sizes())
    for store in store_paths(stores):
        add_samples(store)
    assert upload_stores(stores, TARGET) == Exit.COMPLETE
    assert remote_objects() == objects_of(stores)


def test_a_remade_group_replaces_the_old_one_whole(stores, endpoint, monkeypatch):
    assert upload_stores(stores, TARGET) == Exit.COMPLETE
    store = store_paths(stores)[0]
    shutil.rmtree(store / "samples")
    add_samples(store, points=200, own=100)
    deleted, delete = [], obstore.delete
    monkeypatch.setattr(obstore, "delete", lambda where, key: (deleted.append(key), delete(where, key)))
    assert upload_stores(stores, TARGET) == Exit.COMPLETE
    assert deleted[0].endswith("/samples/zarr.json")
    assert remote_objects() == objects_of(stores)


def test_an_altered_or_lost_object_is_sent_again(stores, endpoint, monkeypatch):
    assert upload_stores(stores, TARGET) == Exit.COMPLETE
    altered, lost = [name for name in PLACE.sizes() if "/points/label/c/" in name][:2]
    size = (PLACE / altered).size()
    obstore.put(client(PLACE), (PLACE / altered).key, b"x" * size)
    obstore.delete(client(PLACE), (PLACE / lost).key)
    order = puts(monkeypatch)
    assert upload_stores(stores, TARGET) == Exit.COMPLETE
    assert sorted(order) == sorted([altered, lost, "manifest.json"])
    assert remote_objects() == objects_of(stores)


def test_one_store_goes_below_the_target_by_its_name(stores, endpoint):
    store = store_paths(stores)[0]
    assert upload_stores(store, TARGET) == Exit.COMPLETE
    assert [scene.name for scene in open_collection(TARGET)] == [open_scene(store).name]


# Connections that break


def test_a_connection_that_breaks_is_tried_again(stores, endpoint, monkeypatch):
    proxy = Proxy(endpoint, breaks=4, after=600)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    assert upload_stores(stores, TARGET) == Exit.COMPLETE
    assert proxy.broken == 4
    proxy.close()
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert remote_objects() == objects_of(stores)


def test_a_connection_that_stays_broken_ends_with_3_and_what_is_missing(stores, endpoint, monkeypatch, said):
    proxy = Proxy(endpoint, breaks=10**9, after=600)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    monkeypatch.setitem(remote.RETRY, "max_retries", 1)
    assert upload_stores(stores, TARGET) == Exit.PARTIAL
    proxy.close()
    sentence = said.messages[-1]
    assert "\n" not in sentence
    assert "no answer, or one that broke off" in sentence
    assert "run the same command again; " in sentence
    assert "objects are not there, the first s3://bucket/stores/demo/" in sentence


# Bad input


def sentence_of(action) -> str:
    with pytest.raises(UserError) as raised:
        action()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_no_such_bucket(stores, endpoint):
    said = sentence_of(lambda: upload_stores(stores, "s3://buket/demo"))
    assert said.startswith("s3://buket/demo")
    assert "there is no bucket s3://buket; create it, or mend its name" in said


def test_no_credentials(stores, endpoint, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(remote.RETRY, "max_retries", 1)
    said = sentence_of(lambda: upload_stores(stores, TARGET))
    assert "no credentials; set AWS_ACCESS_KEY_ID" in said
    assert TARGET in said


def test_a_target_that_is_no_url(stores):
    assert sentence_of(lambda: upload_stores(stores, "bucket/demo")).startswith("bucket/demo: no URL of object storage")


def test_nothing_to_upload(tmp_path):
    assert "no finished scene here; make some with" in sentence_of(lambda: upload_stores(tmp_path, TARGET))


@pytest.mark.parametrize("fault", ["altered", "missing"])
def test_a_local_file_that_its_record_does_not_promise(stores, endpoint, fault):
    path = next(path for path in sorted(store_paths(stores)[0].rglob("c/0")) if path.is_file())
    if fault == "altered":
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    else:
        path.unlink()
    said = sentence_of(lambda: upload_stores(stores, TARGET))
    assert said.startswith(str(path))
    assert "`rw3d-prep verify`" in said
    assert store_paths(TARGET) == []


def test_the_checksums_are_the_objects_metadata(stores, endpoint):
    upload_stores(stores, TARGET)
    for name, checksum in objects_of(stores).items():
        assert remote.uploaded_checksum(PLACE / name) == checksum
    assert json.loads((PLACE / "manifest.json").read_bytes()) == json.loads((stores / "manifest.json").read_bytes())
