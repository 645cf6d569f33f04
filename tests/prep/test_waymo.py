"""Waymo's v2 tables on segments that the builder writes from the release's documentation."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import waymo_builder as wb
from builders import cut_short
from rw3d_common import open_collection
from rw3d_common.cameras import project
from rw3d_common.errors import UserError
from rw3d_common.images import LabelFile, encode_train_ids, read_image, read_label
from rw3d_common.manifest import dataset_entry
from rw3d_prep.batching import make_batches
from rw3d_prep.check import check_layout, frame_counts
from rw3d_prep.config import load_config
from rw3d_prep.datasets import DatasetConfig, FrameList, read_frames, waymo_cells
from rw3d_prep.datasets.waymo_lidar import Laser, at_frame_time, vehicle_points
from rw3d_prep.frames import Frame
from rw3d_prep.pipeline import find_batches, reconstruct
from rw3d_prep.sample_views import sample_views
from rw3d_prep.sampling import SampleConfig
from rw3d_prep.verify import verify
from rw3d_train.data.dataset import SceneDataset
from waymo_builder import BUILDING, EGO, ROAD, SEGMENT, SKY, Segment, component_file, time_of, waymo_tree

ENTRY = dataset_entry("waymo")
FRONT_THREE = ("FRONT", "FRONT_LEFT", "FRONT_RIGHT")
MM = 2e-3  # metres: what float32 leaves of poses 12 km from the origin


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """One segment of four moments; read only."""
    return waymo_tree(tmp_path_factory.mktemp("waymo"))


@pytest.fixture
def own(tree, tmp_path) -> Path:
    """A copy of it that a test may break."""
    shutil.copytree(tree, tmp_path / "own")
    return tmp_path / "own"


def frames_of(root: Path, **options) -> list[Frame]:
    return read_frames(root, DatasetConfig(name="waymo", **options)).frames


def error_of(action) -> str:
    with pytest.raises(UserError) as raised:
        action()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def change(root: Path, component: str, edit) -> Path:
    """Rewrite a component's table."""
    path = component_file(root, component)
    wb.write_table(path, edit(pq.read_table(path)))
    return path


def put(table: pa.Table, column: str, row: int, value) -> pa.Table:
    """The table with one cell changed."""
    index = table.column_names.index(column)
    values = table.column(index).to_pylist()
    values[row] = value
    return table.set_column(index, column, pa.array(values, table.schema.field(index).type))


def without(table: pa.Table, **keys) -> pa.Table:
    """The table without the rows of these keys, such as camera_name=1."""
    masks = [pc.equal(table[f"key.{name}"], value) for name, value in keys.items()]
    keep = pc.invert(masks[0] if len(masks) == 1 else pc.and_(*masks))
    return table.filter(keep)


# Frames


def test_frames_are_the_front_cameras_of_every_moment(tree):
    found = read_frames(tree, DatasetConfig(name="waymo"))
    assert [(f.id, f.camera) for f in found.frames] == [(time_of(m), name) for m in range(4) for name in FRONT_THREE]
    assert {(f.split, f.sequence, f.label) for f in found.frames} == {("train", SEGMENT, None)}
    assert found.notes == []
    assert all(f.camera_to_world is not None and f.intrinsics is not None and f.lidar for f in found.frames)
    assert [f.id for f in found.frames if f.truth] == [time_of(1)] * 3


def test_any_cameras_sequences_and_splits(tmp_path):
    waymo_tree(tmp_path, Segment(lidar=False))
    waymo_tree(tmp_path, Segment(name="2", moments=(0,), lidar=False), split="validation")
    waymo_tree(tmp_path, Segment(name="3", moments=(0,), lidar=False), split="validation")
    found = frames_of(tmp_path, splits=("train", "val"), cameras=("SIDE_LEFT",), sequences=(SEGMENT, "3"))
    assert [(f.split, f.sequence) for f in found] == [("train", SEGMENT)] * 4 + [("val", "3")]
    assert {f.camera for f in found} == {"SIDE_LEFT"}


def test_camera_names_may_be_strings(tree, tmp_path):
    as_strings = frames_of(waymo_tree(tmp_path, Segment(names_as_strings=True)))
    for ours, theirs in zip(as_strings, frames_of(tree), strict=True):
        assert (ours.id, ours.camera, ours.image.member) == (theirs.id, theirs.camera, theirs.image.member)
        assert ours.image.read_bytes() == theirs.image.read_bytes()
        np.testing.assert_array_equal(ours.camera_to_world, theirs.camera_to_world)
        np.testing.assert_array_equal(ours.lidar.source.read_points(), theirs.lidar.source.read_points())


def test_cameras_have_opencv_axes_at_their_exposure(tree):
    for moment in range(4):
        for frame in frames_of(tree, cameras=tuple(wb.CAMERAS))[5 * moment : 5 * moment + 5]:
            waymo = wb.exposure_pose(moment, frame.camera) @ wb.camera_to_vehicle(frame.camera)
            right, down, forward, position = frame.camera_to_world[:3].T
            np.testing.assert_allclose(forward, waymo[:3, 0], atol=1e-12)
            np.testing.assert_allclose(right, -waymo[:3, 1], atol=1e-12)
            np.testing.assert_allclose(down, -waymo[:3, 2], atol=1e-12)
            np.testing.assert_allclose(position, waymo[:3, 3], atol=1e-9)
            np.testing.assert_array_equal(frame.intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]], wb.intrinsics(frame.camera))


def test_without_a_pose_per_image_the_frame_s_own_pose_is_taken(own):
    change(own, "camera_image", lambda table: table.drop_columns("[CameraImageComponent].pose.transform"))
    for frame in frames_of(own):
        seconds = (frame.id - wb.FIRST_TIME) / 1e6
        position = (wb.vehicle_to_world(seconds) @ wb.camera_to_vehicle(frame.camera))[:3, 3]
        np.testing.assert_allclose(frame.camera_to_world[:3, 3], position, atol=MM)


def test_semantic_ids_are_divided_out_of_panoptic_labels(tree):
    frames = [frame for frame in frames_of(tree, cameras=tuple(wb.CAMERAS)) if frame.truth]
    assert {frame.truth.divisor for frame in frames} == {500, 1000}
    for frame in frames:
        size = wb.image_size(frame.camera)
        raw = read_label(frame.truth, ENTRY.truth_encoding, size)
        np.testing.assert_array_equal(raw, wb.semantic(1, frame.camera))
        train_ids = LabelFile(frame.truth, ENTRY.truth_encoding, ENTRY.truth_map()).read(size)
        assert (train_ids[raw == EGO] == 255).all()
        assert (train_ids[raw == SKY] == 24).all()


def test_the_class_map_is_the_proto_s_without_four():
    classes = ENTRY.class_map()
    assert sorted(raw for item in classes.classes for raw in item.raw_ids) == [*range(2, 27)]
    assert [item.name for item in classes.classes if not item.in_3d] == ["sky"] == classes.names[-1:]
    assert len({item.color for item in classes.classes}) == 25
    assert ENTRY.excluded_ids == (EGO,)


# Cells


@pytest.fixture(scope="module")
def cells(tree) -> list[bytes]:
    return pq.read_table(component_file(tree, "camera_image"))[waymo_cells.IMAGE].to_pylist()


@settings(max_examples=30)
@given(order=st.lists(st.integers(0, 19), max_size=30))
def test_rows_in_any_order_are_the_table_s(tree, cells, order):
    path = component_file(tree, "camera_image")
    for row in order:
        assert waymo_cells.CameraImage(path, "", row).read_bytes() == cells[row]


def test_a_batch_decodes_every_row_group_once(tree, monkeypatch):
    opened = []
    start = waymo_cells._RowReader._open_group_of
    monkeypatch.setattr(
        waymo_cells._RowReader, "_open_group_of", lambda self, row: opened.append(row) or start(self, row)
    )
    waymo_cells._reader.cache_clear()
    for frame in frames_of(tree, cameras=tuple(wb.CAMERAS)):
        assert read_image(frame.image).shape[:2] == wb.image_size(frame.camera)
        frame.image.read_bytes()
    assert [row // 7 for row in opened] == [0, 1, 2], "though cameras lie in another order than frames have"


def test_listing_reads_no_image_label_or_range_image(own):
    for component, column in (
        ("camera_image", waymo_cells.IMAGE),
        ("camera_segmentation", waymo_cells.PANOPTIC),
        ("lidar", "[LiDARComponent].range_image_return1.values.list.element"),
        ("lidar_pose", "[LiDARPoseComponent].range_image_return1.values.list.element"),
    ):
        overwrite_column(component_file(own, component), column)
    found = read_frames(own, DatasetConfig(name="waymo"))
    assert (len(found.frames), found.notes) == (12, [])
    frame = next(frame for frame in found.frames if frame.truth)
    for read in (frame.image.read_bytes, frame.truth.read_bytes, frame.lidar.source.read_points):
        assert "cannot be read as Parquet" in error_of(read)


def overwrite_column(path: Path, column: str) -> None:
    """Zeros in place of a column's pages."""
    meta = pq.ParquetFile(path).metadata
    content = bytearray(path.read_bytes())
    for group in range(meta.num_row_groups):
        chunks = [meta.row_group(group).column(index) for index in range(meta.num_columns)]
        [chunk] = [chunk for chunk in chunks if chunk.path_in_schema == column]
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        content[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(content)


# LiDAR


def world_points(frame: Frame) -> np.ndarray:
    """Returns of a frame's scan in the world, through the camera."""
    to_world = frame.camera_to_world @ frame.lidar.lidar_to_camera
    return frame.lidar.source.read_points() @ to_world[:3, :3].T + to_world[:3, 3]


def test_returns_lie_on_the_world_s_planes(tree):
    for frame in frames_of(tree)[::2]:
        points = world_points(frame)
        off_ground, off_wall = np.abs(points[:, 2]), np.abs(points[:, 1] - wb.ORIGIN[1] - wb.WALL)
        assert len(points) > 8000
        assert np.minimum(off_ground, off_wall).max() < MM
        assert min((off_ground < MM).sum(), (off_wall < MM).sum()) > 1000


def test_without_undoing_the_turn_s_motion_returns_would_be_off(tree):
    """The plane test can tell: the same range images without the poses of their pixels are decimetres off."""
    scan = frames_of(tree)[0].lidar.source
    image = wb.range_image(0, "TOP")[..., 0]
    [top] = [laser for _, name, laser in scan.rows if name == "TOP"]
    points, returned = vehicle_points(image, top)
    moved = at_frame_time(points, wb.pixel_pose(0)[returned], scan.vehicle_to_world)
    assert np.abs(points - moved).max() > 0.3


def test_points_are_those_of_a_pixel_by_pixel_reference():
    rng = np.random.default_rng(3)
    distance = rng.uniform(-1, 60, (5, 9)).astype(np.float32)
    to_vehicle, frame_pose = random_pose(rng), random_pose(rng)
    poses = np.concatenate([rng.uniform(-1.4, 1.4, (5, 9, 3)), rng.uniform(-1e4, 1e4, (5, 9, 3))], axis=2)
    for beams in (None, np.sort(rng.uniform(-0.3, 0.1, 5))):
        laser = Laser(to_vehicle, -0.3, 0.1, beams)
        points, returned = vehicle_points(distance, laser)
        moved = at_frame_time(points, poses[returned], frame_pose)
        slow = [
            slow_point(distance, row, column, laser, poses[row, column], frame_pose)
            for row, column in np.ndindex(distance.shape)
            if distance[row, column] > 0
        ]
        np.testing.assert_allclose(np.stack([points, moved], axis=1), slow, atol=1e-9)


def random_pose(rng: np.random.Generator) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = wb.rotation(*rng.uniform(-2, 2, 3)), rng.uniform(-5, 5, 3)
    return pose


def slow_point(distance, row, column, laser, pose, frame_pose) -> tuple[np.ndarray, np.ndarray]:
    """One pixel: in the vehicle's frame at its own time, and at the frame's."""
    height, width = distance.shape
    up = height - 1 - row
    inclination = laser.lowest + (up + 0.5) / height * (laser.highest - laser.lowest)
    if laser.beams is not None:
        inclination = laser.beams[up]
    azimuth = ((width - column - 0.5) / width * 2 - 1) * np.pi - np.arctan2(
        laser.to_vehicle[1, 0], laser.to_vehicle[0, 0]
    )
    flat = np.cos(inclination)
    point = float(distance[row, column]) * np.array(
        [flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(inclination)]
    )
    own = laser.to_vehicle @ [*point, 1]
    pixel = np.eye(4)
    pixel[:3, :3], pixel[:3, 3] = wb.rotation(*pose[:3]), pose[3:]
    return own[:3], (np.linalg.inv(frame_pose) @ pixel @ own)[:3]


def test_a_return_s_pixel_shows_what_the_return_lies_on(tree):
    """The whole chain: range image → vehicle → world → camera → pixel → panoptic label."""
    right = seen = 0
    for frame in frames_of(tree, cameras=tuple(wb.CAMERAS)):
        if frame.truth is None:
            continue
        points = frame.lidar.source.read_points()
        u, v, z = project(points, frame.intrinsics, np.linalg.inv(frame.lidar.lidar_to_camera))
        height, width = wb.image_size(frame.camera)
        inside = (z > 0.5) & (u > 0) & (v > 0) & (u < width - 1) & (v < height - 1)
        raw = read_label(frame.truth, "gray8", (height, width))
        labels = raw[np.rint(v[inside]).astype(int), np.rint(u[inside]).astype(int)]
        expected = np.where(np.abs(world_points(frame)[inside, 2]) < MM, ROAD, BUILDING)
        seen += np.count_nonzero(labels != EGO)
        right += np.count_nonzero(labels == expected)
    assert seen > 3000
    assert right / seen > 0.98, "only pixels that a boundary crosses may show the other plane"


def test_an_empty_range_image_has_no_points(own):
    def clear(table: pa.Table) -> pa.Table:
        for row in range(table.num_rows):
            table = put(table, "[LiDARComponent].range_image_return1.values", row, None)
        return table

    change(own, "lidar", clear)
    assert frames_of(own)[0].lidar.source.read_points().shape == (0, 3)


# What is missing


def missing(root: Path) -> tuple[FrameList, str]:
    found = read_frames(root, DatasetConfig(name="waymo"))
    [note] = found.notes
    return found, note


def test_a_missing_pose_row_leaves_the_images(own):
    path = change(own, "vehicle_pose", lambda table: without(table, frame_timestamp_micros=time_of(2)))
    found, note = missing(own)
    assert note == (
        f"{path}: lacks usable rows; 3 of 12 frames of split 'train' have no LiDAR (first: {time_of(2)}/FRONT)"
    )
    assert [frame.id for frame in found.frames if frame.lidar is None] == [time_of(2)] * 3
    assert all(frame.camera_to_world is not None for frame in found.frames)


def test_a_missing_pose_table_is_counted_where_images_carry_none(own):
    change(own, "camera_image", lambda table: table.drop_columns("[CameraImageComponent].pose.transform"))
    shutil.rmtree(own / "training" / "lidar")
    path = component_file(own, "vehicle_pose")
    path.unlink()
    found, note = missing(own)
    assert note == (
        f"{path}: is missing; 12 of 12 frames of split 'train' have no vehicle pose (first: {time_of(0)}/FRONT)"
    )
    assert {frame.camera_to_world is None for frame in found.frames} == {True}


def test_a_pose_that_is_not_rigid_is_none(own):
    bent = (2 * np.eye(4)).ravel().tolist()
    change(own, "camera_image", lambda table: put(table, "[CameraImageComponent].pose.transform", 0, bent))
    found, note = missing(own)
    assert "camera_image" in note
    assert f"1 of 12 frames of split 'train' have no vehicle pose (first: {time_of(0)}/FRONT)" in note
    assert [frame.lidar is None for frame in found.frames[:2]] == [True, False]


def test_a_camera_without_calibration_has_no_pose(own):
    path = change(own, "camera_calibration", lambda table: without(table, camera_name=2))
    found, note = missing(own)
    assert note.startswith(f"{path}: lacks usable rows; 4 of 12 frames")
    assert {frame.camera for frame in found.frames if frame.intrinsics is None} == {"FRONT_LEFT"}
    assert {frame.camera for frame in found.frames if frame.camera_to_world is None} == {"FRONT_LEFT"}


@pytest.mark.parametrize("component", ["lidar_calibration", "lidar_pose", "vehicle_pose"])
def test_lidar_needs_its_three_companions(own, component):
    path = component_file(own, component)
    path.unlink()
    found, note = missing(own)
    assert note.startswith(f"{path}: is missing; 12 of 12 frames of split 'train' have no LiDAR")
    assert not any(frame.lidar for frame in found.frames)


def test_lidar_rows_may_be_missing(own):
    path = change(own, "lidar", lambda table: without(table, frame_timestamp_micros=time_of(3)))
    found, note = missing(own)
    assert note.startswith(f"{path}: lacks usable rows; 3 of 12 frames")
    assert [frame.lidar is None for frame in found.frames] == [False] * 9 + [True] * 3


def test_notes_name_the_first_segment_and_count_the_others(tmp_path):
    for name in ("a", "b", "c"):
        waymo_tree(tmp_path, Segment(name=name, moments=(0,), lidar=False))
        component_file(tmp_path, "camera_calibration", segment=name).unlink()
    _, note = missing(tmp_path)
    assert note.startswith(
        f"{component_file(tmp_path, 'camera_calibration', segment='a')} and 2 more: is missing; 9 of 9"
    )


def test_a_split_that_is_not_there_is_a_note_and_no_data_an_error(tree, tmp_path):
    found = read_frames(tree, DatasetConfig(name="waymo", splits=("train", "val")))
    assert found.notes == [f"{tree / 'validation' / 'camera_image'}: holds no segment of split 'val'"]
    (tmp_path / "training").mkdir()
    said = error_of(lambda: frames_of(tmp_path))
    assert said.startswith(f"{tmp_path / 'training' / 'camera_image'}: holds no segment of split 'train'; download")


# Bad input


def test_unknown_cameras_and_splits_are_named(tree):
    assert "unknown camera TOP; Waymo's are FRONT, FRONT_LEFT" in error_of(lambda: frames_of(tree, cameras=("TOP",)))
    assert "unknown split 'training'" in error_of(lambda: frames_of(tree, splits=("training",)))


def prefixed(component: str, field: str) -> str:
    return f"[{component}].{field}"


DIVISOR = prefixed("CameraSegmentationLabelComponent", "panoptic_label_divisor")
EXTRINSIC = prefixed("CameraCalibrationComponent", "extrinsic.transform")
F_U = prefixed("CameraCalibrationComponent", "intrinsic.f_u")


@pytest.mark.parametrize(
    ("component", "edit", "words"),
    [
        ("camera_image", lambda t: put(t, "key.camera_name", 3, 9), "unknown key.camera_name 9; Waymo's are 1 FRONT"),
        ("lidar", lambda t: put(t, "key.laser_name", 3, 0), "unknown key.laser_name 0; Waymo's are 1 TOP"),
        ("camera_image", lambda t: put(t, "key.frame_timestamp_micros", 3, None), "a row without key.frame_timestamp"),
        ("camera_image", lambda t: pa.concat_tables([t, t.slice(0, 1)]), f"two rows of {time_of(0)}/FRONT"),
        ("camera_calibration", lambda t: put(t, "key.segment_context_name", 0, "7"), "holds rows of segment 7; name"),
        ("camera_calibration", lambda t: t.drop_columns(F_U), f"has no column {F_U}; get this file"),
        ("camera_calibration", lambda t: put(t, F_U, 0, float("nan")), "intrinsics of SIDE_RIGHT are f_u, f_v, c_u, c_v"),
        ("camera_calibration", lambda t: put(t, F_U, 0, None), "(None, "),
        ("camera_calibration", lambda t: put(t, EXTRINSIC, 0, None), f"a row of {EXTRINSIC} does not hold 16 numbers"),
        ("camera_segmentation", lambda t: put(t, DIVISOR, 0, 0), "panoptic_label_divisor of"),
        ("camera_segmentation", lambda t: put(t, DIVISOR, 0, None), "is None; copy the file again, or remove it"),
        ("camera_segmentation", lambda t: t.drop_columns(DIVISOR), f"has no column {DIVISOR}"),
    ],
)  # fmt: skip
def test_tables_that_do_not_fit_are_refused_when_listed(own, component, edit, words):
    path = change(own, component, edit)
    said = error_of(lambda: frames_of(own))
    assert said.startswith(f"{path}: ")
    assert words in said


@pytest.mark.parametrize("component", ["camera_image", "camera_calibration", "vehicle_pose", "lidar"])
def test_truncated_files_are_named(own, component):
    path = cut_short(component_file(own, component))
    said = error_of(lambda: frames_of(own))
    assert said.startswith(f"{path}: cannot be read as Parquet (")
    assert said.endswith("copy the file again")


def png(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty; copy the file again"),
        (b"not a picture", "cannot be decoded"),
        (png(np.full((64, 96), 20_000, np.uint16))[:-40], "cannot be decoded"),
        (png(np.full((64, 96), 20, np.uint8)), "mode L where 16 bits belong"),
        (png(np.full((64, 96), 29_000, np.uint16)), "unknown label id 29"),
        (png(np.full((32, 96), 20_000, np.uint16)), "label of 96×32 for an image of 96×64"),
    ],
)
def test_panoptic_labels_that_do_not_fit_are_named(own, content, words):
    def edit(table: pa.Table) -> pa.Table:
        row = table["key.camera_name"].to_pylist().index(1)
        return put(put(table, waymo_cells.PANOPTIC, row, content), DIVISOR, row, 1000)

    path = change(own, "camera_segmentation", edit)
    frame = next(frame for frame in frames_of(own) if frame.truth)
    label = LabelFile(frame.truth, ENTRY.truth_encoding, ENTRY.truth_map())
    said = error_of(lambda: label.read((64, 96)))
    assert said.startswith(f"{path}#{time_of(1)}/FRONT: ")
    assert words in said


def test_a_class_id_beyond_a_byte_is_not_wrapped(own):
    change(own, "camera_segmentation", lambda table: put(table, DIVISOR, 0, 3))
    [frame] = [f for f in frames_of(own, cameras=("SIDE_RIGHT",)) if f.truth]
    assert "with divisor 3; copy the file again" in error_of(frame.truth.read_bytes)


def test_an_image_that_is_empty_is_named(own):
    path = change(own, "camera_image", lambda table: put(table, waymo_cells.IMAGE, 0, None))
    said = error_of(lambda: read_image(frames_of(own)[0].image))
    assert said == f"{path}#{time_of(0)}/FRONT: {waymo_cells.IMAGE} is empty; copy the file again"


def test_a_file_that_loses_rows_during_a_run_is_named(own):
    frame = frames_of(own)[-1]
    path = change(own, "camera_image", lambda table: table.slice(0, 5))
    assert error_of(frame.image.read_bytes).startswith(f"{path}: lost rows since it was listed")


RETURN = prefixed("LiDARComponent", "range_image_return1")
BEAMS = prefixed("LiDARCalibrationComponent", "beam_inclination.values")
POSES = prefixed("LiDARPoseComponent", "range_image_return1.shape")


@pytest.mark.parametrize(
    ("component", "edit", "words"),
    [
        ("lidar", lambda t: put(t, f"{RETURN}.values", 0, [1.0] * 8), "8 values are no range image of shape [24, 360, 4]"),
        ("lidar", lambda t: put(t, f"{RETURN}.shape", 0, None), "are no range image of shape None"),
        ("lidar", lambda t: t.drop_columns(f"{RETURN}.shape"), f"has no column {RETURN}.shape"),
        ("lidar_calibration", lambda t: put(t, BEAMS, 4, [0.1]), "24 beams where lidar_calibration has 1"),
        ("lidar_pose", lambda t: put(t, POSES, 0, [12, 720, 6]), "does not fit its range image; copy it again"),
    ],
)  # fmt: skip
def test_range_images_that_do_not_fit_are_named(own, component, edit, words):
    change(own, component, edit)
    scan = frames_of(own)[0].lidar.source
    said = error_of(scan.read_points)
    assert words in said
    assert str(scan.pose_path if component == "lidar_pose" else scan.path) in said


def test_check_counts_components_and_what_frames_have(own):
    (own / "training" / "lidar_box").mkdir()
    (own / "training" / "lidar_box" / f"{SEGMENT}.parquet").touch()
    layout = check_layout(own, ENTRY)
    assert (layout.missing, layout.unexpected) == ([], [])
    assert [count for _, count in layout.counts] == [1] * 8
    counts, notes = frame_counts(own, "waymo", ("train", "val"))
    assert (counts["train"]["frames"], counts["train"]["LiDAR"], counts["train"]["truth"]) == (12, 12, 3)
    assert len(notes) == 1


# Strides, batches, and the way to training


def made_labels(folder: Path, frames: list[Frame], width: int = 96) -> Path:
    """A folder as `make-labels` writes it: two rows of the truth of each frame."""
    classes = ENTRY.class_map()
    for frame in frames:
        raw = read_label(frame.truth, "gray8", wb.image_size(frame.camera, width))
        sparse = np.full(raw.shape, 255, np.uint8)
        sparse[20:-10:20] = classes.to_train_ids(raw, "")[20:-10:20]
        path = folder / frame.split / frame.sequence / frame.camera / f"{frame.id:010d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_train_ids(sparse, classes))
    about = {"dataset": "waymo", "kind": "points", "class_map_hash": classes.hash}
    (folder / "labels.json").write_text(json.dumps(about))
    return folder


def moments_of(frames: list[Frame]) -> list[int]:
    return sorted({round((frame.id - wb.FIRST_TIME) / 1e5) for frame in frames})


def test_every_fourth_moment_and_every_labelled_one_whole(tmp_path):
    moments = tuple(range(12))
    root = waymo_tree(tmp_path / "data", Segment(moments=moments, labelled=(1, 6), lidar=False, width=32))
    frames = frames_of(root, stride=4)
    assert moments_of(frames) == [0, 1, 4, 6, 8]
    assert len(frames) == 15, "whole moments"
    one = [frame for frame in frames if frame.truth and frame.camera == "FRONT"][1:]
    labels = str(made_labels(tmp_path / "labels", one, width=32))
    frames = frames_of(root, stride=4, labels=labels)
    assert moments_of(frames) == [0, 4, 6, 8], "made labels decide, not the truth they were made from"
    assert len(frames) == 12
    assert [frame.label is not None for frame in frames if frame.id == time_of(6)] == [True, False, False]


def test_the_recipe_splits_at_real_gaps_only_and_never_a_moment(tmp_path):
    """Stride 4 with labelled moments between, jitter of microseconds, and a pause of eight seconds."""
    moments = (*range(0, 90), *range(170, 198))
    segment = Segment(moments=moments, labelled=(5, 6, 7, 21, 50, 180), lidar=False, width=8)
    root = waymo_tree(tmp_path, segment)
    config = load_config(
        "waymo", None, None, None, ["dataset.cameras=[FRONT,FRONT_LEFT,FRONT_RIGHT,SIDE_LEFT,SIDE_RIGHT]"]
    )
    batches, _ = find_batches(config, root)
    assert [moments_of(batch.frames)[::100] for batch in batches] == [[0], [172]]
    assert moments_of(batches[0].frames) == sorted({*range(0, 90, 4), 5, 6, 7, 21, 50})
    small = make_batches(
        [frame for batch in batches for frame in batch.frames], config.batching.model_copy(update={"size": 12})
    )
    for batch in small:
        cameras = [frame.camera for frame in batch.frames]
        assert cameras == sorted(wb.CAMERAS) * (len(cameras) // 5)
        assert len(cameras) <= 10, "two moments of five cameras are what fits into 12"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """Two segments, made labels for their labelled images, scenes and samples; the data and the stores."""
    folder = tmp_path_factory.mktemp("waymo_scenes")
    root = waymo_tree(folder / "data", Segment(labelled=(1, 2)))
    waymo_tree(root, Segment(name="second", moments=(0, 1, 2), labelled=(2,)))
    labels = made_labels(folder / "labels", [frame for frame in frames_of(root) if frame.truth])
    config = load_config("waymo", None, "sensor", None, [f"dataset.labels={labels}", "dataset.stride=2"])
    assert reconstruct(config, root, folder / "stores", workers=2).failed == {}
    assert sample_views(folder / "stores", SampleConfig(points=600), workers=1).failed == {}
    assert verify(folder / "stores") == []
    return root, folder / "stores"


def test_scenes_hold_what_the_tables_do(made):
    root, stores = made
    frames = {(f.sequence, f.id, f.camera): f for f in frames_of(root)}
    assert [len(scene) for scene in open_collection(stores)] == [9, 6]
    for scene in open_collection(stores):
        for index in range(len(scene)):
            view = scene.view(index)
            frame = frames[scene.attrs["sequence"], view.frame_id, view.camera]
            rows, columns = view.rows_columns.T
            np.testing.assert_array_equal(view.color, read_image(frame.image)[rows, columns])
            np.testing.assert_allclose(view.camera_to_world[:3, 3] + scene.world_offset, frame.camera_to_world[:3, 3])
            u, v, _ = project(view.position, view.intrinsics, view.camera_to_world)
            assert max(np.abs(u - columns).max(), np.abs(v - rows).max()) < 0.01
            if frame.truth:
                raw = read_label(frame.truth, "gray8", wb.image_size(frame.camera))
                assert not (raw[rows, columns] == EGO).any()
                np.testing.assert_array_equal(view.truth, ENTRY.truth_map().train_id_of[raw[rows, columns]])


def test_training_reads_them_without_the_tables(made, tmp_path):
    root, stores = made
    truths = {
        (f.sequence, f.id, f.camera): read_label(f.truth, "gray8", wb.image_size(f.camera))
        for f in frames_of(root)
        if f.truth
    }
    images = {(f.sequence, f.id, f.camera): read_image(f.image) for f in frames_of(root)}
    (root / "training").rename(tmp_path / "away")
    try:
        dataset = SceneDataset(stores)
        assert len(dataset) == len(truths) == 9
        for item in (dataset[i] for i in range(len(dataset))):
            _, sequence, time, camera = item.key.split("#")[0].split("/")
            key = (sequence, int(time), camera)
            np.testing.assert_array_equal(item.image, images[key])
            np.testing.assert_array_equal(item.truth, ENTRY.truth_map().train_id_of[truths[key]])
            labelled = item.label != 255
            assert 0 < labelled.mean() < 0.1
            np.testing.assert_array_equal(item.label[labelled], item.truth[labelled])
            row, column = item.pixel.astype(int).T
            np.testing.assert_array_equal(item.image[row, column], item.color[: item.n_own])
    finally:
        (tmp_path / "away").rename(root / "training")
