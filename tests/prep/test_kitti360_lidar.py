"""KITTI-360's accumulated LiDAR: windows, the PLY format, and what a camera can see of a cloud of many places."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from builders import cut_short, kitti360_tree
from rw3d_common import open_scene
from rw3d_common.cameras import project
from rw3d_common.errors import UserError
from rw3d_prep.config import load_config
from rw3d_prep.datasets import DatasetConfig, read_frames
from rw3d_prep.datasets.kitti360_windows import Window, find_windows, window_of
from rw3d_prep.frames import Frame
from rw3d_prep.pipeline import find_batches, reconstruct
from rw3d_prep.reconstruct.sensor import SensorBackend, SensorConfig, is_hidden
from rw3d_prep.verify import verify
from windows_builder import static_window

ACCUMULATED = SensorConfig(lidar="accumulated")


def frames_of(root) -> list[Frame]:
    return read_frames(root, DatasetConfig(name="kitti360")).frames


def in_world(frame: Frame, u, v, depth) -> np.ndarray:
    """World points (N, 3) float64 of pixels at depths, one by one."""
    inverse = np.linalg.inv(frame.intrinsics)
    camera = np.array([inverse @ (column, row, 1.0) * z for column, row, z in zip(u, v, depth, strict=True)])
    return camera @ frame.camera_to_world[:3, :3].T + frame.camera_to_world[:3, 3]


def grid(step: float, height: int = 32, width: int = 64) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.meshgrid(np.arange(0, height, step), np.arange(0, width, step), indexing="ij")
    return columns.ravel(), rows.ravel()


def test_a_frame_takes_the_window_whose_middle_is_nearest(tmp_path):
    root = kitti360_tree(tmp_path, frames=range(12))
    points = np.full((3, 3), 5.0)
    for first, last in ((0, 5), (4, 9)):
        static_window(root, 0, first, last, points)
    chosen = [frame.accumulated and frame.accumulated.source.first for frame in frames_of(root)]
    assert chosen == [0, 0, 0, 0, 0, 4, 4, 4, 4, 4, None, None]
    assert all(frame.accumulated.accumulated for frame in frames_of(root)[:10])


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 20)), max_size=6),
    st.integers(0, 60),
)
def test_window_of_is_the_slow_search(spans, frame_id):
    windows = [Window(None, first, first + length) for first, length in spans]
    holding = [w for w in windows if w.first <= frame_id <= w.last]
    chosen = window_of(windows, frame_id)
    if not holding:
        assert chosen is None
    else:
        middle = min(abs((w.first + w.last) / 2 - frame_id) for w in holding)
        assert chosen in holding
        assert abs((chosen.first + chosen.last) / 2 - frame_id) == middle


@pytest.mark.parametrize("part", ["train", "test"])
def test_both_record_layouts_are_read_by_their_header(tmp_path, part):
    points = np.random.default_rng(0).uniform(1000, 4000, (50, 3)).astype(np.float32)
    points[7] = np.nan
    static_window(tmp_path, 8, 1, 250, points, part)
    (window,) = find_windows(tmp_path, "2013_05_28_drive_0008_sync")
    np.testing.assert_array_equal(window.read_points(), np.delete(points, 7, axis=0))
    assert window.read_points() is window.read_points(), "a window is read once per process"


def test_points_kilometres_from_the_origin_fall_on_their_pixels(tmp_path):
    root = kitti360_tree(tmp_path)
    frame = frames_of(root)[0]
    u, v = grid(4)
    depth = np.linspace(10, 11, u.size)
    static_window(root, 0, 0, 3, in_world(frame, u, v, depth))
    frame = frames_of(root)[0]
    (geometry,) = SensorBackend(ACCUMULATED).reconstruct([frame], frame.camera_to_world[:3, 3])
    got = project(geometry.points[v, u], frame.intrinsics, geometry.camera_to_world)[2]
    assert geometry.valid[v, u].all()
    np.testing.assert_allclose(got, depth, atol=1e-3)  # the file's float32 at 3.6 km is 0.2 mm


def test_a_wall_hides_the_wall_behind_it(tmp_path):
    """Near wall on the left half, sparse; far wall everywhere, dense: what shows through the near one is left out."""
    root = kitti360_tree(tmp_path)
    frame = frames_of(root)[0]
    near_u, near_v = grid(4)
    left = near_u < 32
    near = in_world(frame, near_u[left], near_v[left], np.full(left.sum(), 8.0))
    far_u, far_v = grid(1)
    far = in_world(frame, far_u, far_v, np.full(far_u.size, 20.0))
    static_window(root, 0, 0, 3, np.vstack([near, far]))
    frame = frames_of(root)[0]
    (geometry,) = SensorBackend(ACCUMULATED).reconstruct([frame], frame.camera_to_world[:3, 3])
    depth = project(geometry.points.reshape(-1, 3), frame.intrinsics, geometry.camera_to_world)[2].reshape(32, 64)
    assert np.abs(depth[:, :32][geometry.valid[:, :32]] - 8).max() < 1e-3
    assert geometry.valid[:, :32].sum() == left.sum()
    assert geometry.valid[:, 32:].all()
    assert np.abs(depth[:, 32:] - 20).max() < 1e-3


def test_what_is_too_near_or_too_far_hides_nothing(tmp_path):
    root = kitti360_tree(tmp_path)
    frame = frames_of(root)[0]
    u, v = grid(1)
    at = [in_world(frame, u, v, np.full(u.size, depth)) for depth in (0.05, 20.0, 300.0)]
    behind = in_world(frame, u, v, np.full(u.size, -20.0))
    static_window(root, 0, 0, 3, np.vstack([*at, behind]))
    frame = frames_of(root)[0]
    (geometry,) = SensorBackend(ACCUMULATED).reconstruct([frame], frame.camera_to_world[:3, 3])
    depth = project(geometry.points.reshape(-1, 3), frame.intrinsics, geometry.camera_to_world)[2]
    assert geometry.valid.all()
    assert np.abs(depth - 20).max() < 1e-3


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 20), st.integers(1, 20)),
        elements=st.one_of(st.just(np.inf), st.floats(1, 3, width=32)),
    )
)
def test_hidden_is_the_slow_loop(depth):
    hidden = is_hidden(depth)
    for row, column in np.ndindex(depth.shape):
        tile = depth[row // 8 * 8 : row // 8 * 8 + 8, column // 8 * 8 : column // 8 * 8 + 8]
        expected = np.isfinite(depth[row, column]) and depth[row, column] > np.float32(1.04) * tile.min()
        assert hidden[row, column] == expected


def test_reconstruct_with_accumulated_lidar(tmp_path):
    root = kitti360_tree(tmp_path / "kitti")
    u, v = grid(1)
    clouds = [in_world(frame, u, v, np.full(u.size, 12.0)) for frame in frames_of(root)]
    static_window(root, 0, 0, 3, np.vstack(clouds))
    settings = ["backend.lidar=accumulated", "dataset.splits=[train]"]
    config = load_config("kitti360", None, "sensor", None, settings)
    outcome = reconstruct(config, root, tmp_path / "out", workers=1)
    assert outcome.exit_code() == 0, outcome.failed
    assert verify(tmp_path / "out") == []
    scene = open_scene(tmp_path / "out" / f"{outcome.written[0]}.zarr")
    assert len(scene) == 4
    assert scene.n_points > 2 * u.size


def test_the_choice_of_lidar_changes_the_configuration_only_where_it_is_made():
    scan = load_config("kitti360", None, "sensor", None, [])
    accumulated = load_config("kitti360", None, "sensor", None, ["backend.lidar=accumulated"])
    assert "lidar" not in scan.identity()["backend"], "scenes from before this option stay the same"
    assert accumulated.identity()["backend"]["lidar"] == "accumulated"


# Bad input


def test_frames_outside_every_window_are_told(tmp_path):
    root = kitti360_tree(tmp_path)
    config = load_config("kitti360", None, "sensor", None, ["backend.lidar=accumulated", "dataset.splits=[train]"])
    with pytest.raises(UserError, match=r"4 of 4 frames have no accumulated LiDAR .*; choose another --backend"):
        find_batches(config, root)


def test_a_window_with_another_name_is_refused(tmp_path):
    root = kitti360_tree(tmp_path)
    path = static_window(root, 0, 0, 3, np.ones((3, 3)))
    path = path.rename(path.with_name("part1.ply"))
    with pytest.raises(UserError, match=r"part1\.ply: not named <first frame>_<last frame>\.ply .*restore"):
        frames_of(root)


@pytest.mark.parametrize("damage", ["gone", "cut short", "no PLY"])
def test_a_damaged_window_is_named(tmp_path, damage):
    path = static_window(tmp_path, 0, 0, 3, np.ones((30, 3)))
    if damage == "gone":
        path.unlink()
    elif damage == "cut short":
        cut_short(path)
    else:
        path.write_bytes(b"\xff\xd8 a picture")
    with pytest.raises(UserError) as caught:
        Window(path, 0, 3).read_points()
    assert str(path) in str(caught.value)
    assert "copy the official file again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_ply_without_coordinates_is_named(tmp_path):
    path = static_window(tmp_path, 0, 0, 3, np.ones((30, 3)))
    path.write_bytes(path.read_bytes().replace(b"float z\n", b"float q\n"))
    with pytest.raises(UserError, match="have no property z, only x, y, q, red"):
        Window(path, 0, 3).read_points()
