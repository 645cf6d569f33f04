"""Scenes without geometry: made by choice, whole, honest about what they lack, and good for samples of images alone."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from builders import camvid_tree, kitti360_tree
from run_command import run_command
from rw3d_common import open_collection, open_scene
from rw3d_common.errors import UserError
from rw3d_common.labels import IGNORE
from rw3d_prep.align import align
from rw3d_prep.config import load_config
from rw3d_prep.health import scene_health
from rw3d_prep.pipeline import find_batches, reconstruct
from rw3d_prep.plan import make_plan
from rw3d_prep.samples import make_samples
from rw3d_prep.sampling import SampleConfig
from rw3d_prep.verify import verify

TRAIN = "train/0001TP/0000000000-0000000002.zarr"


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Path:
    """CamVid with one point per class and image, sampled; its data and labels lie beside it."""
    folder = tmp_path_factory.mktemp("images")
    camvid_tree(folder / "data" / "camvid")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in (
            "make-labels points --dataset camvid --out labels/points --workers 1",
            "reconstruct --dataset camvid --backend images --labels labels/points --out stores",
            "sample-views stores/train --workers 1",
            "sample-views stores/val --views all --keep-labelled --workers 1",
        ):
            assert run_command(patch, *command.split()) == 0, command
    return folder / "stores"


def test_scenes_hold_views_and_labels_and_no_point(stores):
    assert verify(stores) == []
    for scene in open_collection(stores):
        assert (len(scene), scene.n_points, scene.has_geometry, scene.has_truth) == (3, 0, False, True)
        view = scene.view(1)
        assert (len(view.position), view.image_size) == (0, (36, 48))
        sparse, dense = view.read_label(), view.read_truth()
        assert np.count_nonzero(sparse != IGNORE) == 2, "one pixel of each class"
        assert (sparse[sparse != IGNORE] == dense[sparse != IGNORE]).all()
        assert np.count_nonzero(dense == IGNORE) == 4 * 36
        assert np.isnan(view.intrinsics).all(), "unknown, and not made up"
        assert "no geometry" in repr(scene)


def test_samples_are_images_and_labels_alone(stores):
    for scene in open_collection(stores):
        assert [scene.sample(i).view for i in range(3)] == [0, 1, 2]
        assert {(len(scene.sample(i).position), scene.sample(i).n_own) for i in range(3)} == {(0, 0)}


def test_a_scene_without_points_by_accident_still_gets_no_samples(stores, tmp_path):
    store = tmp_path / "a.zarr"
    shutil.copytree(stores / TRAIN, store)
    shutil.rmtree(store / "samples")
    text = (store / "zarr.json").read_text()
    (store / "zarr.json").write_text(text.replace('"name": "images"', '"name": "stereo"'))
    with pytest.raises(UserError, match="this scene has no points"):
        make_samples(store, SampleConfig())


def test_inspect_calls_them_neither_healthy_nor_sick(stores, monkeypatch, capsys):
    assert {tuple(scene_health(scene).faults()) for scene in open_collection(stores)} == {()}
    assert run_command(monkeypatch, "inspect", str(stores)) == 0
    shown = capsys.readouterr().out
    assert "no geometry" in shown
    assert not any(word in shown for word in ("healthy", "nan", "Views of", "Classes"))


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("inspect {} --picture x.png", "no scene has points to draw"),
        ("view {} --out x.html", "has no points to show"),
        ("export {} --ply x", "no scene has points to write"),
        ("export {} --ply x --merge", "no scene has points to write"),
        ("accumulate {}", "2 of 2 scenes have no geometry to carry labels along"),
    ],
)
def test_what_needs_points_says_so(stores, tmp_path, monkeypatch, capsys, command, sentence):
    monkeypatch.chdir(tmp_path)
    assert run_command(monkeypatch, *command.format(stores).split()) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "--backend" in said.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_plan_counts_views_and_no_points(stores):
    config = load_config("camvid", None, "images", None, ["embed_images=true"])
    root = stores.parent / "data" / "camvid"
    plan = make_plan(find_batches(config, root)[0], config, root, workers=1)
    assert (plan.views, plan.points, plan.measured) == (6, 0, True)
    assert plan.disk > 6 * 500, "the images themselves"


def test_the_datasets_own_cameras_are_kept(tmp_path):
    """Also of scenes that overlap, between which no pixel tells anything."""
    root = kitti360_tree(tmp_path / "kitti360", frames=range(5), size=(24, 32))
    config = load_config("kitti360", None, "images", 3, ["batching.overlap=1"])
    reconstruct(config, root, tmp_path / "stores", workers=1)
    assert verify(tmp_path / "stores") == []
    scene = open_scene(min((tmp_path / "stores").rglob("*.zarr")))
    table = scene.view_table
    np.testing.assert_array_equal(table["camera_to_world"], table["given_camera_to_world"])
    assert np.isfinite(table["intrinsics"]).all()
    assert scene_health(scene).faults() == []
    assert [link.sim3 for link in align(tmp_path / "stores")] == [None]


def test_clouds_without_images_are_left_out(tmp_path):
    from s3dis_builder import s3dis_root

    root = tmp_path / "s3dis"
    root.mkdir()
    s3dis_root(root)
    with pytest.raises(UserError, match="point clouds without images are left out"):
        find_batches(load_config("s3dis", None, "images", None, []), root)
