"""Health of scenes, given poses beside predicted ones, and unhealthy scenes made again in smaller batches."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import kitti360_tree
from moved_backend import MovedBackend
from run_command import run_command
from rw3d_common import open_collection, open_scene
from rw3d_common.errors import Exit, UserError
from rw3d_prep import batch_scene
from rw3d_prep.batching import BatchConfig
from rw3d_prep.config import PrepConfig
from rw3d_prep.datasets import DatasetConfig
from rw3d_prep.health import SceneHealth, pose_jitter, scene_health, unhealthy
from rw3d_prep.pipeline import find_batches, reconstruct
from rw3d_prep.reconstruct.sensor import SensorBackend, SensorConfig
from rw3d_prep.redo import cut
from rw3d_prep.verify import verify

DRIVE = "train/2013_05_28_drive_0000_sync"
HEALTHY = SceneHealth(10, 0.5, 30.0, 0.02, 0.1, 10, 1.0, 0.1, 0.1, 0.1)


def settings(size: int = 8, overlap: int = 0) -> PrepConfig:
    return PrepConfig(
        dataset=DatasetConfig(name="kitti360", labels="scribble"),
        batching=BatchConfig(size=size, overlap=overlap),
        backend=SensorConfig(),
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return kitti360_tree(tmp_path_factory.mktemp("kitti360"), frames=range(8), size=(32, 64))


@pytest.fixture(scope="module")
def predicted(tree, tmp_path_factory) -> tuple[Path, MovedBackend]:
    """One scene of eight views in a world of its own."""
    out, backend = tmp_path_factory.mktemp("predicted"), MovedBackend(SensorBackend(SensorConfig()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_scene, "backend_of", lambda _: backend)
        reconstruct(settings(), tree, out, workers=1)
    return out, backend


def names(out: Path) -> list[str]:
    return [scene.path.name.removesuffix(".zarr") for scene in open_collection(out)]


# Numbers


def straight(n: int) -> np.ndarray:
    poses = np.tile(np.eye(4), (n, 1, 1))
    poses[:, 2, 3] = np.arange(n)
    return poses


def test_jitter_of_known_paths():
    assert pose_jitter(straight(9), np.zeros(9, np.uint8), 0.01) == 0
    to_and_fro = straight(9)
    to_and_fro[:, 2, 3] %= 2
    assert pose_jitter(to_and_fro, np.zeros(9, np.uint8), 0.01) == 1
    random = straight(3000)
    random[:, :3, 3] = np.random.default_rng(0).normal(size=(3000, 3)).cumsum(axis=0)
    assert 0.6 < pose_jitter(random, np.zeros(3000, np.uint8), 0.01) < 0.75
    rig = straight(18)  # two cameras in turn: neighbours are those of one camera
    rig[::2, 0, 3] = 5
    assert pose_jitter(rig, np.tile(np.array([0, 1], np.uint8), 9), 0.01) == 0
    assert np.isnan(pose_jitter(straight(2), np.zeros(2, np.uint8), 0.01))


def test_a_camera_that_waits_is_not_jagged():
    path = straight(100)
    path[50:, 2, 3] = 50
    path[:, :3, 3] += np.random.default_rng(0).normal(0, 1e-3, (100, 3))
    assert pose_jitter(path, np.zeros(100, np.uint8), 0.01) < 0.05
    waiting = straight(100)
    waiting[:, :3, 3] = np.random.default_rng(0).normal(0, 1e-3, (100, 3))
    assert np.isnan(pose_jitter(waiting, np.zeros(100, np.uint8), 0.01))


@pytest.mark.parametrize(
    ("changed", "phrase"),
    [
        ({"finite_share": 0.005}, "valid cells"),
        ({"depth_ratio": 2000.0}, "1 : 2,000"),
        ({"residual": 0.2}, "neighbouring views disagree by 20% of the depth"),
        ({"jitter": 0.7}, "jagged (0.70)"),
        ({"scale": 3.0}, "factor of 3.00"),
        ({"scale": 0.3}, "factor of 0.30"),
        ({"scale": float("inf")}, "factor of inf"),
    ],
)
def test_each_limit_flags_and_nothing_else_does(changed, phrase):
    values = vars(HEALTHY)
    assert HEALTHY.faults() == []
    (fault,) = SceneHealth(**{**values, **changed}).faults()
    assert phrase in fault
    unknown = dict.fromkeys(changed, float("nan"))
    assert SceneHealth(**{**values, **unknown}).faults() == [], "what is not known is no fault"


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_json_is_always_json(value):
    record = SceneHealth(3, value, value, value, value, 0, value, value, value, value).to_json()
    assert json.loads(json.dumps(record, allow_nan=False)) == record


# Given poses


def test_given_poses_are_the_datasets(tree, predicted, tmp_path):
    (batch,) = find_batches(settings(), tree)[0]
    poses = np.stack([frame.camera_to_world for frame in batch.frames])
    reconstruct(settings(), tree, tmp_path, workers=1)
    for out in (tmp_path, predicted[0]):
        (scene,) = open_collection(out)
        given_poses = scene.view_table["given_camera_to_world"].copy()
        given_poses[:, :3, 3] += scene.world_offset
        np.testing.assert_allclose(given_poses, poses, atol=1e-9)
    (scene,) = open_collection(tmp_path)
    np.testing.assert_array_equal(scene.view_table["given_camera_to_world"], scene.view_table["camera_to_world"])


def test_predicted_poses_are_compared_with_given_ones(predicted):
    out, backend = predicted
    (scene,) = open_collection(out)
    found = scene_health(scene)
    assert found.given_poses == len(scene) == 8
    assert found.scale == pytest.approx(1 / backend.worlds[0].scale, rel=1e-6)
    assert found.ate < 1e-4
    assert found.rpe < 1e-4
    assert found.rpe_degrees < 1e-3
    record = json.loads((out / "manifest.json").read_text())["scenes"][f"{DRIVE}/0000000000-0000000007.zarr"]["health"]
    assert record["scale"] == pytest.approx(found.scale)
    assert record["faults"] == found.faults()


def test_frames_without_a_pose_have_none_in_the_scene(tree, tmp_path, monkeypatch):
    backend = MovedBackend(SensorBackend(SensorConfig()))
    monkeypatch.setattr(batch_scene, "backend_of", lambda _: backend)
    monkeypatch.setattr("rw3d_prep.view_rows.ViewRows._given", lambda self, frame: np.full((4, 4), np.nan))
    reconstruct(settings(), tree, tmp_path, workers=1)
    found = scene_health(open_collection(tmp_path)[0])
    assert found.given_poses == 0
    assert np.isnan([found.scale, found.ate, found.rpe, found.rpe_degrees]).all()


def test_a_prediction_that_stands_while_the_camera_moves_is_unhealthy(predicted, tmp_path):
    (scene,) = open_collection(predicted[0])
    poses = scene.view_table["camera_to_world"]
    poses[:] = poses[0]
    assert np.isinf(scene_health(scene).scale)
    assert any("factor of inf" in fault for fault in scene_health(scene).faults())


def test_a_store_from_before_these_arrays_opens_and_verifies(predicted, tmp_path):
    """It is what such a store is: without the arrays, and with a completion record that never knew them."""
    shutil.copytree(open_collection(predicted[0])[0].path, tmp_path / "old.zarr")
    metadata = json.loads((tmp_path / "old.zarr" / "zarr.json").read_text())
    files = metadata["attributes"]["complete"]["files"]
    for name in ("given_camera_to_world", "shared"):
        shutil.rmtree(tmp_path / "old.zarr" / "views" / name)
        for file in [file for file in files if file.startswith(f"views/{name}/")]:
            del files[file]
    (tmp_path / "old.zarr" / "zarr.json").write_text(json.dumps(metadata))
    old = open_scene(tmp_path / "old.zarr")
    assert verify(old.path) == []
    assert np.isnan(old.view_table["given_camera_to_world"]).all()
    assert not old.view_table["shared"].any()
    assert scene_health(old).given_poses == 0


def test_a_lost_array_is_not_taken_for_an_old_store(predicted, tmp_path):
    shutil.copytree(open_collection(predicted[0])[0].path, tmp_path / "new.zarr")
    shutil.rmtree(tmp_path / "new.zarr" / "views" / "shared")
    assert any("views/shared" in fault for fault in verify(tmp_path / "new.zarr"))
    with pytest.raises(UserError, match=r"views/shared"):
        _ = open_scene(tmp_path / "new.zarr").view_table


# Doing it again


@pytest.fixture
def sick(tree, tmp_path, monkeypatch) -> Path:
    """Two scenes of four views, of which the first is unhealthy as long as it is whole."""
    out = tmp_path / "stores"
    reconstruct(settings(4), tree, out, workers=1)

    def limit(self: SceneHealth) -> list[str]:
        return ["made up"] if self.views == 4 and self.finite_share == first else []

    first = scene_health(open_collection(out)[0]).finite_share
    assert first != scene_health(open_collection(out)[1]).finite_share
    monkeypatch.setattr(SceneHealth, "faults", limit)
    return out


def test_an_unhealthy_scene_is_replaced_by_smaller_ones(tree, sick):
    assert list(unhealthy(open_collection(sick))) == [f"{DRIVE}/0000000000-0000000003"]
    untouched = open_collection(sick)[1].content_hash()
    outcome = reconstruct(settings(4), tree, sick, workers=1, redo_size=2)
    assert outcome.exit_code() is Exit.COMPLETE
    assert names(sick) == ["0000000000-0000000001", "0000000002-0000000003", "0000000004-0000000007"]
    assert verify(sick) == []
    scenes = list(open_collection(sick))
    assert scenes[2].content_hash() == untouched
    assert [scene.attrs["batch"] for scene in scenes] == [{"asked": 4, "used": 2}] * 2 + [{"asked": 4, "used": 4}]
    assert len({scene.attrs["config_hash"] for scene in scenes}) == 1
    record = json.loads((sick / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["scene"] == f"{DRIVE}/0000000000-0000000003"
    assert record["replaced_by"] == [scene.name for scene in scenes[:2]]
    assert record["faults"] == ["made up"]
    again = reconstruct(settings(4), tree, sick, workers=1)
    assert again.written == [] and len(again.skipped) == 2, "later runs know the parts of the batch"


def test_a_redo_that_dies_leaves_the_old_scene_and_goes_on(tree, sick, monkeypatch, caplog):
    made = batch_scene.reconstruct_batch

    def dies_at_the_second(batch, *arguments):
        if batch.name.endswith("0000000003"):
            raise KeyboardInterrupt
        return made(batch, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(batch_scene, "reconstruct_batch", dies_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            reconstruct(settings(4), tree, sick, workers=1, redo_size=2)
    assert names(sick) == ["0000000000-0000000001", "0000000000-0000000003", "0000000004-0000000007"]
    with caplog.at_level("WARNING", logger="rw3d"):
        reconstruct(settings(4), tree, sick, workers=1)
    assert "0000000000-0000000003: is here together with parts of it" in caplog.text
    kept = open_collection(sick)[0].attrs["complete"]["finished"]
    reconstruct(settings(4), tree, sick, workers=1, redo_size=2)
    assert names(sick) == ["0000000000-0000000001", "0000000002-0000000003", "0000000004-0000000007"]
    assert open_collection(sick)[0].attrs["complete"]["finished"] == kept
    assert verify(sick) == []


def test_what_a_removal_leaves_is_swept_by_the_next_run(tree, sick, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path: None)
        reconstruct(settings(4), tree, sick, workers=1, redo_size=2)
    assert len(list(sick.rglob("*.zarr.tmp-*"))) == 1
    assert len(names(sick)) == 3
    reconstruct(settings(4), tree, sick, workers=1)
    assert not list(sick.rglob("*.zarr.tmp-*"))
    assert verify(sick) == []


def test_a_redo_that_fails_keeps_the_old_scene(tree, sick, monkeypatch):
    def fails(batch, *arguments):
        raise UserError("no such luck")

    monkeypatch.setattr(batch_scene, "reconstruct_batch", fails)
    outcome = reconstruct(settings(4), tree, sick, workers=1, redo_size=2)
    assert len(outcome.failed) == 2
    assert outcome.exit_code() is Exit.PARTIAL
    assert names(sick) == ["0000000000-0000000003", "0000000004-0000000007"]


def test_what_cannot_be_cut_stays_and_is_named(tree, sick, caplog):
    with caplog.at_level("WARNING", logger="rw3d"):
        reconstruct(settings(4), tree, sick, workers=1, redo_size=4)
    assert "1 unhealthy scenes stay, because they have no more than 4 frames" in caplog.text
    assert f"({DRIVE}/0000000000-0000000003); a smaller --batch-size may help" in caplog.text
    assert len(names(sick)) == 2


def test_parts_are_no_larger_than_asked(tree):
    (batch,) = find_batches(settings(8, overlap=2), tree)[0]
    for size in range(1, 9):
        parts = cut(batch, size)
        assert max(len(part.frames) for part in parts) <= size
        assert {frame.id for part in parts for frame in part.frames} == set(range(8))


def test_the_command_takes_the_configuration_of_the_folder(tree, sick, monkeypatch, capsys):
    def run(*more: str) -> int:
        return run_command(
            monkeypatch, "reconstruct", "--root", str(tree), "--out", str(sick), "--redo-unhealthy", *more
        )

    assert run("--retry-failed") == 2
    assert "--redo-unhealthy and --retry-failed are about different batches" in capsys.readouterr().err
    assert run("--batch-size", "3") == 0
    assert len(names(sick)) == 3
    (sick / "config.yaml").unlink()
    assert run() == 2
    assert "config.yaml: no such file" in capsys.readouterr().err
