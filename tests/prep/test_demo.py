"""The built-in street drive: its layout, its truth, and that it is the same bytes however it is made."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from rw3d_common.cameras import is_rigid, project, unproject_depth
from rw3d_common.errors import UserError
from rw3d_prep.demo.generate import DemoConfig, frame_ids, generate, sequence_name

CONFIG = DemoConfig(
    seed=3, train_sequences=1, val_sequences=1, train_frames=4, val_frames=2, width=352, height=96, label_every=2
)
ROAD, SIDEWALK, BUILDING, WALL, VEGETATION, TERRAIN, SKY = 7, 8, 11, 12, 21, 22, 23
F64 = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "kitti360"
    calls: list[tuple[int, int]] = []
    generate(root, CONFIG, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (6, 6)
    return root


def checksums(root: Path) -> dict[str, str]:
    files = [p for p in sorted(root.rglob("*")) if p.is_file()]
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def picture(root: Path, sequence: int, frame: int, camera: int = 0) -> npt.NDArray[np.uint8]:
    path = root / "data_2d_raw" / sequence_name(sequence) / f"image_{camera:02}" / "data_rect" / f"{frame:010}.png"
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None and image.dtype == np.uint8
    return np.asarray(image, np.uint8)


def labels(root: Path, sequence: int, frame: int, kind: str = "semantic") -> npt.NDArray[np.uint8]:
    folder = root / "data_2d_semantics" / "train" / sequence_name(sequence) / "image_00" / kind
    image = cv2.imread(str(folder / f"{frame:010}.png"), cv2.IMREAD_UNCHANGED)
    assert image is not None and image.dtype == np.uint8
    return np.asarray(image, np.uint8)


def depth(root: Path, sequence: int, frame: int) -> npt.NDArray[np.float32]:
    path = root / "demo_truth" / sequence_name(sequence) / "depth" / f"{frame:010}.npy"
    return np.asarray(np.load(path, allow_pickle=False), np.float32)


def scan(root: Path, sequence: int, frame: int) -> npt.NDArray[np.float32]:
    path = root / "data_3d_raw" / sequence_name(sequence) / "velodyne_points" / "data" / f"{frame:010}.bin"
    return np.fromfile(path, np.float32).reshape(-1, 4)


def named_rows(path: Path) -> dict[str, F64]:
    lines = (line.split(":") for line in path.read_text().splitlines())
    return {name: np.array(values.split(), np.float64) for name, values in lines}


def square(values: F64) -> F64:
    return np.vstack([values.reshape(3, 4), [0, 0, 0, 1]])


def poses(root: Path, sequence: int, name: str, rows: int) -> dict[int, F64]:
    table = np.loadtxt(root / "data_poses" / sequence_name(sequence) / name, ndmin=2)
    assert table.shape[1] == 1 + 4 * rows
    return {int(row[0]): np.vstack([row[1:].reshape(rows, 4), [0, 0, 0, 1]])[:4] for row in table}


@pytest.fixture(scope="module")
def calibration(tree: Path) -> dict[str, F64]:
    return (
        named_rows(tree / "calibration" / "perspective.txt")
        | named_rows(tree / "calibration" / "calib_cam_to_pose.txt")
        | {"velo": np.loadtxt(tree / "calibration" / "calib_cam_to_velo.txt")}
    )


def every_frame() -> list[tuple[int, int]]:
    return [(sequence, frame) for sequence in (0, 1) for frame in frame_ids(CONFIG, sequence)]


def test_layout_is_kitti360s(tree: Path) -> None:
    found = checksums(tree)
    expected = {"demo.json", "calibration/perspective.txt", "calibration/calib_cam_to_pose.txt"}
    expected |= {"calibration/calib_cam_to_velo.txt"}
    listed = []
    for split in ("train", "val"):
        name = f"data_2d_semantics/train/2013_05_28_drive_{split}_frames.txt"
        listed += [pair.split() for pair in (tree / name).read_text().splitlines()]
        expected.add(name)
    assert len(listed) == 6
    for image, semantic in listed:
        assert image.split("/")[2] == "image_00" and semantic.split("/")[4] == "semantic"
        expected |= {image, image.replace("image_00", "image_01"), semantic}
    for sequence, frame in every_frame():
        name = sequence_name(sequence)
        expected |= {f"data_poses/{name}/poses.txt", f"data_poses/{name}/cam0_to_world.txt"}
        expected |= {f"data_3d_raw/{name}/velodyne_points/data/{frame:010}.bin"}
        expected |= {f"demo_truth/{name}/depth/{frame:010}.npy"}
    for frame in frame_ids(CONFIG, 0)[::2]:
        expected.add(f"data_2d_semantics/train/{sequence_name(0)}/image_00/scribble/{frame:010}.png")
    assert set(found) == expected


def test_shapes_and_a_gap_in_the_frame_numbers(tree: Path) -> None:
    assert np.diff(frame_ids(CONFIG, 0)).tolist() == [1, 5, 1]
    for sequence, frame in every_frame():
        assert picture(tree, sequence, frame).shape == picture(tree, sequence, frame, 1).shape == (96, 352, 3)
        assert labels(tree, sequence, frame).shape == depth(tree, sequence, frame).shape == (96, 352)


def test_same_bytes_from_two_workers(tree: Path, tmp_path: Path) -> None:
    generate(tmp_path / "other", CONFIG, workers=2)
    assert checksums(tmp_path / "other") == checksums(tree)


def test_interrupted_tree_is_continued(tree: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(tree, root)
    (root / "demo.json").rename(root / "demo.unfinished.json")
    raw = root / "data_2d_raw" / sequence_name(1) / "image_00" / "data_rect"
    lost, kept = sorted(raw.iterdir())
    lost.unlink()
    (raw / f"{lost.name}.tmp-1").write_bytes(b"half")
    before = kept.stat().st_mtime_ns
    generate(root, CONFIG)
    assert checksums(root) == checksums(tree)
    assert kept.stat().st_mtime_ns == before


def test_finished_tree_is_left_alone_and_others_are_refused(tree: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}
    generate(tree, CONFIG)
    assert {path: path.stat().st_mtime_ns for path in tree.rglob("*")} == before
    with pytest.raises(UserError, match=r"demo\.json.*choose another folder"):
        generate(tree, DemoConfig(seed=4))
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match="empty or a new folder"):
        generate(tmp_path, CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["photo.jpg"]


def test_poses_agree_through_the_calibration_chain(tree: Path, calibration: dict[str, F64]) -> None:
    unrectify = np.eye(4)
    unrectify[:3, :3] = calibration["R_rect_00"].reshape(3, 3).T
    for sequence in (0, 1):
        imu, cameras = poses(tree, sequence, "poses.txt", 3), poses(tree, sequence, "cam0_to_world.txt", 4)
        assert list(imu) == list(cameras) == frame_ids(CONFIG, sequence)
        for frame, pose in imu.items():
            chained = pose @ square(calibration["image_00"]) @ unrectify
            assert is_rigid(chained) and np.allclose(chained, cameras[frame], atol=1e-6)
            assert np.linalg.norm(chained[:3, 3]) > 3000
            assert chained[2, 2] < 0.2 and chained[2, 1] < -0.95  # looks level, and its y axis points down
        path = np.array([pose[:3, 3] for pose in cameras.values()])
        assert np.allclose(np.linalg.norm(np.diff(path, axis=0), axis=1), 1.0, atol=0.2)


def test_rectified_baseline_is_the_projections(calibration: dict[str, F64]) -> None:
    worlds = []
    for k in range(2):
        unrectify = np.eye(4)
        unrectify[:3, :3] = calibration[f"R_rect_{k:02}"].reshape(3, 3).T
        worlds.append(square(calibration[f"image_{k:02}"]) @ unrectify)
    between = np.linalg.inv(worlds[0]) @ worlds[1]
    p = calibration["P_rect_01"].reshape(3, 4)
    assert np.allclose(between[:3, :3], np.eye(3), atol=1e-8)
    assert np.allclose(between[:3, 3], [-p[0, 3] / p[0, 0], 0, 0], atol=1e-8)
    assert between[0, 3] == pytest.approx(0.594, abs=1e-8)


def test_laser_scan_lies_on_the_true_depth(tree: Path, calibration: dict[str, F64]) -> None:
    rectify = np.eye(4)
    rectify[:3, :3] = calibration["R_rect_00"].reshape(3, 3)
    velo_to_camera = rectify @ np.linalg.inv(square(calibration["velo"]))
    k = calibration["P_rect_00"].reshape(3, 4)[:, :3]
    for sequence, frame in every_frame():
        points = scan(tree, sequence, frame)
        assert len(points) > 10_000 and (points[:, 3] >= 0).all() and (points[:, 3] <= 1).all()
        u, v, z = project(points[:, :3], k, np.linalg.inv(velo_to_camera))
        inside = (z > 1) & (u > -0.5) & (u < 351.5) & (v > -0.5) & (v < 95.5)
        true = depth(tree, sequence, frame)[np.rint(v[inside]).astype(int), np.rint(u[inside]).astype(int)]
        error = np.abs(true - z[inside]) / z[inside]
        assert inside.sum() > 3000 and np.median(error) < 0.015 and (error < 0.1).mean() > 0.8


def test_depth_and_poses_carry_pixels_to_the_next_frame(tree: Path, calibration: dict[str, F64]) -> None:
    k = calibration["P_rect_00"].reshape(3, 4)[:, :3]
    cameras = poses(tree, 1, "cam0_to_world.txt", 4)
    first, second = frame_ids(CONFIG, 1)
    near = depth(tree, 1, first) < 25
    offset = cameras[first][:3, 3].copy()
    for camera in cameras.values():
        camera[:3, 3] -= offset
    points = unproject_depth(np.where(near, depth(tree, 1, first), np.nan), k, cameras[first])[near]
    u, v, z = project(points, k, cameras[second])
    inside = (z > 1) & (u > -0.5) & (u < 351.5) & (v > -0.5) & (v < 95.5)
    row, column = np.rint(v[inside]).astype(int), np.rint(u[inside]).astype(int)
    error = np.abs(depth(tree, 1, second)[row, column] - z[inside]) / z[inside]
    assert np.median(error) < 0.02
    assert (labels(tree, 1, second)[row, column] == labels(tree, 1, first)[near][inside]).mean() > 0.85


def test_true_disparity_matches_the_pictures(tree: Path, calibration: dict[str, F64]) -> None:
    shift = -calibration["P_rect_01"].reshape(3, 4)[0, 3]
    column, row = np.meshgrid(np.arange(352, dtype=np.float32), np.arange(96, dtype=np.float32))
    for sequence, frame in every_frame():
        left, right = (picture(tree, sequence, frame, k).astype(np.float32) for k in range(2))
        true = depth(tree, sequence, frame)
        disparity = (shift / true).astype(np.float32)
        used = (true < 40) & (column > disparity + 3)

        def difference(extra: float) -> float:
            warped = cv2.remap(right, column - disparity - np.float32(extra), row, cv2.INTER_LINEAR)  # noqa: B023
            return float(np.median(np.abs(warped - left)[used]))  # noqa: B023

        assert difference(0) < 9
        assert difference(0) < 0.8 * min(difference(-2), difference(2))


def test_sky_alone_has_no_depth(tree: Path) -> None:
    for sequence, frame in every_frame():
        true = depth(tree, sequence, frame)
        assert (true > 0).all()
        assert np.array_equal(np.isinf(true), labels(tree, sequence, frame) == SKY)


def test_scribbles_are_sparse_and_of_their_class(tree: Path) -> None:
    for frame in frame_ids(CONFIG, 0)[:: CONFIG.label_every]:
        drawn, dense = labels(tree, 0, frame, "scribble"), labels(tree, 0, frame)
        assert drawn.shape == (96, 352, 3)
        assert (drawn[..., 0] == drawn[..., 1]).all() and (drawn[..., 0] == drawn[..., 2]).all()
        marked = drawn[..., 0] > 0
        assert (drawn[..., 0][marked] == dense[marked]).all()
        assert 0.01 < marked.mean() < 0.08
        classes, counts = np.unique(dense, return_counts=True)
        assert set(np.unique(drawn)) - {0} >= set(classes[counts > 400])


def test_no_class_can_be_read_from_its_colour(tree: Path) -> None:
    pixels: dict[int, list[npt.NDArray[np.uint8]]] = {}
    for sequence, frame in every_frame():
        image, dense = picture(tree, sequence, frame), labels(tree, sequence, frame)
        for label in np.unique(dense):
            pixels.setdefault(int(label), []).append(image[dense == label])
    joined = {label: np.concatenate(parts) for label, parts in pixels.items()}
    assert {ROAD, SIDEWALK, BUILDING, VEGETATION, SKY, 17, 20, 24, 26} <= set(joined)
    for label, colours in joined.items():
        if len(colours) > 300:
            assert colours.mean(axis=1).std() > (4 if label == SKY else 8), label

    def overlap(a: int, b: int) -> float:
        bins = [
            np.histogramdd(joined[label], bins=(8, 8, 8), range=[(0, 256)] * 3)[0] / len(joined[label])
            for label in (a, b)
        ]
        return float(np.minimum(*bins).sum())

    assert overlap(ROAD, SIDEWALK) > 0.25
    if WALL in joined:
        assert overlap(BUILDING, WALL) > 0.25
    if TERRAIN in joined:
        assert overlap(VEGETATION, TERRAIN) > 0.2


def test_sequences_differ(tree: Path) -> None:
    first, second = (picture(tree, sequence, frame_ids(CONFIG, sequence)[0]).astype(int) for sequence in (0, 1))
    assert np.abs(first - second).mean() > 20


def test_importing_the_entry_point_is_light() -> None:
    code = (
        "import sys, rw3d_prep.demo.generate; "
        "assert not {'open3d', 'numba', 'cv2', 'scipy'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
