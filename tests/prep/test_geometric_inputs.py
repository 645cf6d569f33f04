"""What MapAnything is told beside the pictures, and the way back to the dataset's world; the model is a stand-in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from builders import kitti360_tree, rgbd_tree
from rw3d_common import open_scene
from rw3d_common.cameras import F64, project, unproject_depth
from rw3d_common.errors import UserError
from rw3d_common.images import image_size
from rw3d_prep import batch_scene
from rw3d_prep.batching import make_batches
from rw3d_prep.config import PrepConfig, load_config
from rw3d_prep.datasets import DatasetConfig, read_frames
from rw3d_prep.frames import Frame, LidarScan
from rw3d_prep.reconstruct import mapanything, usable_frames
from rw3d_prep.reconstruct.geometric_inputs import depth_on_grid, inputs_of
from rw3d_prep.reconstruct.mapanything import MapAnythingBackend, MapAnythingConfig
from rw3d_prep.reconstruct.pixel_maps import pixel_map_for, target_size
from rw3d_prep.reconstruct.sensor import SensorBackend, SensorConfig, read_depth, read_scan

ALL = ("intrinsics", "poses", "depth")
FAR = np.array([4_000.25, -3_000.5, 120.0])  # metres; in float32 a position there is off by a tenth of a millimetre
ORIGIN = np.zeros(3)


@pytest.fixture
def frames(tmp_path: Path) -> list[Frame]:
    """Four posed frames with depth images, far from the origin of their world."""
    found = read_frames(rgbd_tree(tmp_path / "rgbd"), DatasetConfig(name="rgbd")).frames
    return [replace(frame, camera_to_world=_shifted(frame.camera_to_world, FAR)) for frame in found]


def _shifted(pose: F64, offset: F64) -> F64:
    shifted = pose.copy()
    shifted[:3, 3] += offset
    return shifted


def _rotation(x: float, y: float) -> F64:
    (cx, cy), (sx, sy) = np.cos([x, y]), np.sin([x, y])
    return np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]) @ np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])


def assert_sentence(action: Callable[[], Any], *parts: str) -> None:
    """`action` raises a UserError of one sentence with all `parts`."""
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message and not message.endswith(".")


# --- inputs -----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(40, 2000), st.integers(40, 2000)),
    focal=st.floats(0.3, 3),
    centre=st.tuples(st.floats(0.2, 0.8), st.floats(0.2, 0.8)),
    resize=st.sampled_from(["fixed_mapping", "longest_side"]),
    point=st.tuples(st.floats(-5, 5), st.floats(-5, 5), st.floats(0.5, 50)),
)
def test_given_intrinsics_see_a_point_in_the_cell_that_maps_to_its_pixel(size, focal, centre, resize, point) -> None:
    height, width = size
    intrinsics = np.array([[focal * width, 0, centre[0] * width], [0, focal * width, centre[1] * height], [0, 0, 1]])
    pixel_map = pixel_map_for(size, target_size([size], resize, 518))
    frame = Frame("train", "s", 0, "", Path("x.png"), intrinsics=intrinsics)
    inputs = inputs_of(frame, ("intrinsics",), pixel_map, ORIGIN)
    assert set(inputs) == {"intrinsics", "is_metric_scale"}
    on_grid = inputs["intrinsics"]
    assert on_grid.shape == (1, 3, 3) and on_grid.dtype == np.float32
    u, v, _ = project(np.array([point]), intrinsics, np.eye(4))
    column, row, _ = project(np.array([point]), on_grid[0].astype(float), np.eye(4))
    scale = max(pixel_map.column_scale, pixel_map.row_scale) * (1 + abs(point[0] / point[2]) + abs(point[1] / point[2]))
    tolerance = 1e-6 * 518 * 6 * scale  # float32 matrix
    assert pixel_map.column_scale * column + pixel_map.column_offset == pytest.approx(u, abs=tolerance)
    assert pixel_map.row_scale * row + pixel_map.row_offset == pytest.approx(v, abs=tolerance)
    assert pixel_map.source_intrinsics(on_grid[0].astype(float)) == pytest.approx(intrinsics, abs=tolerance)


def test_shapes_and_types_are_what_infer_takes(frames: list[Frame]) -> None:
    pixel_map = pixel_map_for((24, 32), (42, 56))
    inputs = inputs_of(frames[1], ALL, pixel_map, FAR)
    shapes = {name: (values.shape, str(values.dtype)) for name, values in inputs.items()}
    assert shapes == {
        "intrinsics": ((1, 3, 3), "float32"),
        "camera_poses": ((1, 4, 4), "float32"),
        "depth_z": ((1, 42, 56), "float32"),
        "is_metric_scale": ((1,), "bool"),
    }
    assert inputs["is_metric_scale"].all()
    expected = _shifted(frames[1].camera_to_world, -FAR)
    assert np.abs(inputs["camera_poses"][0] - expected).max() < 1e-6, "recentred before it becomes float32"
    assert inputs_of(frames[1], (), pixel_map, FAR) == {}


@pytest.mark.parametrize("target", [(42, 56), (14, 28), (28, 14), (140, 140)])
def test_depth_of_each_cell_is_that_of_the_nearest_pixel(frames: list[Frame], target: tuple[int, int]) -> None:
    """Against a loop over the cells, with a depth camera of another focal length, centre and field of view."""
    depth = replace(frames[0].depth, intrinsics=np.array([[40.0, 0, 13.3], [0, 36.0, 14.2], [0, 0, 1]]))
    frame = replace(frames[0], depth=depth)
    pixel_map = pixel_map_for((24, 32), target)
    values = read_depth(depth.path) * depth.unit
    k = frame.intrinsics
    expected = np.zeros(target)
    for row in range(target[0]):
        for column in range(target[1]):
            u = pixel_map.column_scale * column + pixel_map.column_offset
            v = pixel_map.row_scale * row + pixel_map.row_offset
            x = int(np.floor((u - k[0, 2]) / k[0, 0] * 40.0 + 13.3 + 0.5))
            y = int(np.floor((v - k[1, 2]) / k[1, 1] * 36.0 + 14.2 + 0.5))
            if 0 <= x < 32 and 0 <= y < 24:
                expected[row, column] = values[y, x]
    found = depth_on_grid(frame, pixel_map)
    assert found.dtype == np.float32
    assert found == pytest.approx(expected, abs=1e-6)
    assert (found == 0).any() and (found > 1).any()


def test_lidar_becomes_the_nearest_depth_per_cell(tmp_path: Path) -> None:
    root = kitti360_tree(tmp_path / "kitti", frames=range(2), size=(48, 96))
    frame = read_frames(root, DatasetConfig(name="kitti360", splits=["train"], cameras=["image_00"])).frames[0]
    pixel_map = pixel_map_for((48, 96), (28, 70))
    intrinsics = pixel_map.grid_intrinsics(frame.intrinsics)
    expected = np.zeros((28, 70))
    for point in read_scan(frame.lidar.source):
        x, y, z = (frame.lidar.lidar_to_camera @ [*point, 1])[:3]
        if z > 0.1:
            column = int(np.floor(intrinsics[0, 0] * x / z + intrinsics[0, 2] + 0.5))
            row = int(np.floor(intrinsics[1, 1] * y / z + intrinsics[1, 2] + 0.5))
            if 0 <= column < 70 and 0 <= row < 28 and (expected[row, column] == 0 or z < expected[row, column]):
                expected[row, column] = z
    found = depth_on_grid(frame, pixel_map)
    assert found == pytest.approx(expected, abs=1e-4)
    assert (found > 0).sum() > 50 and np.isfinite(found).all()


def test_a_view_without_any_measured_depth_gives_none(frames: list[Frame]) -> None:
    """A depth of zero everywhere would tell the model that the scale is zero."""
    path = frames[0].depth.path
    Image.fromarray(np.full((24, 32), 65535, np.uint16)).save(path)
    inputs = inputs_of(frames[0], ALL, pixel_map_for((24, 32), (42, 56)), FAR)
    assert set(inputs) == {"intrinsics", "camera_poses", "is_metric_scale"}


@pytest.mark.parametrize(
    ("lacking", "use", "parts"),
    [
        ({"intrinsics": None}, ("intrinsics",), ("has no intrinsics", "leave intrinsics out of --use")),
        ({"camera_to_world": None}, ("poses",), ("has no pose", "leave poses out of --use")),
        ({"depth": None}, ("intrinsics", "depth"), ("no depth image and no LiDAR", "leave depth out of --use")),
        ({"intrinsics": np.full((3, 3), np.nan)}, ("intrinsics",), ("not finite (", "nan", "without --use intrinsics")),
        (
            {"camera_to_world": np.full((4, 4), np.inf)},
            ("poses",),
            ("no rigid transform ([[inf", "without --use poses"),
        ),
        ({"camera_to_world": 2 * np.eye(4)}, ("poses",), ("no rigid transform ([[2.0", "without --use poses")),
    ],
)
def test_what_cannot_be_given_is_named(frames: list[Frame], lacking: dict[str, Any], use: Any, parts: Any) -> None:
    frame = replace(frames[2], **lacking)
    assert_sentence(lambda: inputs_of(frame, use, pixel_map_for((24, 32), (42, 56)), FAR), str(frame), *parts)


# --- configuration ----------------------------------------------------------------------------------------------------


def test_frames_without_what_is_used_are_dropped_and_counted(frames: list[Frame]) -> None:
    backend = MapAnythingBackend(MapAnythingConfig(use=("poses", "depth", "intrinsics", "poses")))
    assert backend.config.use == ALL and backend.needs == ("intrinsics", "camera_to_world", "depth|lidar")
    some = [frames[0], replace(frames[1], camera_to_world=None), replace(frames[2], depth=None), frames[3]]
    kept, notes = usable_frames(some, backend.needs)
    assert [frame.id for frame in kept] == [0, 3]
    assert ["no pose" in notes[0], "no depth or lidar" in notes[1]] == [True, True]
    assert MapAnythingBackend(MapAnythingConfig()).needs == ()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"use": ["depth"]}, "without intrinsics"),
        ({"use": ["rays"]}, "'intrinsics', 'poses' or 'depth'"),
        ({"use": ["poses"], "model": "yyfz233/Pi3"}, "yyfz233/Pi3 is given pictures only"),
    ],
)
def test_what_goes_not_together_is_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        MapAnythingConfig(**wrong)


def test_scenes_from_before_these_options_stay_the_same() -> None:
    def identity(*assignments: str) -> dict[str, Any]:
        return load_config("kitti360", None, None, None, list(assignments)).identity()["backend"]

    before = {"kind", "model", "revision", "weights", "resize", "resolution", "memory_efficient", "minibatch_size"}
    before |= {"amp", "mask_edges", "device"}
    assert set(identity()) == before
    assert identity("backend.licence_policy=commercial") == identity()
    assert identity("backend.use=[poses]")["use"] == ["poses"]


# --- the way back -----------------------------------------------------------------------------------------------------


class KnowingModel:
    """Returns the geometry that it is given, in a world of its own: `to_own` (4, 4) times the given one."""

    def __init__(self, to_own: F64) -> None:
        self.to_own, self.device, self.views = to_own, "cpu", []

    def infer(self, views: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
        import torch

        self.views = [{**view} for view in views]
        return [{key: torch.from_numpy(value[None]) for key, value in self._see(view).items()} for view in views]

    def _see(self, view: dict[str, Any]) -> dict[str, Any]:
        image = view["img"][0].numpy()
        height, width = image.shape[1:]
        depth = view["depth_z"][0].numpy() if "depth_z" in view else np.ones((height, width), np.float32)
        pose = self.to_own @ (view["camera_poses"][0].numpy() if "camera_poses" in view else np.eye(4))
        points = unproject_depth(depth, view["intrinsics"][0].numpy().astype(float), pose)
        points[depth == 0] = np.inf  # what the mask leaves out may be anything
        return {
            "pts3d": points,
            "depth_z": depth[..., None],
            "conf": np.full((height, width), 2, np.float32),
            "non_ambiguous_mask": depth > 0,
            "intrinsics": view["intrinsics"][0].numpy(),
            "camera_poses": pose.astype(np.float32),
            "img_no_norm": np.moveaxis(image, 0, -1) * mapanything._STD + mapanything._MEAN,
        }


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> KnowingModel:
    pytest.importorskip("torch", reason="torch is not installed")
    to_own = np.eye(4)
    to_own[:3, :3], to_own[:3, 3] = _rotation(0.7, -2.0), (0.3, -1.2, 2.5)
    knowing = KnowingModel(to_own)
    monkeypatch.setattr(mapanything, "load_model", lambda config: knowing)
    return knowing


def config(**values: Any) -> MapAnythingConfig:
    return MapAnythingConfig(device="cpu", mask_edges=False, resolution=140, resize="longest_side", **values)


def test_results_land_in_the_datasets_world(model: KnowingModel, frames: list[Frame]) -> None:
    offset = frames[0].camera_to_world[:3, 3]
    views = list(MapAnythingBackend(config(use=ALL)).reconstruct(frames, offset))
    truth = list(SensorBackend(SensorConfig()).reconstruct(frames, offset))
    for view, frame, measured in zip(views, frames, truth, strict=True):
        assert np.abs(view.camera_to_world - _shifted(frame.camera_to_world, -offset)).max() < 1e-5
        assert np.abs(view.intrinsics - frame.intrinsics).max() < 1e-3
        depth = depth_on_grid(frame, view.pixel_map)
        exact = unproject_depth(depth, view.pixel_map.grid_intrinsics(frame.intrinsics), measured.camera_to_world)
        assert np.array_equal(view.valid, depth > 0) and view.valid.any() and not view.valid.all()
        assert np.abs(view.points[view.valid] - exact[view.valid]).max() < 1e-4
        assert view.points.dtype == np.float32


def test_without_poses_the_world_is_the_models_own(model: KnowingModel, frames: list[Frame]) -> None:
    backend = MapAnythingBackend(config(use=("intrinsics", "depth")))
    views = list(backend.reconstruct(frames, FAR))
    assert all("camera_poses" not in view for view in model.views)
    assert all(np.abs(view.camera_to_world - model.to_own).max() < 1e-6 for view in views)


def test_a_first_view_without_pose_is_named(model: KnowingModel, frames: list[Frame]) -> None:
    lost = [replace(frames[0], camera_to_world=None), *frames[1:]]
    backend = MapAnythingBackend(config(use=("intrinsics", "poses")))
    assert_sentence(lambda: backend.load(lost), str(lost[0]), "has no pose")


def test_a_scene_states_its_offset_and_both_poses(
    model: KnowingModel, frames: list[Frame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_config("rgbd", None, "mapanything", None, [])
    settings_ = PrepConfig(**{**recipe.model_dump(), "backend": config(use=ALL).model_dump()})
    monkeypatch.setattr(batch_scene, "backend_of", lambda config: MapAnythingBackend(config))
    (batch,) = make_batches(frames, settings_.batching)
    batch_scene.reconstruct_batch(batch, settings_, tmp_path / "rgbd", tmp_path / "out")
    scene = open_scene(next((tmp_path / "out").rglob("*.zarr")))
    assert scene.attrs["world_offset"] == pytest.approx(frames[0].camera_to_world[:3, 3])
    given, predicted = scene.view_table["given_camera_to_world"], scene.view_table["camera_to_world"]
    assert np.isfinite(given).all() and np.abs(given - predicted).max() < 1e-5
    backend = MapAnythingBackend(settings_.backend)
    alone, told = backend.load(frames).reference, backend.load(frames, np.array(scene.attrs["world_offset"])).reference
    assert np.array_equal(alone, told), "the pipelined run takes the same offset as the scene states"


def test_an_accumulated_cloud_takes_no_scans_place(frames: list[Frame]) -> None:
    cloud = LidarScan(SimpleNamespace(read_points=lambda: np.ones((1, 3), np.float32)), np.eye(4), accumulated=True)
    frame = replace(frames[0], depth=None, accumulated=cloud)
    assert_sentence(lambda: depth_on_grid(frame, pixel_map_for(image_size(frame.image), (42, 56))), "no LiDAR scan")
