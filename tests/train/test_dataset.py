"""Training items are what the stores hold, in any process; moved data and faulty stores are told in one sentence."""

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from builders import kitti_files
from rw3d_common import UserError, open_collection, open_scene
from rw3d_common.collection import store_paths
from rw3d_common.images import read_image
from rw3d_prep import cli
from rw3d_prep.config import load_config
from rw3d_prep.pipeline import reconstruct
from rw3d_prep.verify import verify_store
from rw3d_train.data.augment import AugmentConfig, GeometryConfig, PhotometricConfig, augment
from rw3d_train.data.dataset import SceneDataset
from rw3d_train.data.index import Strings
from rw3d_train.data.sample import Sample
from sample_builders import OWN, POINTS, add_samples, sampled_stores

FRAMES = 4
AUGMENT = partial(
    augment, config=AugmentConfig(geometry=GeometryConfig(crop=(20, 30)), photometric=PhotometricConfig(cutout=()))
)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two drives with samples, and their data; read only."""
    folder = tmp_path_factory.mktemp("dataset")
    sampled_stores(folder, frames=FRAMES)
    return folder


@pytest.fixture
def stores(made) -> Path:
    return made / "stores"


@pytest.fixture
def own(made, tmp_path) -> Path:
    """Copies of stores and data that a test may break."""
    shutil.copytree(made, tmp_path / "own")
    for store in store_paths(tmp_path / "own" / "stores"):
        edit(store, lambda attributes: attributes.update(root=str(tmp_path / "own" / "kitti360")))
    return tmp_path / "own"


def edit(group: Path, change) -> None:
    document = json.loads((group / "zarr.json").read_text())
    change(document["attributes"])
    (group / "zarr.json").write_text(json.dumps(document))


def error_of(action) -> str:
    with pytest.raises(UserError) as raised:
        action()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def assert_equal(ours: Sample, theirs: Sample) -> None:
    for name, values in vars(theirs).items():
        mine = getattr(ours, name)
        if isinstance(values, np.ndarray):
            assert mine.dtype == values.dtype, name
            np.testing.assert_array_equal(mine, values, name)
        else:
            assert mine == values, name


# What an item holds


def test_items_are_the_samples_of_the_stores_in_order(stores):
    dataset = SceneDataset(stores)
    assert len(dataset) == 2 * FRAMES
    items = iter(dataset[i] for i in range(len(dataset)))
    for scene in open_collection(stores):
        for row in range(FRAMES):
            item, expected, view = next(items), scene.sample(row), scene.view(row)
            for name in ("position", "color", "confidence"):
                np.testing.assert_array_equal(getattr(item, name), getattr(expected, name))
            np.testing.assert_array_equal(item.point_label, expected.label)
            np.testing.assert_array_equal(item.point_truth, expected.truth)
            np.testing.assert_array_equal(item.pixel @ [64, 1], expected.pixel)
            np.testing.assert_array_equal(item.image, view.read_image())
            np.testing.assert_array_equal(item.label, view.read_label())
            np.testing.assert_array_equal(item.truth, view.read_truth())
            np.testing.assert_array_equal(item.camera_to_world, view.camera_to_world)
            assert item.key == f"train/{scene.attrs['sequence']}/{view.frame_id:010d}/image_00#0"
            assert (len(item.position), item.n_own) == (len(expected.position), OWN)
    assert len(dataset[2].position) == POINTS - 7  # a short sample has no padding


def test_types_and_shapes(stores):
    item = SceneDataset(stores)[0]
    n = len(item.position)
    expected = {
        "image": ((24, 64, 3), "uint8"), "label": ((24, 64), "uint8"), "truth": ((24, 64), "uint8"),
        "position": ((n, 3), "float32"), "color": ((n, 3), "uint8"), "confidence": ((n,), "float32"),
        "point_label": ((n,), "uint8"), "point_truth": ((n,), "uint8"), "pixel": ((OWN, 2), "float32"),
        "camera_to_world": ((4, 4), "float64"),
    }  # fmt: skip
    assert {name: (getattr(item, name).shape, str(getattr(item, name).dtype)) for name in expected} == expected


def test_every_own_point_shows_its_pixel(stores):
    dataset = SceneDataset(stores)
    for number in range(len(dataset)):
        item = dataset[number]
        row, column = item.pixel.astype(int).T
        np.testing.assert_array_equal(item.image[row, column], item.color[: item.n_own])
        np.testing.assert_array_equal(item.label[row, column], item.point_label[: item.n_own])
        np.testing.assert_array_equal(item.truth[row, column], item.point_truth[: item.n_own])


def test_truth_may_be_left_out(stores):
    item, whole = SceneDataset(stores, truth=False)[0], SceneDataset(stores)[0]
    assert (item.truth, item.point_truth) == (None, None)
    np.testing.assert_array_equal(item.position, whole.position)
    np.testing.assert_array_equal(item.label, whole.label)


def test_stores_may_be_a_folder_a_store_or_a_list(stores):
    first, second = store_paths(stores)
    assert len(SceneDataset(str(first))) == FRAMES
    assert len(SceneDataset([second, stores])) == 2 * FRAMES  # none twice
    keys = [SceneDataset([second, first])[0].key, SceneDataset(second)[0].key]
    assert keys[0] == keys[1]


def test_numbers_count_from_the_end_and_end(stores):
    dataset = SceneDataset(stores)
    assert dataset[-1].key == dataset[len(dataset) - 1].key
    for number in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError):
            dataset[number]


def test_several_draws_of_a_view(own):
    store = store_paths(own / "stores")[0]
    shutil.rmtree(store / "samples")
    add_samples(store, draws=3)
    dataset = SceneDataset(store)
    assert len(dataset) == 3 * FRAMES
    assert [dataset[i].key[-2:] for i in range(4)] == ["#0", "#1", "#2", "#0"]
    assert not np.array_equal(dataset[0].position, dataset[1].position)


def test_an_unlabelled_view_is_all_255(made, tmp_path):
    shutil.copytree(made / "kitti360", tmp_path / "kitti360")
    for kind in ("scribble", "semantic"):
        kitti_files(tmp_path / "kitti360", 0, 1)[kind].unlink()
    config = load_config("kitti360", None, "sensor", None, [])
    reconstruct(config, tmp_path / "kitti360", tmp_path / "stores", workers=1)
    store = store_paths(tmp_path / "stores")[0]
    add_samples(store)
    items = [SceneDataset(store)[i] for i in range(2)]
    assert (items[1].label == 255).all()
    assert items[1].label.shape == items[1].image.shape[:2]
    assert items[1].truth is None
    assert (items[0].label != 255).any()


# Processes


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_workers_give_the_same_items_and_follow_epochs(stores, method):
    dataset = SceneDataset(stores, augment=AUGMENT, seed=3)
    dataset[0]  # handles that a fork must not use
    loader = DataLoader(
        dataset, batch_size=None, num_workers=2, multiprocessing_context=method, persistent_workers=True
    )
    seen = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        items = list(loader)
        assert len(items) == len(dataset)
        for item, expected in zip(items, (dataset[i] for i in range(len(dataset))), strict=True):
            for ours, theirs in zip(item, expected, strict=True):
                assert_equal(ours, theirs)
        seen.append(items[0][0].image)
    assert not np.array_equal(*seen)  # another epoch, another crop
    del loader


def test_augmentation_depends_on_seed_epoch_and_item_alone(stores):
    dataset, other = SceneDataset(stores, augment=AUGMENT, seed=1), SceneDataset(stores, augment=AUGMENT, seed=2)
    first = dataset[1]
    dataset[0]
    for one, again in zip(first, dataset[1 - len(dataset)], strict=True):
        assert_equal(one, again)
    assert not np.array_equal(first[0].image, other[1][0].image)
    assert_equal(dataset.sample(1), other.sample(1))


def test_handles_open_lazily_and_index_tables_are_arrays(stores):
    dataset = SceneDataset(stores)
    assert len(dataset._shards) == 0
    dataset.points(0)
    assert len(dataset._shards) == 6
    columns = [dataset.index.store, dataset.index.row, *dataset.index.table.values()]
    columns += [part for strings in dataset.index.paths.values() for part in (strings.data, strings.offset)]
    assert all(isinstance(column, np.ndarray) for column in columns)
    assert sum(column.nbytes for column in columns) / len(dataset) < 600
    state = dataset.__getstate__()
    assert state["_arrays"] == {}


def test_strings_are_kept():
    items = ["a/b.png", None, "", "ö.png"]
    assert [Strings(items)[i] for i in range(4)] == ["a/b.png", "", "", "ö.png"]


# Data that moved


def test_moved_data(own, monkeypatch):
    """Neither root= nor RW3D_DATA is needed while the data lie where they were."""
    monkeypatch.chdir(own)
    expected = SceneDataset(own / "stores")[0]
    (own / "moved").mkdir()
    (own / "kitti360").rename(own / "moved" / "kitti360")
    message = error_of(lambda: SceneDataset(own / "stores")[0])
    assert all(word in message for word in ("no such file", "root=", "RW3D_DATA", "--embed-images", "kitti360"))
    assert_equal(SceneDataset(own / "stores", root=own / "moved" / "kitti360")[0], expected)
    monkeypatch.setenv("RW3D_DATA", str(own / "moved"))
    assert_equal(SceneDataset(own / "stores")[0], expected)
    assert open_collection(own / "stores")[0].view(0).read_image().shape == (24, 64, 3)


def test_an_image_of_another_size(own):
    path = kitti_files(own / "kitti360", 0, 0)["left"]
    shutil.copy(path, path.with_suffix(".bak"))
    from PIL import Image

    Image.fromarray(read_image(path)[:12]).save(path)
    assert "64×12, but the scene was made from 64×24" in error_of(lambda: SceneDataset(own / "stores")[0])


def test_embedded_files_need_no_data(made, tmp_path):
    """One folder trains anywhere: moved, and the data gone."""
    expected = SceneDataset(made / "stores")
    sampled_stores(tmp_path / "a", frames=FRAMES, settings=("embed_images=true",))
    content = [scene.content_hash() for scene in open_collection(tmp_path / "a" / "stores")]
    (tmp_path / "a" / "stores").rename(tmp_path / "b")
    shutil.rmtree(tmp_path / "a")
    dataset = SceneDataset(tmp_path / "b")
    for number in range(len(dataset)):
        assert_equal(dataset[number], expected[number])
    for scene, before, plain in zip(
        open_collection(tmp_path / "b"), content, open_collection(made / "stores"), strict=True
    ):
        assert scene.content_hash() == before != plain.content_hash()
        assert scene.attrs["complete"]["embedded"] == {"image": FRAMES, "label": FRAMES, "truth": FRAMES}
        assert verify_store(scene.path) == []
        np.testing.assert_array_equal(scene.view(1).read_image(), plain.view(1).read_image())
        np.testing.assert_array_equal(scene.view(1).read_label(), plain.view(1).read_label())
        np.testing.assert_array_equal(scene.view(1).read_truth(), plain.view(1).read_truth())


def test_damaged_embedded_files_are_found(tmp_path):
    store = store_paths(sampled_stores(tmp_path, sequences=(0,), settings=("embed_images=true",)))[0]
    shard = store / "files" / "image" / "c" / "0"
    content = bytearray(shard.read_bytes())
    content[1000] ^= 4
    shard.write_bytes(content)
    assert any("files/image/c/0 was altered" in fault for fault in verify_store(store))
    assert f"{shard}: is damaged" in error_of(lambda: SceneDataset(store)[0])
    assert "files/image cannot be read" in error_of(open_scene(store).view(0).read_image)
    shutil.rmtree(store / "files")
    assert any("files/zarr.json is missing" in fault for fault in verify_store(store))


def test_the_option_of_reconstruct(made, tmp_path, monkeypatch):
    options = ["--root", made / "kitti360", "--backend", "sensor", "--out", tmp_path, "--embed-images"]
    monkeypatch.setattr(sys, "argv", ["rw3d-prep", "reconstruct", "--dataset", "kitti360", *map(str, options)])
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert all(scene.attrs["complete"]["embedded"]["image"] == FRAMES for scene in open_collection(tmp_path))


def test_configurations_without_embedding_keep_their_hash():
    plain = load_config("kitti360", None, "sensor", None, [])
    assert "embed_images" not in plain.identity()
    assert plain.hash() != load_config("kitti360", None, "sensor", None, ["embed_images=true"]).hash()


# What is refused


def test_no_stores(tmp_path):
    assert "no finished scene here" in error_of(lambda: SceneDataset(tmp_path))
    assert "no store was given" in error_of(lambda: SceneDataset([]))


def test_another_split(stores):
    assert len(SceneDataset(stores, split="train")) == 2 * FRAMES
    message = error_of(lambda: SceneDataset(stores, split="val"))
    assert "'val'" in message
    assert "train" in message


def test_stores_without_finished_samples(own):
    store = store_paths(own / "stores")[0]
    edit(store / "samples", lambda attributes: attributes.pop("complete"))
    assert "never finished" in error_of(lambda: SceneDataset(own / "stores"))
    shutil.rmtree(store / "samples")
    assert "`rw3d-prep sample-views" in error_of(lambda: SceneDataset(own / "stores"))


def test_mixed_class_maps(own):
    store = store_paths(own / "stores")[1]
    edit(store, lambda attributes: attributes.update(class_map_hash="0" * 64))
    message = error_of(lambda: SceneDataset(own / "stores"))
    assert str(store) in message
    assert "class maps differ" in message


def test_mixed_sample_sizes(own):
    store = store_paths(own / "stores")[1]
    shutil.rmtree(store / "samples")
    add_samples(store, points=300, own=200)
    message = error_of(lambda: SceneDataset(own / "stores"))
    assert "sample sizes differ" in message
    assert "300 here, 400 there" in message


@pytest.mark.parametrize("name", ["position", "color", "confidence", "label", "truth", "pixel"])
def test_a_fault_in_any_array_names_its_file(own, name):
    store = store_paths(own / "stores")[0]
    shard = next(path for path in (store / "samples" / name / "c").rglob("*") if path.is_file())
    content = bytearray(shard.read_bytes())
    content[5] ^= 16
    shard.write_bytes(content)
    message = error_of(lambda: SceneDataset(own / "stores")[0])
    assert str(shard) in message
    assert f"`rw3d-prep verify {store}`" in message
