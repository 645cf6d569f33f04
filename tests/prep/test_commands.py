"""The commands of rw3d-prep on a tiny drive, as a user types them."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from builders import kitti360_tree
from rw3d_common import open_collection, open_scene
from rw3d_prep import cli
from rw3d_prep.config import load_config
from rw3d_prep.pipeline import find_batches, reconstruct
from rw3d_prep.plan import GPU_BYTES, GPU_BYTES_PER_VIEW, make_plan
from rw3d_prep.plan_table import plan_table


def run(monkeypatch, *arguments: str) -> int:
    """Exit code of one command in this process."""
    monkeypatch.setattr(sys, "argv", ["rw3d-prep", *arguments])
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working folder with KITTI-360 data where bare commands look for them."""
    kitti360_tree(tmp_path / "data" / "kitti360", sequences=(0, 2), size=(48, 96))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RW3D_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def test_bare_reconstruct_writes_stores_and_says_so_first(folder, monkeypatch, caplog):
    monkeypatch.setattr(cli, "configure", lambda: None)
    with caplog.at_level("INFO", logger="rw3d"):
        assert run(monkeypatch, "reconstruct", "--dataset", "kitti360", "--backend", "sensor") == 0
    first = caplog.messages[0]
    assert all(word in first for word in ("kitti360", "data/kitti360", "sensor", "stores/kitti360"))
    collection = open_collection("stores")
    assert [len(scene) for scene in collection] == [4, 4]
    for name in ("config.yaml", "manifest.json", "metrics.jsonl"):
        assert (folder / "stores" / "kitti360" / name).is_file()
    assert not (folder / "stores" / "kitti360" / "failures.jsonl").exists()
    lines = (folder / "stores" / "kitti360" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["views"] for line in lines] == [4, 4]


def test_data_are_found_below_rw3d_data(folder, monkeypatch):
    (folder / "data").rename(folder / "elsewhere")
    monkeypatch.setenv("RW3D_DATA", str(folder / "elsewhere"))
    assert run(monkeypatch, "reconstruct", "--dataset", "kitti360", "--backend", "sensor") == 0


def test_kitti360_without_gpu_or_package_names_the_alternatives(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mapanything", None)
    assert run(monkeypatch, "reconstruct", "--dataset", "kitti360") == 2
    said = capsys.readouterr().err
    assert "--backend stereo" in said
    assert "Traceback" not in said
    assert not list((folder / "stores").rglob("*.zarr*"))


def test_every_look_at_a_finished_store(folder, monkeypatch, capsys):
    run(monkeypatch, "reconstruct", "--dataset", "kitti360", "--backend", "sensor")
    assert run(monkeypatch, "verify", "stores") == 0
    capsys.readouterr()
    assert run(monkeypatch, "inspect", "stores", "--picture", "cloud.png") == 0
    shown = capsys.readouterr().out
    scene = open_collection("stores")[0]
    assert f"{scene.n_points:,}" in shown
    assert all(name in shown for name in ("road", "building", "confidence", "covered", "residual"))
    assert (folder / "cloud.png").stat().st_size > 5_000


def test_exported_ply_holds_the_same_points(folder, monkeypatch):
    from plyfile import PlyData

    run(monkeypatch, "reconstruct", "--dataset", "kitti360", "--backend", "sensor")
    assert run(monkeypatch, "export", "stores", "--ply", "clouds", "--color", "label") == 0
    for scene in open_collection("stores"):
        vertices = PlyData.read(str(folder / "clouds" / f"{scene.name}.ply"))["vertex"]
        position = np.stack([vertices[axis] for axis in "xyz"], axis=1)
        np.testing.assert_array_equal(position, scene.read("position"))
        np.testing.assert_array_equal(vertices["label"], scene.read("label"))
        colors = np.stack([vertices[c] for c in ("red", "green", "blue")], axis=1)
        np.testing.assert_array_equal(colors, scene.classes.palette[scene.read("label")])
        assert vertices["view"].max() == len(scene) - 1


def test_datasets_lists_and_checks(folder, monkeypatch, capsys):
    assert run(monkeypatch, "datasets") == 0
    assert "KITTI-360" in capsys.readouterr().out
    assert run(monkeypatch, "datasets", "check", "kitti360") == 0
    assert re.search(r"train +│ +8", capsys.readouterr().out)
    (folder / "data" / "kitti360" / "calibration" / "perspective.txt").unlink()
    assert run(monkeypatch, "datasets", "check", "kitti360") == 2


@pytest.mark.parametrize(
    "command",
    [[], *[[name] for name in ("reconstruct", "plan", "demo", "verify", "inspect", "export", "doctor", "datasets")]],
)
def test_help_teaches(command, monkeypatch, capsys):
    assert run(monkeypatch, *command, "--help") == 0
    assert len(capsys.readouterr().out) > 300


def test_plan_predicts_disk_and_points_within_fifteen_percent(tmp_path):
    """Frames are large enough here for the data, not the fixed few kilobytes per store, to decide."""
    root = kitti360_tree(tmp_path / "data", frames=range(24), size=(188, 704))
    config = load_config("kitti360", None, "sensor", None, [])
    batches, _ = find_batches(config, root)
    plan = make_plan(batches, config, root, workers=1)
    reconstruct(config, root, tmp_path / "out", workers=1)
    stores = [path for path in (tmp_path / "out").rglob("*.zarr/**/*") if path.is_file()]
    disk = sum(path.stat().st_size for path in stores)
    points = sum(scene.n_points for scene in open_collection(tmp_path / "out"))
    assert plan.views == 24
    assert abs(plan.points / points - 1) < 0.15
    assert abs(plan.disk / disk - 1) < 0.15, f"{plan.disk:,.0f} planned, {disk:,} used"


def test_plan_of_mapanything_needs_no_gpu(folder, monkeypatch):
    config = load_config("kitti360", None, None, None, [])
    batches, _ = find_batches(config, folder / "data" / "kitti360")
    plan = make_plan(batches, config, folder / "data" / "kitti360", workers=1)
    assert not plan.measured
    assert plan.gpu_memory > 6e9
    monkeypatch.setattr("rw3d_prep.reconstruct.gpu_memory.free", lambda: 8e9)
    table = plan_table(plan, config, folder / "out")
    assert [cell.strip() for cell in table.columns[0].cells][6:10] == [
        "in 8.0 GB",
        "in 24.0 GB",
        "in 40.0 GB",
        "in 80.0 GB",
    ]
    for memory, cell in zip((8e9, 24e9, 40e9, 80e9), list(table.columns[1].cells)[6:10], strict=True):
        images = int(str(cell).split()[0])
        assert images == plan.largest_batch_in(memory) > 0
        assert GPU_BYTES + plan.gpu_per_view * images <= memory < GPU_BYTES + plan.gpu_per_view * (images + 1)
    assert plan.largest_batch_in(6e9) == 0, "the weights alone take most of it"


@pytest.mark.parametrize(("views", "gigabytes"), [(50, 12.1), (100, 17.7), (200, 29.3), (500, 63.9)])
def test_plan_follows_the_published_memory_profile(views, gigabytes):
    assert GPU_BYTES + views * GPU_BYTES_PER_VIEW == pytest.approx(gigabytes * 1e9, rel=0.01)


def test_world_offset_leads_back_to_the_dataset_world(folder):
    root = folder / "data" / "kitti360"
    config = load_config("kitti360", None, "sensor", None, [])
    reconstruct(config, root, folder / "out", workers=1)
    batches, _ = find_batches(config, root)
    for batch in batches:
        scene = open_scene(folder / "out" / f"{batch.name}.zarr")
        assert np.abs(scene.world_offset).max() > 1000
        for index, frame in enumerate(batch.frames):
            centre = scene.view(index).camera_to_world[:3, 3] + scene.world_offset
            np.testing.assert_allclose(centre, frame.camera_to_world[:3, 3], atol=1e-9)


def test_a_view_reads_its_image_and_label_files_as_train_ids(folder):
    config = load_config("kitti360", None, "sensor", None, [])
    reconstruct(config, folder / "data" / "kitti360", folder / "out", workers=1)
    for scene in open_collection(folder / "out"):
        for index in range(len(scene)):
            view = scene.view(index)
            rows, columns = view.rows_columns.T
            np.testing.assert_array_equal(view.read_image()[rows, columns], view.color)
            np.testing.assert_array_equal(view.read_label()[rows, columns], view.label)
            np.testing.assert_array_equal(view.read_truth()[rows, columns], view.truth)
