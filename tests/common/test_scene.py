"""Opening scenes and collections: what a notebook user sees, and what goes wrong in one sentence."""

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import zarr

from builders import kitti360_tree
from rw3d_common import UserError, open_collection, open_scene
from rw3d_common.cameras import project
from rw3d_common.images import read_image
from rw3d_common.schema import POINTS, VIEWS, point_arrays
from rw3d_prep.config import load_config
from rw3d_prep.pipeline import reconstruct

SIZE = (24, 64)
FRAMES = 4


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two scenes with scribbles and truth, from LiDAR scans; read only."""
    folder = tmp_path_factory.mktemp("scenes")
    root = kitti360_tree(folder / "kitti360", sequences=(0, 2), frames=range(FRAMES), size=SIZE)
    config = load_config("kitti360", None, "sensor", None, [])
    assert len(reconstruct(config, root, folder / "stores", workers=1).written) == 2
    return folder


@pytest.fixture
def stores(made):
    return made / "stores"


@pytest.fixture
def scene(stores):
    return open_collection(stores)[0]


@pytest.fixture
def own(scene, tmp_path):
    """A copy of a store that a test may break."""
    return Path(shutil.copytree(scene.path, tmp_path / scene.path.name))


def edit_attributes(store: Path, edit) -> None:
    document = json.loads((store / "zarr.json").read_text())
    edit(document["attributes"])
    (store / "zarr.json").write_text(json.dumps(document))


def error_of(action) -> str:
    """The message of the UserError that `action` raises, which is one line."""
    with pytest.raises(UserError) as raised:
        action()
    message = str(raised.value)
    assert "\n" not in message
    return message


# Views and their points


def test_views_add_up_to_the_cloud(scene):
    views = [scene.view(index) for index in range(len(scene))]
    assert len(views) == FRAMES
    for name in ("position", "color", "confidence", "pixel", "label", "truth"):
        np.testing.assert_array_equal(np.concatenate([getattr(view, name) for view in views]), scene.read(name))
    assert sum(len(view.position) for view in views) == scene.n_points


def test_pixel_rows_columns_and_paint_agree(scene):
    view = scene.view(1)
    rows, columns = view.rows_columns.T
    np.testing.assert_array_equal(rows * SIZE[1] + columns, view.pixel)
    for values, background in ((view.label, 255), (view.color, 0), (view.position, np.nan)):
        painted = view.paint(values, background)
        assert painted.shape == (*SIZE, *values.shape[1:])
        assert painted.dtype == values.dtype
        np.testing.assert_array_equal(painted[rows, columns], values)
        untouched = np.ones(SIZE, bool)
        untouched[rows, columns] = False
        np.testing.assert_array_equal(painted[untouched], np.full_like(painted[untouched], background))


def test_colours_and_labels_are_those_of_the_pixel(scene, made):
    for index in range(len(scene)):
        view = scene.view(index)
        rows, columns = view.rows_columns.T
        np.testing.assert_array_equal(view.read_image()[rows, columns], view.color)
        semantics = made / "kitti360" / "data_2d_semantics" / "train" / scene.attrs["sequence"] / "image_00"
        for values, kind in ((view.label, "scribble"), (view.truth, "semantic")):
            raw = read_image(semantics / kind / view.image.name)[rows, columns, 0]
            np.testing.assert_array_equal(values, scene.classes.train_id_of[raw])
    assert np.count_nonzero(scene.read("label") != 255)


def test_points_project_onto_their_pixels(scene):
    view = scene.view(2)
    u, v, z = project(view.position, view.intrinsics, view.camera_to_world)
    np.testing.assert_allclose(np.stack([v, u], axis=1), view.rows_columns, atol=1e-3)
    np.testing.assert_allclose(view.depth, z, rtol=1e-6)
    assert view.depth.dtype == np.float32
    assert 5 < view.depth.min() < view.depth.max() < 17  # the builder's wall recedes from 6 to 16 m


def test_views_know_their_names(scene):
    view = scene.view(3)
    assert (view.frame_id, view.camera, view.image_size, view.has_label) == (3, "image_00", SIZE, True)
    assert repr(view).startswith("View(frame 3,")
    assert view != scene.view(3)  # identity: comparing arrays has no single answer


# Arrays, read with and without this package


def test_every_array_has_axes_a_unit_and_a_meaning(scene):
    for group, specs in ((scene.points, point_arrays(with_truth=True)), (scene.views, VIEWS)):
        assert set(group.array_keys()) == {spec.name for spec in specs}
        for spec in specs:
            array = group[spec.name]
            assert array.metadata.dimension_names == spec.dims
            assert len(spec.dims) == array.ndim
            assert dict(array.attrs) == {"unit": spec.unit, "meaning": spec.meaning}
            assert array.attrs["meaning"]
            assert array.dtype == spec.dtype
    assert scene.points["position"].attrs["unit"] == "m"


def test_plain_zarr_reads_the_same(scene):
    group = zarr.open_group(scene.path, mode="r")
    for spec in POINTS:
        np.testing.assert_array_equal(group["points"][spec.name][:], scene.read(spec.name))
    for name, values in scene.view_table.items():
        np.testing.assert_array_equal(group["views"][name][:], values)


def test_tensorstore_reads_the_same(scene):
    tensorstore = pytest.importorskip("tensorstore", reason="a second Zarr implementation; comes with the extra `dev`")
    arrays = {f"points/{spec.name}": scene.read(spec.name) for spec in POINTS}
    arrays |= {f"views/{name}": values for name, values in scene.view_table.items()}
    for name, values in arrays.items():
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{scene.path / name}/"}}
        np.testing.assert_array_equal(tensorstore.open(spec, read=True, open=True).result().read().result(), values)


def test_content_hash_is_stable_and_sees_one_value(scene, own):
    expected = scene.content_hash()
    assert open_scene(scene.path).content_hash() == expected
    assert open_scene(own).content_hash() == expected  # the path does not enter
    label = zarr.open_group(own, mode="r+")["points/label"]
    label[0] = (int(label[0]) + 1) % 256
    edit_attributes(own, record_sizes(own))
    assert open_scene(own).content_hash() != expected


def record_sizes(store: Path):
    """An edit of the completion record: the files are as large as they now are."""

    def edit(attributes) -> None:
        for name, facts in attributes["complete"]["files"].items():
            facts["size"] = (store / name).stat().st_size

    return edit


def test_content_hashes_of_scenes_differ(stores):
    first, second = open_collection(stores)
    assert first.content_hash() != second.content_hash()


# Colours


def test_colors(scene):
    np.testing.assert_array_equal(scene.colors(), scene.read("color"))
    np.testing.assert_array_equal(scene.colors("label"), scene.classes.palette[scene.read("label")])
    np.testing.assert_array_equal(scene.colors("truth"), scene.classes.palette[scene.read("truth")])
    assert (scene.colors("confidence") == 255).all()  # measured depth: all equally sure
    by_view = scene.colors("view")
    offset = scene.view_table["point_offset"]
    assert len(np.unique(by_view, axis=0)) == len(scene)
    assert (by_view[offset[1] : offset[2]] == by_view[offset[1]]).all()
    for by in ("rgb", "label", "truth", "confidence", "view"):
        assert (scene.colors(by).shape, scene.colors(by).dtype) == ((scene.n_points, 3), np.uint8)


def test_confidence_is_shown_by_rank(scene, monkeypatch):
    confidence = np.linspace(2, 9, scene.n_points, dtype=np.float32) ** 3
    monkeypatch.setattr(type(scene), "read", lambda self, name: confidence)
    grey = scene.colors("confidence")[:, 0].astype(int)
    assert (np.diff(grey) >= 0).all()
    assert (grey[0], grey[-1]) == (255 // scene.n_points, 255)


def test_open3d_gets_the_same_points(scene):
    pytest.importorskip("open3d", reason="Open3D comes with the extra `prep`")
    cloud = scene.to_open3d("label")
    np.testing.assert_array_equal(np.asarray(cloud.points), scene.read("position"))
    np.testing.assert_allclose(np.asarray(cloud.colors) * 255, scene.colors("label"), atol=1e-9)


# What a notebook shows


def test_repr_and_html_name_and_count(scene):
    counts = scene.attrs["complete"]
    for text in (repr(scene), scene._repr_html_()):
        assert "train/2013_05_28_drive_0000_sync/0000000000-0000000003" in text
        assert "kitti360 (sensor geometry)" in text
        assert f"{FRAMES} ({FRAMES} with sparse labels)" in text
        assert f"{counts['points']:,} ({counts['labelled_points'] / counts['points']:.1%} labelled, 19 classes)" in text
    for item in scene.classes.classes:
        assert item.name in scene._repr_html_()
        assert bytes(item.color).hex() in scene._repr_html_()


def test_html_is_escaped(own):
    def edit(attributes) -> None:
        attributes["dataset"] = "<script>alert(1)</script>"
        attributes["classes"][0]["name"] = "<b>road</b>"
        attributes["sequence"] = "a&b"

    edit_attributes(own, edit)
    for html in (open_scene(own)._repr_html_(), open_collection(own)._repr_html_()):
        assert "<script>" not in html
        assert "<b>" not in html
        assert "a&amp;b" in html


def test_html_needs_no_classes(own):
    edit_attributes(own, lambda attributes: attributes.update(classes=[]))
    html = open_scene(own)._repr_html_()
    assert "0 classes" in html
    assert "<th style='text-align:left'>classes</th>" not in html


def test_collection(stores):
    collection = open_collection(str(stores))
    assert len(collection) == 2
    assert [scene.name for scene in collection] == [collection[0].name, collection[1].name]
    assert collection[-1].path == collection[1].path
    assert repr(collection).startswith(f"Collection of 2 scenes in {stores}\n")
    for scene in collection:
        for text in (repr(collection), collection._repr_html_()):
            assert scene.name in text
            assert f"{scene.n_points:,}" in text


def test_a_scene_is_a_collection_of_one(scene):
    collection = open_collection(scene.path)
    assert [one.path for one in collection] == [scene.path]
    assert repr(collection).startswith("Collection of 1 scene in ")


def test_unfinished_stores_are_no_part_of_a_collection(scene, tmp_path):
    shutil.copytree(scene.path, tmp_path / "a.zarr")
    shutil.copytree(scene.path, tmp_path / "b.zarr.tmp-0123456789ab")
    assert [path.name for path in open_collection(tmp_path).paths] == ["a.zarr"]


# What goes wrong, in one sentence


def test_no_store(tmp_path):
    message = error_of(lambda: open_scene(tmp_path / "nothing.zarr"))
    assert "nothing.zarr: no scene store here" in message
    assert "rw3d-prep inspect" in message


def test_a_folder_instead_of_a_store(stores):
    assert "open_collection() opens a folder of scenes" in error_of(lambda: open_scene(stores))


def test_no_folder_and_no_scene(tmp_path):
    assert "no such folder; make scenes with `rw3d-prep reconstruct" in error_of(
        lambda: open_collection(tmp_path / "x")
    )
    assert "holds no finished scene" in error_of(lambda: open_collection(tmp_path))


def test_an_unfinished_store(own):
    edit_attributes(own, lambda attributes: attributes.pop("complete"))
    message = error_of(lambda: open_scene(own))
    assert "never finished" in message
    assert "`rw3d-prep reconstruct` again" in message


def test_a_store_without_its_zarr_json(own):
    (own / "zarr.json").unlink()
    assert "zarr.json is missing" in error_of(lambda: open_scene(own))


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_schema_version(own, version):
    edit_attributes(own, lambda attributes: attributes.update(schema_version=version))
    assert f"schema version {version}, this rw3d reads 1" in error_of(lambda: open_scene(own))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"zarr_format": 3, "node_type": "array"}'])
def test_a_broken_zarr_json(own, content):
    (own / "zarr.json").write_text(content)
    assert "its zarr.json cannot be read" in error_of(lambda: open_scene(own))


@pytest.mark.parametrize("index", [-1, FRAMES, 10**9])
def test_a_view_that_is_not_there(scene, index):
    assert f"no view {index}; this scene has views 0 to {FRAMES - 1}" in error_of(lambda: scene.view(index))


@pytest.mark.parametrize("index", [-3, 2])
def test_a_scene_that_is_not_there(stores, index):
    assert f"no scene {index}; this collection has scenes 0 to 1" in error_of(lambda: open_collection(stores)[index])


def test_a_missing_image(own, tmp_path):
    edit_attributes(own, lambda attributes: attributes.update(root=str(tmp_path / "moved")))
    view = open_scene(own).view(0)
    assert view.image.is_relative_to(tmp_path / "moved")
    assert f"{view.image}: no such file" in error_of(view.read_image)


def test_unknown_arrays_and_colours(scene):
    assert "no array 'positions'" in error_of(lambda: scene.read("positions"))
    assert "rgb, label, truth, confidence, view" in error_of(lambda: scene.colors("colour"))


def test_truth_that_a_scene_has_not(tmp_path):
    root = kitti360_tree(tmp_path / "kitti360", size=SIZE)
    for folder in list(root.rglob("semantic")):
        shutil.rmtree(folder)
    reconstruct(load_config("kitti360", None, "sensor", None, []), root, tmp_path / "stores", workers=1)
    scene = open_collection(tmp_path / "stores")[0]
    assert not scene.has_truth
    assert scene.view(0).truth is None
    assert "no array 'truth'" in error_of(lambda: scene.colors("truth"))


def test_truth_that_a_scene_has_lost(own):
    shutil.rmtree(own / "points" / "truth")
    scene = open_scene(own)
    assert scene.has_truth
    assert "points/truth cannot be read" in error_of(lambda: scene.view(0))


def test_a_damaged_array(own):
    chunk = next(path for path in (own / "points" / "position").rglob("*") if path.is_file() and path.suffix != ".json")
    content = bytearray(chunk.read_bytes())
    content[len(content) // 3] ^= 0xFF
    chunk.write_bytes(content)
    assert "array points/position cannot be read" in error_of(lambda: open_scene(own).read("position"))
    assert "rw3d-prep verify" in error_of(lambda: open_scene(own).view(0))


def test_samples_that_were_not_made(scene):
    """tests/prep/test_samples.py reads those that were."""
    for read in (lambda: scene.sample(0), lambda: scene.samples, scene.samples_hash):
        assert f"this scene has no samples; `rw3d-prep sample-views {scene.path}` makes them" in error_of(read)
    assert "none; `rw3d-prep sample-views` makes them" in repr(scene)


# numpy and zarr are enough


def test_a_notebook_needs_neither_preparation_nor_training(scene, stores):
    blocked = ("torch", "cv2", "open3d", "dask", "h5py", "numba", "scipy", "plyfile", "rw3d_prep", "rw3d_train")
    code = f"""
    import sys

    class Block:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in {blocked!r}:
                raise ImportError("blocked: " + name)

    sys.meta_path.insert(0, Block())
    from rw3d_common import UserError, open_collection

    (scene, *_) = collection = open_collection({str(stores)!r})
    view = scene.view(0)
    assert (view.read_image()[tuple(view.rows_columns.T)] == view.color).all()
    for by in ("rgb", "label", "truth", "confidence", "view"):
        scene.colors(by)
    repr(collection), collection._repr_html_(), repr(scene), scene._repr_html_(), view.depth
    try:
        scene.to_open3d()
    except UserError as error:
        assert "pip install 'rw3d[prep]'" in str(error)
    else:
        raise AssertionError("open3d was not blocked")
    print(scene.content_hash())
    """
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == scene.content_hash()
