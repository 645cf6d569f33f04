"""The page that shows a cloud: what is on it, and that a browser draws it."""

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from builders import kitti360_tree
from run_command import run_command
from rw3d_common import open_collection
from rw3d_common.errors import UserError
from rw3d_common.images import read_image
from rw3d_common.labels import IGNORE
from rw3d_prep.align import align, alone, chains
from rw3d_prep.batching import BatchConfig
from rw3d_prep.config import PrepConfig
from rw3d_prep.datasets import DatasetConfig
from rw3d_prep.pipeline import reconstruct
from rw3d_prep.reconstruct.sensor import SensorConfig
from rw3d_prep.view import colorings, sample_cloud, write_page, write_png

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Path:
    """Two scenes of a drive that share a frame."""
    folder = tmp_path_factory.mktemp("view")
    config = PrepConfig(
        dataset=DatasetConfig(name="kitti360", labels="scribble"),
        batching=BatchConfig(size=3, overlap=1),
        backend=SensorConfig(),
    )
    reconstruct(config, kitti360_tree(folder / "data", frames=range(5), size=(48, 96)), folder / "stores", workers=1)
    return folder / "stores"


def on_page(path: Path) -> dict:
    """What a page carries."""
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', path.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def decoded(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype).reshape(-1, 3)


def test_every_point_when_there_is_room(stores):
    scene = open_collection(stores)[0]
    cloud = sample_cloud([alone(scene)], 1_000_000)
    assert cloud.total == scene.n_points == len(cloud.position)
    offset = scene.read("position")[0] - cloud.position[0]
    np.testing.assert_allclose(cloud.position + offset, scene.read("position"), atol=1e-4)
    for name in ("color", "label", "truth"):
        np.testing.assert_array_equal(getattr(cloud, name), scene.read(name))
    np.testing.assert_array_equal(np.bincount(cloud.view), np.diff(scene.view_table["point_offset"]))


def test_a_small_sample_prefers_labels_and_repeats_itself(stores):
    scene = open_collection(stores)[0]
    label = scene.read("label")
    cloud, again = (sample_cloud([alone(scene)], 400) for _ in range(2))
    np.testing.assert_array_equal(cloud.position, again.position)
    assert len(cloud.position) == 400
    labelled = int((cloud.label != IGNORE).sum())
    assert labelled == min(100, int((label != IGNORE).sum())) > 400 * (label != IGNORE).mean()
    assert len(np.unique(cloud.position, axis=0)) == 400, "no point twice"


def test_merged_scenes_share_a_world_and_show_each_frame_once(stores):
    scenes = list(open_collection(stores))
    (drive,) = chains(scenes, align(stores), 0.05)
    cloud = sample_cloud(drive, 10_000_000)
    shared = np.diff(scenes[1].view_table["point_offset"])[0]
    assert cloud.total == len(cloud.position) == scenes[0].n_points + scenes[1].n_points - shared
    both = np.concatenate([scene.read("position") + scene.world_offset for scene in scenes])
    assert np.ptp(cloud.position, axis=0) == pytest.approx(np.ptp(both, axis=0), abs=1e-2)
    assert set(cloud.view) == {0, 1, 2, 4, 5}
    assert list(colorings(cloud)) == ["rgb", "label", "truth", "confidence", "view", "scene"]


def test_the_page_carries_the_cloud_and_needs_nothing_else(stores, tmp_path):
    scene = open_collection(stores)[0]
    cloud = sample_cloud([alone(scene)], 500)
    write_page(cloud, tmp_path / "view.html", "label")
    data, text = on_page(tmp_path / "view.html"), (tmp_path / "view.html").read_text()
    assert "http" not in text.replace("http-equiv", ""), "nothing is loaded from anywhere"
    assert [mode["name"] for mode in data["modes"]] == ["rgb", "label", "truth", "confidence", "view"]
    assert data["first"] == 1
    np.testing.assert_array_equal(decoded(data["position"], "f4"), cloud.position)
    palette = scene.classes.palette
    shown = decoded(data["modes"][1]["colors"], "u1")
    labelled = cloud.label != IGNORE
    np.testing.assert_array_equal(shown[labelled], palette[cloud.label[labelled]])
    assert (shown[~labelled] <= cloud.color[~labelled]).all(), "the others are dimmed"
    legend = {name: (color, count) for name, color, count in data["modes"][1]["legend"]}
    road = scene.classes.classes[scene.classes.names.index("road")]
    assert legend["road"] == (f"#{bytes(road.color).hex()}", f"{(cloud.label == road.train_id).sum():,}")
    assert set(legend) == {scene.classes.names[i] for i in np.unique(cloud.label[labelled])} | {"unlabelled"}


def test_a_scene_cannot_break_out_of_the_page(stores, tmp_path):
    scene = open_collection(stores)[0]
    scene.attrs["sequence"] = "</script><script>alert(1)</script>"
    write_page(sample_cloud([alone(scene)], 10), tmp_path / "view.html")
    assert "<script>alert" not in (tmp_path / "view.html").read_text()
    assert "</script><script>alert(1)</script>" in on_page(tmp_path / "view.html")["title"]


def test_unknown_colours_are_refused(stores, tmp_path):
    cloud = sample_cloud([alone(open_collection(stores)[0])], 10)
    for write in (write_page, write_png):
        with pytest.raises(UserError, match="no 'height' to colour by; this scene has rgb, label, truth"):
            write(cloud, tmp_path / "x", "height")
    assert not list(tmp_path.iterdir())


def test_the_command(stores, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_command(monkeypatch, "view", str(stores), "--points", "300", "--png", "cloud.png") == 0
    said = capsys.readouterr().err
    assert "view.html: 300 of" in said
    assert "2 scenes are here: --scene NAME shows another" in said
    picture = read_image(Path("cloud.png"))
    assert picture.shape == (720, 1280, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    assert run_command(monkeypatch, "view", str(stores), "--merge", "--out", "drive.html") == 0
    assert "2 scenes, train/2013_05_28_drive_0000_sync/0000000000-0000000004;" in capsys.readouterr().err
    assert run_command(monkeypatch, "view", str(stores), "--scene", "0000000002-0000000004") == 0
    assert on_page(tmp_path / "view.html")["title"].endswith("0000000002-0000000004")
    assert run_command(monkeypatch, "view", str(stores), "--scene", "drive") == 2
    assert "no scene ends with 'drive' (--scene); there are train/2013" in capsys.readouterr().err


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here; install it to see the page drawn")
def test_a_browser_draws_the_cloud_in_class_colours(stores, tmp_path):
    scene = open_collection(stores)[0]
    write_page(sample_cloud([alone(scene)], 20_000), tmp_path / "view.html", "truth")
    flags = "--headless --no-sandbox --disable-quic --no-first-run --disable-background-networking --disable-sync"
    flags += " --disable-component-update --use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader"
    shot = tmp_path / "shot.png"
    command = [str(BROWSER), *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", "--window-size=900,600"]
    command += ["--virtual-time-budget=3000", f"--screenshot={shot}", (tmp_path / "view.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert shot.is_file(), done.stderr
    pixels = read_image(shot)[:, 350:].reshape(-1, 3)  # right of the panel
    for name in ("road", "building"):
        color = scene.classes.classes[scene.classes.names.index(name)].color
        assert (pixels == color).all(axis=1).sum() > 500, f"{name} is not drawn"
    assert (pixels == 18).all(axis=1).sum() > 500, "nor is the background"
