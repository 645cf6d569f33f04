"""Scenes without views: what they hold, and that everything that reads stores can read them."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import rgbd_tree
from rw3d_common import open_collection, open_scene
from rw3d_common.cameras import NO_PIXEL
from rw3d_common.errors import UserError
from rw3d_common.schema import CHUNK_ROWS
from rw3d_prep.clouds import write_cloud
from rw3d_prep.config import load_config
from rw3d_prep.export import export_ply
from rw3d_prep.frames import Cloud, CloudPoints
from rw3d_prep.picture import scene_picture
from rw3d_prep.pipeline import find_batches, reconstruct
from rw3d_prep.plan import make_plan
from rw3d_prep.plan_table import plan_table
from rw3d_prep.publish import write_manifest
from rw3d_prep.report import report
from rw3d_prep.sample_views import sample_views
from rw3d_prep.samples import make_samples
from rw3d_prep.sampling import SampleConfig
from rw3d_prep.verify import verify, verify_store
from rw3d_prep.write import file_table
from s3dis_builder import s3dis_root

CONFIG = load_config("s3dis", None, None, None, [])


@dataclass(frozen=True)
class Given:
    """A cloud that is in memory already."""

    points: CloudPoints
    path: Path = Path("given.txt")

    def read(self) -> CloudPoints:
        return self.points


def cloud_of(n: int = 500, seed: int = 0, at: float = 0.0, **changes) -> Cloud:
    rng = np.random.default_rng(seed)
    points = CloudPoints(
        position=at + rng.uniform(-10, 10, (n, 3)),
        color=rng.integers(0, 256, (n, 3)).astype(np.uint8),
        truth=rng.integers(0, 13, n).astype(np.uint8),
    )
    return Cloud("train", "Area_1", "office_1", Given(replace(points, **changes)))


def made(out: Path, cloud: Cloud | None = None):
    cloud = cloud or cloud_of()
    write_cloud(cloud, CONFIG, out, out)
    return open_scene(out / f"{cloud.name}.zarr")


def test_points_come_back_as_they_were(tmp_path):
    cloud = cloud_of(CHUNK_ROWS + 7)
    scene, given_points = made(tmp_path, cloud), cloud.source.points
    assert np.abs(scene.read("position") + scene.world_offset - given_points.position).max() < 2e-6
    np.testing.assert_array_equal(scene.read("color"), given_points.color)
    np.testing.assert_array_equal(scene.read("truth"), given_points.truth)
    assert (scene.read("confidence") == 1).all()
    assert (scene.read("pixel") == NO_PIXEL).all()
    assert (scene.read("label") == 255).all()
    assert scene.view_table["point_offset"].tolist() == [CHUNK_ROWS + 7]
    assert verify_store(scene.path) == []


@settings(max_examples=15)
@given(st.floats(-1e6, 1e6))
def test_far_from_the_origin_float32_keeps_micrometres(tmp_path_factory, at):
    cloud = cloud_of(50, at=at)
    scene = made(tmp_path_factory.mktemp("far"), cloud)
    assert (scene.world_offset == np.floor(scene.world_offset)).all()
    exact = cloud.source.points.position - scene.world_offset
    assert np.abs(scene.read("position") - exact).max() < 2e-6


def test_the_scene_says_what_it_is(tmp_path):
    scene = made(tmp_path)
    assert len(scene) == 0
    assert "500" in repr(scene)
    assert "<table>" in scene._repr_html_()
    assert scene.content_hash() == made(tmp_path / "again").content_hash()
    with pytest.raises(UserError, match=r"office_1\.zarr: no view 0; this scene has points only"):
        scene.view(0)
    with pytest.raises(UserError, match="samples"):
        scene.sample(0)
    assert "0 views" in repr(open_collection(tmp_path))


@pytest.mark.parametrize("by", ["rgb", "label", "truth", "confidence", "view"])
def test_every_colouring_has_one_colour_per_point(tmp_path, by):
    colors = made(tmp_path).colors(by)
    assert (colors.shape, colors.dtype) == ((500, 3), np.uint8)


def test_export_writes_all_points_as_of_no_view(tmp_path):
    from plyfile import PlyData

    scene = made(tmp_path)
    assert export_ply(scene, tmp_path / "room.ply", "truth") == 500
    vertices = PlyData.read(tmp_path / "room.ply")["vertex"]
    assert (vertices["view"] == 65535).all()
    np.testing.assert_array_equal(vertices["x"], scene.read("position")[:, 0])


def test_the_views_of_other_scenes_are_exported_as_before(tmp_path):
    from plyfile import PlyData

    config = load_config("rgbd", None, None, None, [])
    reconstruct(config, rgbd_tree(tmp_path / "data"), tmp_path / "out", workers=1)
    (scene,) = open_collection(tmp_path / "out")
    export_ply(scene, tmp_path / "a.ply")
    views = PlyData.read(tmp_path / "a.ply")["vertex"]["view"]
    assert np.bincount(views).tolist() == np.diff(scene.view_table["point_offset"]).tolist()
    assert len(np.unique(scene.colors("view"), axis=0)) == len(scene)


def test_a_picture_shows_the_cloud_and_its_dense_labels(tmp_path):
    scene = made(tmp_path, cloud_of(20_000))
    picture = scene_picture(scene, 320, 140)
    for half in (picture[:140], picture[140:]):
        assert (half != 18).any(axis=2).mean() > 0.1
    painted = {tuple(color) for color in picture[140:].reshape(-1, 3)}
    assert len(painted & {tuple(item.color) for item in scene.classes.classes}) == 13


def test_a_picture_looks_below_the_ceiling(tmp_path):
    cloud = cloud_of(20_000)
    points = cloud.source.points
    truth = np.where(points.position[:, 2] > 9, 0, 1).astype(np.uint8)
    scene = made(tmp_path, cloud_of(20_000, truth=truth))
    painted = {tuple(color) for color in scene_picture(scene, 320, 140)[140:].reshape(-1, 3)}
    assert scene.classes.classes[1].color in painted
    assert scene.classes.classes[0].color not in painted


def test_inspect_and_manifest_take_them(tmp_path):
    scene = made(tmp_path)
    report([scene])
    write_manifest(tmp_path)
    assert verify(tmp_path) == []


def test_plan_predicts_points_disk_and_time(tmp_path):
    root = s3dis_root(tmp_path / "data", points=400)
    clouds, _ = find_batches(CONFIG, root)
    plan = make_plan(clouds, CONFIG, root, workers=1)
    outcome = reconstruct(CONFIG, root, tmp_path / "out", workers=1)
    scenes = list(open_collection(tmp_path / "out"))
    assert (plan.views, plan.batches, plan.clouds) == (0, 0, 3)
    assert len(outcome.written) == 3
    assert plan.points == sum(scene.n_points for scene in scenes)
    written = sum(f["size"] for scene in scenes for f in scene.attrs["complete"]["files"].values())
    assert plan.disk == pytest.approx(written, rel=0.05)
    assert plan.seconds > 0
    assert plan_table(plan, CONFIG, tmp_path).row_count == 5


def test_two_processes_write_the_same_bytes_as_one(tmp_path):
    root = s3dis_root(tmp_path / "data")
    for workers in (1, 2):
        reconstruct(CONFIG, root, tmp_path / f"by{workers}", workers)
    one, two = (list(open_collection(tmp_path / f"by{workers}")) for workers in (1, 2))
    assert [scene.content_hash() for scene in one] == [scene.content_hash() for scene in two]
    assert [file_table(scene.path) for scene in one] == [file_table(scene.path) for scene in two]


def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("rw3d_prep.write.SceneWriter._write_views", interrupt)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() or ".zarr" in path.name]


# Samples and training


def test_sample_views_passes_over_clouds(tmp_path, caplog):
    made(tmp_path)
    with caplog.at_level("INFO", logger="rw3d"):
        outcome = sample_views(tmp_path, SampleConfig(views="all"), workers=1)
    assert (outcome.exit_code(), outcome.written, outcome.skipped) == (0, [], [])
    assert "1 of 1 scenes are point clouds without views and get no samples" in caplog.text
    with pytest.raises(UserError, match="a point cloud without views, and samples are drawn for views"):
        make_samples(tmp_path / "train" / "Area_1" / "office_1.zarr", SampleConfig(views="all"))


def test_training_leaves_clouds_out_with_a_sentence(tmp_path, caplog):
    index = pytest.importorskip("rw3d_train.data.index", reason="the trainer needs torch")
    made(tmp_path)
    config = load_config("rgbd", None, None, None, [])
    with caplog.at_level("INFO", logger="rw3d"), pytest.raises(UserError, match="no sample"):
        index.build_index(index.find_stores(tmp_path), "train", None)
    assert "office_1.zarr: a point cloud without views, so it has no samples; left out" in caplog.text
    reconstruct(config, rgbd_tree(tmp_path / "data"), tmp_path / "frames", workers=1)
    sample_views(tmp_path / "frames", SampleConfig(points=50, views="all"), workers=1)
    both = [*index.find_stores(tmp_path / "train"), *index.find_stores(tmp_path / "frames")]
    assert len(index.build_index(both, "train", None)) == 4


# Bad input


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"position": np.zeros((0, 3)), "color": np.zeros((0, 3), np.uint8), "truth": np.zeros(0, np.uint8)}, "holds no point"),
        ({"position": np.full((500, 3), np.nan)}, "holds coordinates that are not finite"),
        ({"truth": np.full(500, 77, np.uint8)}, "unknown label id 77"),
    ],
)  # fmt: skip
def test_a_cloud_that_cannot_be_used_is_named_and_leaves_nothing(tmp_path, changes, told):
    with pytest.raises(UserError, match=rf"given\.txt: {told}"):
        made(tmp_path, cloud_of(**changes))
    assert not list(tmp_path.rglob("*.zarr*"))


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("pixel", 5, "source pixels although the points belong to no view"),
        ("label", 2, "sparse labels although the points belong to no view"),
        ("confidence", 0.5, "confidences other than 1"),
        ("position", np.inf, "points that are not finite"),
    ],
)
def test_verify_finds_points_that_pretend_to_be_of_a_view(tmp_path, name, value, told):
    scene = made(tmp_path)
    reseal(scene.path, f"points/{name}", 3, value)
    assert any(told in fault for fault in verify_store(scene.path))


def test_verify_finds_an_offset_that_is_not_the_number_of_points(tmp_path):
    scene = made(tmp_path)
    reseal(scene.path, "views/point_offset", 0, 499)
    assert verify_store(scene.path) == [
        "views/point_offset does not lead from 0 to the number of points in rising order"
    ]


def reseal(store: Path, array: str, row: int, value: float) -> None:
    """Alter a value and make the record fit the altered files, so that only the values can tell."""
    group = zarr.open_group(store, mode="r+")
    group[array][row] = value
    record = dict(group.attrs["complete"])
    if array == "points/label":
        record["class_points"] = {**record["class_points"], "label": {"2": 1, "255": 499}}
        record["labelled_points"] = 1
    group.attrs["complete"] = {**record, "files": file_table(store)}
