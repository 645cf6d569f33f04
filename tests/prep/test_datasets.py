"""Adapters on trees that the builders write from the official layouts."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from builders import camvid_tree, kitti360_tree, kitti_files, kitti_sequence, rgbd_tree, scannet_tree
from rw3d_common.cameras import project
from rw3d_common.errors import UserError
from rw3d_common.images import image_size, read_image, read_label
from rw3d_common.manifest import dataset_entry
from rw3d_prep.check import check_layout, frame_counts
from rw3d_prep.datasets import DatasetConfig, read_frames
from rw3d_prep.datasets.folder import folder_frames
from rw3d_prep.datasets.kitti360 import read_calibration
from rw3d_prep.reconstruct.sensor import SensorBackend, SensorConfig, read_scan

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def test_kitti360_frames_have_everything(tmp_path):
    root = kitti360_tree(tmp_path, sequences=(0, 3), val_sequences=(5,))
    found = read_frames(root, DatasetConfig(name="kitti360", splits=("train", "val")))
    assert [(f.split, f.sequence, f.id) for f in found.frames] == [
        (split, kitti_sequence(number), i)
        for split, number in (("train", 0), ("train", 3), ("val", 5))
        for i in range(4)
    ]
    assert found.notes == []
    for frame in found.frames:
        parts = (frame.camera_to_world, frame.intrinsics, frame.label, frame.truth, frame.right, frame.lidar)
        assert all(part is not None for part in parts)


def test_kitti360_second_camera_lies_one_baseline_to_the_right(tmp_path):
    root = kitti360_tree(tmp_path)
    both = read_frames(root, DatasetConfig(name="kitti360", cameras=("image_00", "image_01"))).frames
    left, right = both[0], both[1]
    assert (left.camera, right.camera, left.id) == ("image_00", "image_01", right.id)
    relative = np.linalg.inv(left.camera_to_world) @ right.camera_to_world
    np.testing.assert_allclose(relative[:3, 3], [left.right.baseline, 0, 0], atol=2e-3)


def test_kitti360_scan_lies_on_the_image(tmp_path):
    root = kitti360_tree(tmp_path)
    frame = read_frames(root, DatasetConfig(name="kitti360")).frames[0]
    u, v, z = project(read_scan(frame.lidar.source), frame.intrinsics, np.linalg.inv(frame.lidar.lidar_to_camera))
    height, width = image_size(frame.image)
    inside = (z > 0) & (u > -1) & (v > -1) & (u < width) & (v < height)
    assert inside.sum() > 500, "the builder's scan covers the image; a wrong chain would miss it"
    (geometry,) = SensorBackend(SensorConfig()).reconstruct([frame], frame.camera_to_world[:3, 3])
    depths = (geometry.points @ geometry.camera_to_world[:3, 2])[geometry.valid]
    assert np.mean(np.abs(depths - np.median(z[inside])) < 0.8 * np.median(z[inside])) > 0.95


@pytest.mark.skipif(not SHARED.is_dir(), reason="KITTI-360's published calibration values are not beside this checkout")
def test_kitti360_published_calibration_is_self_consistent():
    calibration = read_calibration(SHARED / "kitti360_calib")
    assert abs(calibration.baseline - 0.5942) < 1e-4
    relative = np.linalg.inv(calibration.camera_to_imu["image_00"]) @ calibration.camera_to_imu["image_01"]
    np.testing.assert_allclose(relative[:3, 3], [calibration.baseline, 0, 0], atol=1e-3)
    assert calibration.intrinsics["image_00"][0, 0] == 552.554261


def test_kitti360_missing_images_and_sequences_are_counted(tmp_path):
    root = kitti360_tree(tmp_path, sequences=(0, 2))
    kitti_files(root, 0, 1)["left"].unlink()
    shutil.rmtree(root / "data_2d_raw" / kitti_sequence(2))
    found = read_frames(root, DatasetConfig(name="kitti360"))
    assert [frame.id for frame in found.frames] == [0, 2, 3]
    assert any("1 of 4 listed images" in note for note in found.notes)
    assert any(kitti_sequence(2) in note and "4 frames" in note for note in found.notes)


def test_rgbd_pose_depth_and_intrinsics_belong_together(tmp_path):
    frames = read_frames(rgbd_tree(tmp_path), DatasetConfig(name="rgbd")).frames
    assert [frame.id for frame in frames] == [0, 1, 2, 3]
    assert all(frame.depth.path.name.split(".")[0] == frame.image.name.split(".")[0] for frame in frames)


def test_scannet_lost_frames_have_no_pose_and_numbers_sort_naturally(tmp_path):
    found = read_frames(scannet_tree(tmp_path, frames=range(12), lost=(3,)), DatasetConfig(name="rgbd"))
    assert [frame.id for frame in found.frames] == list(range(12))
    assert [frame.id for frame in found.frames if frame.camera_to_world is None] == [3]
    assert any("1 of 12 frames have no usable pose" in note for note in found.notes)


def test_scannet_depth_of_another_size_maps_onto_the_colour_image(tmp_path):
    frame = read_frames(scannet_tree(tmp_path), DatasetConfig(name="rgbd")).frames[0]
    (geometry,) = SensorBackend(SensorConfig()).reconstruct([frame], np.zeros(3))
    assert geometry.pixel_map.grid_size != geometry.pixel_map.image_size
    rows, columns = np.nonzero(geometry.valid)
    u, v, _ = project(geometry.points[rows, columns], geometry.intrinsics, geometry.camera_to_world)
    exact_u, exact_v = geometry.pixel_map.source_coordinates()
    np.testing.assert_allclose(u, exact_u[columns], atol=0.01)
    np.testing.assert_allclose(v, exact_v[rows], atol=0.01)


def image_file(path: Path, size: tuple[int, int] = (20, 30), orientation: int = 1, value: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.full((*size, 3), value, np.uint8))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    return path


def test_folder_sorts_naturally_and_finds_labels_by_name(tmp_path):
    for number in (2, 10, 1):
        image_file(tmp_path / "walk" / "images" / f"frame{number}.jpg")
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "walk" / "frame10.png")
    (tmp_path / "walk" / "labels").mkdir()
    (tmp_path / "walk" / "frame10.png").rename(tmp_path / "walk" / "labels" / "frame10.png")
    frames = read_frames(tmp_path, DatasetConfig(name="folder")).frames
    assert [(frame.sequence, frame.id, frame.label is not None) for frame in frames] == [
        ("walk", 1, False), ("walk", 2, False), ("walk", 10, True),
    ]  # fmt: skip


def test_folder_takes_images_that_lie_in_the_root(tmp_path):
    image_file(tmp_path / "a.png")
    image_file(tmp_path / "b.png")
    assert [frame.id for frame in read_frames(tmp_path, DatasetConfig(name="folder")).frames] == [0, 1]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_image_size_is_that_of_the_picture_as_displayed(tmp_path, orientation, suffix):
    path = image_file(tmp_path / f"x{suffix}", orientation=orientation)
    assert image_size(path) == read_image(path).shape[:2] == ((30, 20) if orientation >= 5 else (20, 30))


def test_palette_labels_are_read_where_they_are_declared(tmp_path):
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    image.putpalette(list(range(256)) * 3)
    image.save(tmp_path / "p.png")
    assert read_label(tmp_path / "p.png", "palette8", (2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(UserError, match="mode P"):
        read_label(tmp_path / "p.png", "gray8", (2, 3))


def test_video_becomes_frames_once(tmp_path):
    import cv2

    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 24))
    for value in range(0, 250, 25):
        writer.write(np.full((24, 32, 3), value, np.uint8))
    writer.release()
    frames = read_frames(path, DatasetConfig(name="folder")).frames
    assert [frame.id for frame in frames] == list(range(10))
    brightness = [read_image(frame.image).mean() for frame in frames]
    np.testing.assert_allclose(brightness, range(0, 250, 25), atol=4)
    assert (tmp_path / "clip_frames" / "timestamps.json").is_file()
    assert len(read_frames(path, DatasetConfig(name="folder")).frames) == 10


@pytest.mark.skipif(not (SHARED / "camvid").is_dir(), reason="CamVid is not beside this checkout")
def test_camvid_splits_labels_and_classes():
    found = read_frames(SHARED / "camvid", DatasetConfig(name="camvid", splits=("train", "val"), labels="label"))
    assert [sum(f.split == split for f in found.frames) for split in ("train", "val")] == [350, 101]
    assert found.notes[0].startswith("17 of 367 frames of split train are left out")
    street = {
        split: [f.id for f in found.frames if (f.split, f.sequence) == (split, "0016E5")] for split in ("train", "val")
    }
    assert max(street["train"]) < min(street["val"]) - 60, "two seconds and more before split val, and never after it"
    assert all(frame.truth == frame.label for frame in found.frames), "dense human labels"
    entry = dataset_entry("camvid")
    for frame in found.frames[::40]:
        raw = read_label(frame.label, entry.label_encoding, image_size(frame.image))
        entry.class_map().to_train_ids(raw, str(frame.label))


def test_frames_that_the_manifest_keeps_out_of_a_split(tmp_path):
    root, entry = camvid_tree(tmp_path), dataset_entry("camvid")
    splits = {**entry.splits, "train": entry.splits["train"].model_copy(update={"without": ("0001TP/0001TP_00001",)})}
    config = DatasetConfig(name="camvid", splits=("train", "val"), labels="label")
    found = folder_frames(root, config, entry.model_copy(update={"splits": splits}))
    assert [(f.split, f.id) for f in found.frames] == [("train", 0), ("train", 2), ("val", 0), ("val", 1), ("val", 2)]
    (note,) = found.notes
    assert note.startswith("1 of 3 frames of split train are left out, 0001TP/0001TP_00001")


def test_check_counts_what_is_present_missing_and_unexpected(tmp_path):
    root = kitti360_tree(tmp_path)
    (root / "notes.txt").write_text("mine")
    (root / "calibration" / "perspective.txt").unlink()
    layout = check_layout(root, dataset_entry("kitti360"))
    assert layout.unexpected == ["notes.txt"]
    assert [part.glob for part in layout.missing] == ["calibration/perspective.txt"]
    assert {part.what: count for part, count in layout.counts}["left images, rectified, 8-bit RGB"] == 4


def test_check_counts_frames_and_what_they_have(tmp_path):
    counts, notes = frame_counts(kitti360_tree(tmp_path, val_sequences=(4,)), "kitti360", ("train", "val"))
    assert counts["train"]["frames"] == counts["train"]["pose"] == counts["val"]["LiDAR"] == 4
    assert notes == []
