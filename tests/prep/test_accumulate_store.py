"""`rw3d-prep accumulate` on stores: what is written, how it is read, damage, death, the gate, samples and training."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from numpy.testing import assert_array_equal
from typer.testing import CliRunner

from builders import kitti360_tree, kitti_files
from rw3d_common import UserError, open_scene
from rw3d_common.collection import store_paths
from rw3d_common.labels import IGNORE
from rw3d_common.manifest import dataset_entry
from rw3d_prep import accumulate_writer
from rw3d_prep.accumulate import AccumulateConfig, make_accumulated
from rw3d_prep.accumulate_scenes import accumulate
from rw3d_prep.cli import app
from rw3d_prep.config import load_config
from rw3d_prep.demo.generate import DemoConfig, generate
from rw3d_prep.pipeline import reconstruct
from rw3d_prep.sample_views import sample_views
from rw3d_prep.sampling import SampleConfig
from rw3d_prep.verify import verify_store
from rw3d_prep.write import file_table
from rw3d_train.data.dataset import SceneDataset

CONFIG = AccumulateConfig(depth_relative=0.2, min_precision=0, min_class_precision=0)
STREET = AccumulateConfig(spread=0.7)  # the images are half as large as the demo's own
SAMPLES = SampleConfig(points=300, labels="accumulated")
UNLABELLED = 1  # a frame without scribble
FRAMES = 5


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """One drive whose frames look at nearly the same wall."""
    root = kitti360_tree(tmp_path_factory.mktemp("data"), frames=range(FRAMES), size=(32, 64))
    kitti_files(root, 0, UNLABELLED)["scribble"].unlink()
    out = tmp_path_factory.mktemp("scenes") / "stores"
    reconstruct(load_config("kitti360", None, "sensor", None, []), root, out, workers=1)
    return out


@pytest.fixture
def stores(scenes, tmp_path) -> Path:
    return Path(shutil.copytree(scenes, tmp_path / "stores"))


@pytest.fixture
def store(stores) -> Path:
    return store_paths(stores)[0]


@pytest.fixture(scope="module")
def street(tmp_path_factory) -> Path:
    """A small stereo street."""
    root, out = tmp_path_factory.mktemp("street") / "data", tmp_path_factory.mktemp("street") / "stores"
    generate(root, DemoConfig(train_sequences=1, val_sequences=0, train_frames=6, width=352, height=96, label_every=1))
    reconstruct(load_config("demo", None, None, None, ["batching.max_gap=3"]), root, out, workers=1)
    return out


def changed(**values: object) -> AccumulateConfig:
    return AccumulateConfig(**{**CONFIG.model_dump(), **values})


def bytes_of(store: Path) -> dict[str, str]:
    """SHA-256 of every file of the accumulated labels but the record, which holds a time."""
    return {
        name: facts["sha256"]
        for name, facts in file_table(store).items()
        if "accumulated" in name and name != "accumulated/zarr.json"
    }


# What it writes


def test_own_labels_stay_and_others_are_added_beside_them(store):
    before, content = open_scene(store), open_scene(store).content_hash()
    make_accumulated(store, CONFIG)
    scene = open_scene(store)
    own, carried = scene.read("label"), scene.read("label_accumulated")
    assert_array_equal(before.read("label"), own)
    assert_array_equal(carried[own != IGNORE], own[own != IGNORE])
    assert np.count_nonzero(carried != IGNORE) > np.count_nonzero(own != IGNORE)
    assert scene.content_hash() == content
    report, shown, labelled = scene.accumulated.report, 0, 0
    for index in range(len(scene)):
        view = scene.view(index)
        image, own_image = scene.accumulated.label_image(index, view.image_size), view.read_label()
        assert image is not None
        rows = slice(*scene.view_table["point_offset"][index : index + 2])
        assert_array_equal(image.ravel()[view.pixel], carried[rows])
        if own_image is None:
            own_image = np.full(view.image_size, IGNORE, np.uint8)
        assert_array_equal(image[own_image != IGNORE], own_image[own_image != IGNORE])
        shown += np.count_nonzero(image != IGNORE)
        labelled += np.count_nonzero(own_image != IGNORE)
    assert (report["labelled_before"], report["labelled_after"]) == (labelled, shown)
    assert scene.accumulated.has_label[UNLABELLED]
    assert not scene.view_table["has_label"][UNLABELLED]
    assert "pixels labelled" in repr(scene)
    assert verify_store(store) == []


def test_report_agrees_with_slow_counts(store):
    labels = make_accumulated(store, CONFIG)
    scene = open_scene(store)
    carried = right = measured = 0
    for index in range(len(scene)):
        view = scene.view(index)
        image, own, truth = labels.label_image(index, view.image_size), view.read_label(), view.read_truth()
        for place in np.ndindex(view.image_size):
            if image[place] != IGNORE and (own is None or own[place] == IGNORE):
                carried += 1
                measured += truth[place] != IGNORE
                right += truth[place] == image[place]
    report = labels.report
    assert (report["carried"], report["measured"], report["right"]) == (carried, measured, right)
    assert report["precision"] == right / measured


def test_movable_classes_never_travel_in_time(store):
    movable = [item.train_id for item in dataset_entry("kitti360").classes if item.movable]
    names = open_scene(store).classes.names
    assert [names[i] for i in movable] == ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
    make_accumulated(store, CONFIG)
    scene = open_scene(store)
    own, carried = scene.read("label"), scene.read("label_accumulated")
    assert not np.isin(carried[own == IGNORE], movable).any()
    assert scene.classes.in_3d[carried].all()
    make_accumulated(store, changed(no_accumulate=("building",)), overwrite=True)
    carried = open_scene(store).read("label_accumulated")
    assert not (carried[own == IGNORE] == names.index("building")).any()


def test_movable_classes_travel_between_simultaneous_cameras(store):
    every_class = tuple(open_scene(store).classes.names)
    make_accumulated(store, changed(no_accumulate=every_class))
    assert_array_equal(open_scene(store).read("label_accumulated"), open_scene(store).read("label"))
    zarr.open_group(store / "views")["frame_id"][:] = 7  # as if all views were of one time
    make_accumulated(store, changed(no_accumulate=every_class), overwrite=False)  # the same options: kept
    shutil.rmtree(store / "accumulated")
    make_accumulated(store, changed(no_accumulate=every_class))
    scene = open_scene(store)
    assert np.count_nonzero(scene.read("label_accumulated") != scene.read("label"))


def test_the_window_limits_where_labels_come_from(store):
    counts = {
        window: make_accumulated(store, changed(window=window), overwrite=True).report["carried"] for window in (1, 4)
    }
    assert 0 < counts[1] <= counts[4]


# Again, elsewhere, damaged, killed


def test_bytes_do_not_depend_on_the_run_or_its_workers(store, tmp_path):
    other = Path(shutil.copytree(store.parents[2], tmp_path / "other"))
    make_accumulated(store, CONFIG)
    outcome = accumulate(other, CONFIG, workers=2)
    assert len(outcome.written) == 1
    assert bytes_of(store) == bytes_of(store_paths(other)[0])
    assert accumulate(other, CONFIG, workers=2).skipped == outcome.written


def test_another_configuration_is_refused_or_overwrites(stores, store):
    make_accumulated(store, CONFIG)
    with pytest.raises(UserError, match=r"another configuration \(window: 20 → 1\).*--overwrite"):
        accumulate(stores, changed(window=1), workers=1)
    accumulate(stores, changed(window=1), workers=1, overwrite=True)
    assert open_scene(store).accumulated.attrs["config"]["window"] == 1
    assert verify_store(store) == []
    assert not list(stores.rglob("*.tmp*"))


@pytest.mark.parametrize(
    "name", ["points/label_accumulated/c/0", "accumulated/label/c/0", "accumulated/label_offset/c/0"]
)
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_verify_finds_every_damage(store, name, damage):
    make_accumulated(store, CONFIG)
    path = store / name
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[:-3])
    else:
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    assert any(name in fault for fault in verify_store(store))


def test_verify_finds_an_altered_record_and_contradicting_labels(store):
    make_accumulated(store, CONFIG)
    record = store / "accumulated" / "zarr.json"
    text = json.loads(record.read_text())
    text["attributes"]["usable"] = not text["attributes"]["usable"]
    record.write_text(json.dumps(text))
    assert any("accumulated/zarr.json was altered" in fault for fault in verify_store(store))
    record.write_text("{")
    assert any("cannot be read" in fault for fault in verify_store(store))
    with pytest.raises(UserError, match=r"delete .*accumulated and run `rw3d-prep accumulate` again"):
        open_scene(store).read("label_accumulated")


def test_a_run_stopped_between_its_two_moves_is_told_and_goes_on(store, monkeypatch):
    def die(self: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(accumulate_writer.AccumulatedWriter, "_move", die)
        with pytest.raises(KeyboardInterrupt):
            make_accumulated(store, CONFIG)
    with pytest.raises(UserError, match="no accumulated labels; `rw3d-prep accumulate"):
        open_scene(store).read("label_accumulated")
    assert verify_store(store) == [
        "points/label_accumulated was left by a stopped `rw3d-prep accumulate`; run it again"
    ]
    make_accumulated(store, CONFIG)
    assert verify_store(store) == []


def test_killed_at_any_moment_it_resumes(stores, store):
    program = "from rw3d_prep.cli import main; main()"
    options = ["--workers", "1", "--depth-relative", "0.2", "--min-precision", "0", "--min-class-precision", "0"]
    for delay in (0.3, 0.8, 1.1):
        run = subprocess.Popen(
            [sys.executable, "-c", program, "accumulate", stores, *options], stderr=subprocess.DEVNULL
        )
        time.sleep(delay)
        run.send_signal(signal.SIGKILL)
        run.wait()
    accumulate(stores, CONFIG, workers=1)
    assert verify_store(store) == []
    assert not list(stores.rglob("*.tmp*"))


# The gate


def test_stereo_labels_pass_the_gate_and_wrong_poses_close_it(street, tmp_path):
    store = store_paths(street)[0]
    right = make_accumulated(store, STREET)
    assert right.usable is True
    assert right.report["labelled_after"] > 1.5 * right.report["labelled_before"]
    assert min(right.report["precision"], right.report["precision_with_withheld"]) >= 0.97
    wrong = Path(shutil.copytree(store, tmp_path / store.name))
    perturb_poses(wrong, metres=1, degrees=6)
    verdict = make_accumulated(wrong, STREET, overwrite=True)
    assert verdict.usable is False
    with pytest.raises(UserError, match=r"not precise enough .*accumulate --overwrite"):
        verdict.require_usable()
    result = CliRunner().invoke(app, ["accumulate", str(tmp_path), "--spread", "0.7", "--workers", "1"])
    assert result.exit_code == 3


def perturb_poses(store: Path, metres: float, degrees: float) -> None:
    """Turn and move every camera at random, with the points that it sees."""
    rng = np.random.default_rng(0)
    shutil.rmtree(store / "accumulated", ignore_errors=True)
    group = zarr.open_group(store)
    cameras, offset = group["views/camera_to_world"][:], group["views/point_offset"][:]
    positions = group["points/position"][:]
    for view, camera in enumerate(cameras):
        angle = np.deg2rad(degrees) * rng.choice([-1, 1])
        moved = camera @ np.array(
            [[np.cos(angle), 0, np.sin(angle), 0], [0, 1, 0, 0], [-np.sin(angle), 0, np.cos(angle), 0], [0, 0, 0, 1]]
        )
        direction = rng.normal(size=3)
        moved[:3, 3] += metres * direction / np.linalg.norm(direction)
        rows = slice(offset[view], offset[view + 1])
        local = (positions[rows] - camera[:3, 3]) @ camera[:3, :3]
        positions[rows] = local @ moved[:3, :3].T + moved[:3, 3]
        cameras[view] = moved
    group["views/camera_to_world"][:] = cameras
    group["points/position"][:] = positions
    resize_promises(store)


def resize_promises(store: Path) -> None:
    """Let the completion record promise the files that are there."""
    path = store / "zarr.json"
    text = json.loads(path.read_text())
    there = file_table(store)
    files = text["attributes"]["complete"]["files"]
    text["attributes"]["complete"]["files"] = {name: there[name] for name in files}
    path.write_text(json.dumps(text))


def test_without_truth_it_is_unknown_and_readers_warn(stores, store, caplog):
    group = zarr.open_group(store)
    group.attrs["split"] = "trainval"  # not the split whose truth may be looked at
    labels = make_accumulated(store, AccumulateConfig(depth_relative=0.2))
    assert labels.usable is None
    assert labels.report["precision"] is None
    labels.require_usable()
    assert "no truth has told how precise" in caplog.text
    assert sample_views(stores, SAMPLES, workers=1).exit_code() == 0


# Bad input


def test_bad_input_is_told_in_one_sentence(stores, store):
    with pytest.raises(UserError, match=r"no class 'cars' .did you mean 'car'.* to leave out; its classes are road"):
        make_accumulated(store, changed(no_accumulate=("cars",)))
    with pytest.raises(UserError, match=r"has no accumulated labels; `rw3d-prep accumulate .*zarr` makes them"):
        open_scene(store).accumulated.report  # noqa: B018
    with pytest.raises(UserError, match="no such folder; make scenes"):
        accumulate(stores / "none", CONFIG, workers=1)


def test_scenes_without_labels_have_none_to_carry(tmp_path):
    root = kitti360_tree(tmp_path / "data", frames=range(2), size=(32, 64))
    for frame in range(2):
        kitti_files(root, 0, frame)["scribble"].unlink()
    reconstruct(load_config("kitti360", None, "sensor", None, []), root, tmp_path / "stores", workers=1)
    with pytest.raises(UserError, match="no view has a sparse label, so there is none to carry"):
        make_accumulated(store_paths(tmp_path)[0], CONFIG)
    with pytest.raises(UserError, match=r"stores: no view of these 1 scenes has a sparse label"):
        accumulate(tmp_path / "stores", CONFIG, workers=1)


@pytest.mark.parametrize(("option", "value"), [("--min-precision", "1.5"), ("--spread", "0"), ("--min-share", "0.3")])
def test_bad_options_are_refused(stores, option, value):
    result = CliRunner().invoke(app, ["accumulate", str(stores), option, value])
    assert isinstance(result.exception, UserError)
    assert option[2:].replace("-", "_") in str(result.exception)


# Samples and training


def test_samples_and_training_take_accumulated_labels(stores, store):
    with pytest.raises(UserError, match="has no accumulated labels; `rw3d-prep accumulate"):
        sample_views(stores, SAMPLES, workers=1)
    make_accumulated(store, CONFIG)
    assert sample_views(stores, SAMPLES, workers=1).exit_code() == 0
    assert verify_store(store) == []
    scene = open_scene(store)
    carried = scene.read("label_accumulated")
    dataset = SceneDataset(stores, labels="accumulated")
    assert len(dataset) == FRAMES  # the frame without scribble has carried labels
    for index in range(FRAMES):
        sample = scene.sample(index)
        assert_array_equal(sample.label, carried[sample.index])
        item = dataset[index]
        assert_array_equal(item.label, scene.accumulated.label_image(index, item.label.shape))
        assert_array_equal(item.point_label, sample.label)


def test_labels_and_samples_that_do_not_match_are_refused(stores, store):
    make_accumulated(store, CONFIG)
    sample_views(stores, SampleConfig(points=300), workers=1)
    with pytest.raises(
        UserError, match="hold own labels, accumulated ones were asked for; run `rw3d-prep sample-views"
    ):
        SceneDataset(stores, labels="accumulated")
    with pytest.raises(UserError, match="made with another configuration"):
        sample_views(stores, SAMPLES, workers=1)
    sample_views(stores, SAMPLES, workers=1, overwrite=True)
    with pytest.raises(UserError, match="hold accumulated labels, own ones were asked for"):
        SceneDataset(stores)
    make_accumulated(store, changed(window=1), overwrite=True)
    with pytest.raises(UserError, match="accumulated anew after its samples were made"):
        SceneDataset(stores, labels="accumulated")


def test_labels_that_are_not_precise_enough_are_refused(stores, store):
    assert make_accumulated(store, changed(min_precision=1)).usable is False
    outcome = sample_views(stores, SAMPLES, workers=1)
    assert "not precise enough" in next(iter(outcome.failed.values()))


def test_the_command_shows_tables_and_a_picture(stores, tmp_path):
    options = [
        "--min-precision",
        "0",
        "--depth-relative",
        "0.2",
        "--picture",
        str(tmp_path / "p.png"),
        "--workers",
        "1",
    ]
    result = CliRunner().invoke(app, ["accumulate", str(stores), *options])
    assert result.exit_code == 0, result.output
    assert "Carried classes" in result.output
    from PIL import Image

    with Image.open(tmp_path / "p.png") as image:
        assert image.size == (64, 4 * 32)
