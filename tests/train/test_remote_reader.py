"""Training reads the same items from S3 as from folders, in processes of its own and over connections that break."""

from pathlib import Path

import numpy as np
import obstore
import pytest
import torch

from rw3d_common import UserError, open_collection, open_scene, remote
from rw3d_common.collection import store_paths
from rw3d_common.remote import RemotePath, client
from rw3d_prep.cli_upload import upload_stores
from rw3d_train.data.dataset import SceneDataset
from s3_server import Proxy, s3_bucket
from sample_builders import sampled_stores

TARGET = "s3://bucket/stores/demo"
PLACE = RemotePath("s3://bucket", "stores/demo")


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Path:
    return sampled_stores(tmp_path_factory.mktemp("remote"), frames=2, settings=("embed_images=true",))


@pytest.fixture(scope="module")
def served(stores):
    with s3_bucket() as endpoint:
        upload_stores(stores, TARGET)
        yield endpoint


def assert_same(ours, theirs) -> None:
    assert ours.key == theirs.key
    for name in ("image", "label", "truth", "position", "color", "confidence", "point_label", "pixel"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


@pytest.mark.parametrize("cache", [False, True])
def test_every_item_is_the_local_one(stores, served, cache, tmp_path, monkeypatch):
    if cache:
        monkeypatch.setenv("RW3D_CACHE", str(tmp_path))
    ours, theirs = SceneDataset(TARGET), SceneDataset(stores)
    assert len(ours) == len(theirs) > 0
    for item in range(len(theirs)):
        assert_same(ours[item], theirs[item])
    assert any(tmp_path.rglob("*")) == cache
    if cache:
        monkeypatch.setattr(RemotePath, "read_range", None)  # all is here now
        assert_same(SceneDataset(TARGET)[0], theirs[0])


def test_scenes_open_and_hash_like_local_ones(stores, served):
    local = open_collection(stores)
    for ours, theirs in zip(open_collection(TARGET), local, strict=True):
        assert ours.name == theirs.name
        assert ours.content_hash() == theirs.content_hash()
        assert ours.samples_hash() == theirs.samples_hash()
        np.testing.assert_array_equal(ours.view(1).read_image(), theirs.view(1).read_image())
        assert str(ours.path) in repr(ours)
    assert store_paths(Path(TARGET)) == store_paths(TARGET)  # pathlib takes a slash away


def test_workers_open_clients_of_their_own(stores, served):
    """Spawned: a fork server that an earlier test started has the environment of that time, without credentials."""
    dataset = SceneDataset(TARGET)
    dataset[0]
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    for ours, theirs in zip(loader, SceneDataset(stores), strict=False):
        np.testing.assert_array_equal(ours.position, theirs.position)


def test_a_fork_is_refused_in_one_sentence(served, monkeypatch):
    PLACE.sizes()
    monkeypatch.setattr(remote, "_owner", [-1])
    with pytest.raises(UserError, match=r"was forked from one that had read object storage.*'forkserver' or 'spawn'"):
        PLACE.sizes()


def test_a_connection_that_breaks_in_the_middle_of_a_read(stores, served, monkeypatch):
    wanted = SceneDataset(stores)[0]
    dataset = SceneDataset(TARGET)
    proxy = Proxy(served, breaks=3, after=1500)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    assert_same(dataset[0], wanted)
    assert proxy.broken == 3
    proxy.close()


def test_a_connection_that_stays_broken(served, monkeypatch):
    dataset = SceneDataset(TARGET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setitem(remote.RETRY, "max_retries", 1)
    with pytest.raises(UserError, match=r"^s3://bucket/stores/demo/.*no answer, or one that broke off") as raised:
        dataset[0]
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("fault", ["altered", "missing"])
def test_altered_and_missing_objects(stores, served, fault, cache, tmp_path, monkeypatch):
    if cache:
        monkeypatch.setenv("RW3D_CACHE", str(tmp_path))
    dataset = SceneDataset(TARGET)
    store = PLACE / store_paths(stores)[0].relative_to(stores).as_posix()
    place = store / "samples" / next(n for n in (store / "samples").sizes() if n.startswith("position/c/"))
    content = place.read_bytes()
    try:
        if fault == "altered":
            obstore.put(client(place), place.key, bytes([content[0] ^ 1]) + content[1:50] + b"?" + content[51:])
        else:
            obstore.delete(client(place), place.key)
        with pytest.raises(UserError) as raised:
            dataset.points(0)
        assert str(raised.value).startswith(str(place))
        assert "\n" not in str(raised.value)
        expected = {"missing": "is missing", "altered": "completion record" if cache else "damaged"}[fault]
        assert expected in str(raised.value)
        with pytest.raises(UserError, match=r"samples/position cannot be read|completion record"):
            open_scene(store).sample(0)
    finally:
        obstore.put(client(place), place.key, content)
