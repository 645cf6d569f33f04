"""Bad input: one sentence that names the file, the value and the mend; exit 2, or 3 when the other batches went on."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from builders import cut_short, kitti360_tree, kitti_files, kitti_poses, rgbd_tree, save_image, scannet_tree
from rw3d_common import open_collection, open_scene
from rw3d_common.cameras import PixelMap
from rw3d_common.errors import UserError
from rw3d_common.images import read_image, read_label
from rw3d_common.log import log
from rw3d_prep import batch_scene
from rw3d_prep.cli import main
from rw3d_prep.reconstruct.base import ViewGeometry
from rw3d_prep.reconstruct.pixel_maps import pixel_map_for, resample, target_size

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
FIRST, LAST = (
    "train/2013_05_28_drive_0000_sync/0000000000-0000000001",
    "train/2013_05_28_drive_0000_sync/0000000002-0000000003",
)


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        assert "Traceback" not in self.err, self.err
        return self.err.splitlines()

    def refused(self, *words: object) -> None:
        """Exit 2, and the last line is the one sentence; it holds every one of `words`."""
        *before, message = self.lines
        assert self.code == 2, self.err
        assert message.startswith("rw3d-prep: "), self.err
        assert not any(line.startswith("rw3d-prep: ") for line in before)
        assert all(str(word) in message for word in words), message

    def batch_failed(self, scene: str, *words: object) -> None:
        """Exit 3, and one line names the scene; it holds every one of `words`."""
        [message] = [line for line in self.lines if " failed: " in line and "batches failed" not in line]
        assert self.code == 3, self.err
        assert message.startswith(f"{scene} failed: "), message
        assert all(str(word) in message for word in words), message


@pytest.fixture
def cli(monkeypatch, capsys):
    """The command line in this process: `cli("verify", path)` gives a Result."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["rw3d-prep", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return Result(int(stop.value.code or 0), *capsys.readouterr())

    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # main() wraps it
    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)
    log.handlers.clear()
    log.propagate = True


@dataclass
class Job:
    """A dataset, an output folder, and the command that leads from one to the other."""

    root: Path
    out: Path
    dataset: str

    def arguments(self, *more: object) -> list[object]:
        common = ["--dataset", self.dataset, "--root", self.root, "--out", self.out, "--batch-size", 2]
        return ["reconstruct", *common, *(["--backend", "sensor"] if self.dataset == "kitti360" else []), *more]

    def failures(self) -> list[dict]:
        return [json.loads(line) for line in (self.out / "failures.jsonl").read_text().splitlines()]


@pytest.fixture
def kitti(tmp_path) -> Job:
    """Four frames in two batches."""
    return Job(kitti360_tree(tmp_path / "kitti"), tmp_path / "out", "kitti360")


@pytest.fixture
def rgbd(tmp_path) -> Job:
    return Job(rgbd_tree(tmp_path / "rgbd"), tmp_path / "out", "rgbd")


def scenes(out: Path) -> set[str]:
    return {scene.name for scene in open_collection(out)}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


# Files that are needed before work starts


def test_good_input_passes(cli, kitti):
    """The control: whatever is refused below is refused for its fault."""
    assert cli(*kitti.arguments()).code == 0
    assert scenes(kitti.out) == {FIRST, LAST}
    assert cli("verify", kitti.out).code == 0


def test_missing_root(cli, kitti):
    shutil.rmtree(kitti.root)
    cli(*kitti.arguments()).refused(kitti.root, "no such folder", "--root")
    assert not kitti.out.exists()


@pytest.mark.parametrize("dataset", ["kitti360", "rgbd"])
def test_root_is_a_file(cli, tmp_path, dataset):
    (tmp_path / "data.zip").write_text("x")
    Job(tmp_path / "data.zip", tmp_path / "out", dataset)
    cli("reconstruct", "--dataset", dataset, "--root", tmp_path / "data.zip").refused("data.zip", "is a file", "--root")


@pytest.mark.parametrize("name", ["perspective.txt", "calib_cam_to_pose.txt", "calib_cam_to_velo.txt"])
def test_missing_calibration_file(cli, kitti, name):
    (kitti.root / "calibration" / name).unlink()
    cli(*kitti.arguments()).refused(kitti.root / "calibration" / name, "no such file")


@pytest.mark.parametrize(
    ("name", "key"),
    [("perspective.txt", "R_rect_00"), ("perspective.txt", "P_rect_01"), ("calib_cam_to_pose.txt", "image_01")],
)
def test_missing_calibration_line(cli, kitti, name, key):
    edit(kitti.root / "calibration" / name, f"{key}:", "other:")
    cli(*kitti.arguments()).refused(kitti.root / "calibration" / name, f"'{key}:' is missing", "copy")


def test_calibration_line_with_a_number_too_few(cli, kitti):
    edit(kitti.root / "calibration" / "perspective.txt", "P_rect_00: ", "P_rect_00: 1.0 ")
    cli(*kitti.arguments()).refused("perspective.txt", "'P_rect_00'", "13 numbers where 12 belong")


def test_calibration_line_with_a_word(cli, kitti):
    edit(kitti.root / "calibration" / "perspective.txt", "P_rect_00: ", "P_rect_00: nought ")
    cli(*kitti.arguments()).refused("perspective.txt", "'P_rect_00'", "nought")


def test_binary_file_for_calibration(cli, kitti):
    (kitti.root / "calibration" / "perspective.txt").write_bytes(b"\x89PNG\xff\xfe")
    cli(*kitti.arguments()).refused("perspective.txt", "cannot be read as text", "copy")


def test_missing_frame_list(cli, kitti):
    listing = kitti.root / "data_2d_semantics" / "train" / "2013_05_28_drive_train_frames.txt"
    listing.unlink()
    cli(*kitti.arguments()).refused(listing, "no such file", "split 'train'")


def test_malformed_frame_list(cli, kitti):
    listing = kitti.root / "data_2d_semantics" / "train" / "2013_05_28_drive_train_frames.txt"
    edit(listing, "0000000002.png", "two.png")
    cli(*kitti.arguments()).refused(listing, "line 3", "two.png")


def test_empty_frame_list(cli, kitti):
    (kitti.root / "data_2d_semantics" / "train" / "2013_05_28_drive_train_frames.txt").write_text("")
    cli(*kitti.arguments()).refused(kitti.root, "no frame", "datasets check")


def test_no_images_at_all(cli, kitti):
    shutil.rmtree(kitti.root / "data_2d_raw")
    cli(*kitti.arguments()).refused(kitti.root, "no frame", "datasets check")


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("dataset.splits=[trian]", ("unknown split 'trian'", "train")),
        ("dataset.cameras=[image_02]", ("unknown camera image_02", "image_00")),
        ("dataset.sequences=[nope]", ("no frame",)),
    ],
)
def test_selection_that_does_not_exist(cli, kitti, assignment, words):
    cli(*kitti.arguments("--set", assignment)).refused(*words)


# Poses


def test_missing_poses(cli, kitti):
    kitti_poses(kitti.root, 0).unlink()
    cli(*kitti.arguments()).refused(kitti_poses(kitti.root, 0), "no such file")


def test_pose_line_cut_short(cli, kitti):
    lines = kitti_poses(kitti.root, 0).read_text().splitlines()
    kitti_poses(kitti.root, 0).write_text("\n".join([*lines[:-1], " ".join(lines[-1].split()[:7])]))
    cli(*kitti.arguments()).refused("poses.txt: line 4", "7 numbers where 13 belong")


def test_pose_without_a_frame_id(cli, kitti):
    edit(kitti_poses(kitti.root, 0), "\n2 ", "\nnan ")
    cli(*kitti.arguments()).refused("poses.txt: line", "nan", "not a frame id")


@pytest.mark.parametrize("value", ["nan", "-inf"])
def test_pose_that_is_not_finite_costs_its_frame_only(cli, kitti, value):
    lines = kitti_poses(kitti.root, 0).read_text().splitlines()
    lines[3] = " ".join(["3", *[value] * 12])
    kitti_poses(kitti.root, 0).write_text("\n".join(lines))
    result = cli(*kitti.arguments())
    assert result.code == 0
    assert any("poses.txt: pose 0000000003 is not a finite rigid transform" in line for line in result.lines)
    assert any("1 of 4 frames have no pose and are dropped" in line for line in result.lines)
    frames = {int(i) for scene in open_collection(kitti.out) for i in scene.view_table["frame_id"]}
    assert frames == {0, 1, 2}


def test_pose_of_a_lost_scannet_frame_costs_its_frame_only(cli, tmp_path):
    job = Job(scannet_tree(tmp_path / "scan", lost=(3,)), tmp_path / "out", "rgbd")
    result = cli(*job.arguments())
    assert result.code == 0
    assert any(f"{job.root / 'pose' / '3.txt'}: 1 of 4 frames have no usable pose" in line for line in result.lines)
    assert sum(len(scene) for scene in open_collection(job.out)) == 3


def test_same_pose_twice_is_one_pose(cli, kitti):
    poses = kitti_poses(kitti.root, 0)
    poses.write_text(poses.read_text() + poses.read_text().splitlines()[1] + "\n")
    result = cli(*kitti.arguments())
    assert result.code == 0
    assert "stands there twice" not in result.err
    assert sum(len(scene) for scene in open_collection(kitti.out)) == 4


def test_contradictory_poses_are_both_left_out(cli, kitti):
    poses = kitti_poses(kitti.root, 0)
    lines = poses.read_text().splitlines()
    poses.write_text("\n".join([*lines, " ".join(["3", *lines[0].split()[1:]])]))
    result = cli(*kitti.arguments())
    assert result.code == 0
    assert any("pose 0000000003 stands there twice with different values" in line for line in result.lines)
    assert sum(len(scene) for scene in open_collection(kitti.out)) == 3


def test_no_usable_pose_at_all(cli, kitti):
    kitti_poses(kitti.root, 0).write_text("")
    cli(*kitti.arguments()).refused(kitti.root, "4 of 4 frames have no pose", "--backend")


# Images, labels, scans: the batch fails, the other one is made


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("kind", ["left", "scribble", "semantic"])
def test_truncated_png(cli, kitti, kind, keep):
    path = cut_short(kitti_files(kitti.root, 0, 3)[kind], keep)
    cli(*kitti.arguments()).batch_failed(LAST, path, "copy the file again")
    assert scenes(kitti.out) == {FIRST}


@pytest.mark.parametrize("kind", ["left", "scribble", "semantic"])
def test_every_truncation_of_a_png_is_refused_or_harmless(kitti, kind):
    """The last 20 bytes or so are checksums and the end mark: without them every pixel is still there."""
    path = kitti_files(kitti.root, 0, 0)[kind]
    encoding = "gray8" if kind == "semantic" else "rgb_equal"
    content = path.read_bytes()
    whole = read_image(path) if kind == "left" else read_label(path, encoding, (32, 64))
    for size in range(0, len(content), max(len(content) // 150, 1)):
        path.write_bytes(content[:size])
        try:
            pixels = read_image(path) if kind == "left" else read_label(path, encoding, (32, 64))
        except UserError as error:
            assert str(path) in str(error)
        else:
            assert len(content) - size < 24
            np.testing.assert_array_equal(pixels, whole)


def bad_labels() -> dict[str, tuple[object, tuple[str, ...]]]:
    """What a scribble must not be, and words of the message."""
    size = (32, 64)
    colours = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    palette = Image.fromarray(np.full(size, 7, np.uint8)).convert("P")
    return {
        "16-bit": (Image.fromarray(np.full(size, 7, np.uint16)), ("mode I;16", "three equal 8-bit channels")),
        "palette": (palette, ("mode P", "three equal 8-bit channels")),
        "colour": (Image.fromarray(colours), ("channels differ", "colour picture")),
        "alpha": (Image.new("RGBA", size[::-1]), ("mode RGBA",)),
        "other size": (Image.new("RGB", (32, 16)), ("32×16", "64×32", "nearest neighbour")),
        "unknown id": (Image.new("RGB", size[::-1], (77, 77, 77)), ("unknown label id 77", "data_manifest.yaml")),
    }


@pytest.mark.parametrize("fault", bad_labels())
def test_label_of_another_kind(cli, kitti, fault):
    image, words = bad_labels()[fault]
    path = kitti_files(kitti.root, 0, 2)["scribble"]
    image.save(path)
    cli(*kitti.arguments()).batch_failed(LAST, path, *words)
    assert scenes(kitti.out) == {FIRST}


def test_colour_picture_for_dense_labels(cli, kitti):
    path = kitti_files(kitti.root, 0, 2)["semantic"]
    save_image(path, np.zeros((32, 64, 3), np.uint8))
    cli(*kitti.arguments()).batch_failed(LAST, path, "mode RGB", "one 8-bit channel")


@pytest.mark.parametrize("size", [0, 20, 1000])
def test_scan_that_is_no_whole_number_of_points(cli, kitti, size):
    path = kitti_files(kitti.root, 0, 2)["scan"]
    path.write_bytes(path.read_bytes()[:size])
    cli(*kitti.arguments()).batch_failed(LAST, path, f"{size} bytes", "x, y, z, reflectance")


def test_depth_of_8_bits(cli, rgbd):
    path = rgbd.root / "frame-000002.depth.png"
    save_image(path, np.full((24, 32), 9, np.uint8))
    cli(*rgbd.arguments()).batch_failed("train/rgbd/0000000002-0000000003", path, "mode L", "16-bit")


def test_truncated_depth(cli, rgbd):
    path = cut_short(rgbd.root / "frame-000002.depth.png")
    cli(*rgbd.arguments()).batch_failed("train/rgbd/0000000002-0000000003", path, "copy the file again")


def test_text_file_for_an_image(cli, rgbd):
    path = rgbd.root / "frame-000002.color.jpg"
    path.write_text("<html>not found</html>")
    cli(*rgbd.arguments()).batch_failed("train/rgbd/0000000002-0000000003", path, "copy the file again")


def test_when_every_batch_fails_the_input_is_bad(cli, kitti):
    for frame in (0, 2):
        cut_short(kitti_files(kitti.root, 0, frame)["left"])
    result = cli(*kitti.arguments())
    assert result.code == 2
    assert {failure["scene"] for failure in kitti.failures()} == {FIRST, LAST}


def test_mended_batch_is_made_by_the_same_command(cli, kitti):
    path = kitti_files(kitti.root, 0, 2)["left"]
    whole = path.read_bytes()
    cut_short(path)
    cli(*kitti.arguments()).batch_failed(LAST, path)
    [failure] = kitti.failures()
    assert failure["scene"] == LAST
    assert str(path) in failure["error"]
    assert len(failure["frames"]) == 2
    assert failure["traceback"] is None
    untouched = (kitti.out / f"{FIRST}.zarr" / "zarr.json").stat().st_mtime_ns
    assert cli("verify", kitti.out).code == 0

    path.write_bytes(whole)
    assert cli(*kitti.arguments()).code == 0
    assert not (kitti.out / "failures.jsonl").exists()
    assert scenes(kitti.out) == {FIRST, LAST}
    assert (kitti.out / f"{FIRST}.zarr" / "zarr.json").stat().st_mtime_ns == untouched
    assert cli("verify", kitti.out).code == 0


def test_a_fault_of_ours_keeps_its_traceback_in_the_failures(cli, kitti, monkeypatch):
    def broken(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(batch_scene, "fuse_view", broken)
    result = cli(*kitti.arguments())
    assert result.code == 3
    assert "ZeroDivisionError: division by zero" in result.err
    assert all("in broken" in failure["traceback"] for failure in kitti.failures())


# RGB-D and folder layouts


def test_missing_intrinsics(cli, rgbd):
    (rgbd.root / "camera-intrinsics.txt").unlink()
    cli(*rgbd.arguments()).refused(rgbd.root / "camera-intrinsics.txt", "no such file", "3×3")


@pytest.mark.parametrize("text", ["", "500 0 320\n", "500 0 x\n0 500 240\n0 0 1\n", "500 0\n0 500 240\n0 0 1\n"])
def test_malformed_intrinsics(cli, rgbd, text):
    (rgbd.root / "camera-intrinsics.txt").write_text(text)
    cli(*rgbd.arguments()).refused(rgbd.root / "camera-intrinsics.txt", "matrix", "export it again")


def test_missing_scannet_intrinsics(cli, tmp_path):
    job = Job(scannet_tree(tmp_path / "scan"), tmp_path / "out", "rgbd")
    (job.root / "intrinsic" / "intrinsic_depth.txt").unlink()
    cli(*job.arguments()).refused("intrinsic_depth.txt", "no such file")


def test_pose_file_that_is_no_4_by_4_matrix(cli, rgbd):
    (rgbd.root / "frame-000001.pose.txt").write_text("1 0 0\n0 1 0\n0 0 1\n")
    cli(*rgbd.arguments()).refused("frame-000001.pose.txt", "3×3 numbers where 4×4 belong")


def test_frame_without_depth_is_left_out(cli, rgbd):
    (rgbd.root / "frame-000003.depth.png").unlink()
    result = cli(*rgbd.arguments())
    assert result.code == 0
    assert any("frame-000003.depth.png: 1 of 4 frames have no depth image" in line for line in result.lines)
    assert sum(len(scene) for scene in open_collection(rgbd.out)) == 3


def test_duplicate_frame_id_in_rgbd(cli, rgbd):
    shutil.copy(rgbd.root / "frame-000001.color.jpg", rgbd.root / "frame-0001.color.jpg")
    cli(*rgbd.arguments()).refused("frame id 1", "frame-000001.color.jpg", "frame-0001.color.jpg", "remove one")


def test_duplicate_frame_id_in_a_folder(cli, tmp_path):
    for name in ("a_7.png", "b_07.png"):
        save_image(tmp_path / "pictures" / name, np.zeros((8, 8, 3), np.uint8))
    result = cli("reconstruct", "--dataset", "folder", "--root", tmp_path / "pictures", "--out", tmp_path / "out")
    result.refused("a_7.png", "b_07.png", "frame id 7", "rename one")


@pytest.mark.parametrize(("dataset", "word"), [("folder", "no image found"), ("rgbd", "no frame")])
def test_empty_folder(cli, tmp_path, dataset, word):
    (tmp_path / "empty").mkdir()
    result = cli("reconstruct", "--dataset", dataset, "--root", tmp_path / "empty", "--out", tmp_path / "out")
    result.refused(tmp_path / "empty", word)
    assert not (tmp_path / "out").exists()


def test_gap_in_frame_ids_splits_batches(cli, tmp_path):
    job = Job(kitti360_tree(tmp_path / "kitti", frames=[4, 5, 6, 20, 21]), tmp_path / "out", "kitti360")
    assert cli(*job.arguments("--set", "batching.size=200")).code == 0
    assert [path.name for path in open_collection(job.out).paths] == [
        "0000000004-0000000006.zarr",
        "0000000020-0000000021.zarr",
    ]


# Frames of mixed size: every frame has its own exact pixel map, so they are fine


def resize_kitti_frame(root: Path, frame: int, factor: int) -> None:
    """Image and labels `factor` times larger, nearest neighbour."""
    for kind in ("left", "semantic", "scribble"):
        path = kitti_files(root, 0, frame)[kind]
        pixels = np.asarray(Image.open(path))
        save_image(path, pixels.repeat(factor, axis=0).repeat(factor, axis=1))


def test_frames_of_mixed_size_with_a_scan_each(cli, kitti):
    resize_kitti_frame(kitti.root, 1, 2)
    assert cli(*kitti.arguments()).code == 0
    assert cli("verify", kitti.out).code == 0
    scene = open_scene(kitti.out / f"{FIRST}.zarr")
    assert scene.view_table["image_size"].tolist() == [[32, 64], [64, 128]]
    for index in range(2):
        view = scene.view(index)
        labels = np.asarray(Image.open(kitti_files(kitti.root, 0, index)["scribble"]))[..., 0].ravel()
        np.testing.assert_array_equal(view.color, view.read_image().reshape(-1, 3)[view.pixel])
        np.testing.assert_array_equal(view.label == 255, labels[view.pixel] == 0)
    assert (scene.view(0).label != 255).any()


def test_frames_of_mixed_size_with_depth_of_another_size(cli, tmp_path):
    """The map follows from both pinhole matrices: halves of the colour image's pixels, centre to centre."""
    job = Job(scannet_tree(tmp_path / "scan"), tmp_path / "out", "rgbd")
    save_image(job.root / "color" / "1.jpg", np.zeros((40, 64, 3), np.uint8))  # a row of pixels is cut off below
    assert cli(*job.arguments()).code == 0
    scene = open_scene(job.out / "train" / "scan" / "0000000000-0000000001.zarr")
    assert scene.view_table["image_size"].tolist() == [[48, 64], [40, 64]]
    for index, height in ((0, 48), (1, 40)):
        rows, columns = scene.view(index).rows_columns.T
        assert rows.max() < height
        assert (rows.min(), columns.max()) == (5, 63), "depth row 2 lies at colour row 4.5, which rounds up"
        np.testing.assert_array_equal(np.unique(columns), np.arange(1, 64, 2))


def test_mapanything_maps_frames_of_mixed_size_each_on_its_own():
    sizes = [(376, 1408), (480, 640)]
    target = target_size(sizes, "fixed_mapping", 518)
    for size in sizes:
        ramp = np.broadcast_to(np.linspace(0, 255, size[1]), size).astype(np.uint8)
        seen = resample(np.repeat(ramp[..., None], 3, axis=2), target)[target[0] // 2, :, 0].astype(float)
        u, _ = pixel_map_for(size, target).source_coordinates()
        inner = slice(4, -4)
        np.testing.assert_allclose(seen[inner], u[inner] * 255 / (size[1] - 1), atol=1.5)


# Video


@pytest.mark.parametrize("content", [b"", b"this is no video\n" * 50])
def test_unreadable_video(cli, tmp_path, content):
    pytest.importorskip("cv2", reason="videos need the extra prep")
    video = tmp_path / "clip.mp4"
    video.write_bytes(content)
    result = cli("reconstruct", "--dataset", "folder", "--root", video, "--out", tmp_path / "out")
    result.refused(video, "no frame can be decoded", "re-encode")
    assert list(tmp_path.iterdir()) == [video], "nothing half-unpacked stays"


class FlatBackend:
    """Every pixel one metre ahead: stands in for a model that needs neither pose nor depth."""

    needs = ()

    def identity(self) -> dict[str, str]:
        return {"name": "flat"}

    def require(self) -> None:
        """Nothing is needed."""

    def reconstruct(self, frames, world_offset):
        for frame in frames:
            size = read_image(frame.image).shape[:2]
            points = np.ones((*size, 3), np.float32)
            yield ViewGeometry(points, points[..., 0], points[..., 0] > 0, np.eye(3), np.eye(4), PixelMap(size, size))


def test_scene_of_a_video_finds_its_frames_again(cli, tmp_path, monkeypatch):
    cv2 = pytest.importorskip("cv2", reason="videos need the extra prep")
    video = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 24))
    for grey in (40, 90, 140):
        writer.write(np.full((24, 32, 3), grey, np.uint8))
    writer.release()
    (tmp_path / "clip_frames.partial").mkdir()  # what a killed run leaves
    (tmp_path / "clip_frames.lock").touch()
    monkeypatch.setattr(batch_scene, "backend_of", lambda _: FlatBackend())
    assert cli("reconstruct", "--dataset", "folder", "--root", video, "--out", tmp_path / "out").code == 0
    [scene] = open_collection(tmp_path / "out")
    assert len(scene) == 3
    np.testing.assert_array_equal(scene.view(1).color[0], scene.view(1).read_image()[0, 0])
    assert {path.name for path in tmp_path.iterdir()} == {"clip.avi", "clip_frames", "out"}


# Where scenes are written


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def small_disk(folder: Path, size: str):
    """A RAM disk at `folder`; skips where this machine does not let us mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a RAM disk needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_real_full_disk_keeps_finished_scenes_and_a_larger_one_completes(cli, tmp_path):
    job = Job(kitti360_tree(tmp_path / "kitti", frames=range(12)), tmp_path / "disk" / "out", "kitti360")
    with small_disk(tmp_path / "disk", "900k"):
        result = cli(*job.arguments())
        result.refused(job.out, "no space left", "same command again")
        finished = scenes(job.out)
        assert 0 < len(finished) < 6
        assert not list(job.out.rglob("*.tmp-*"))
        assert cli("verify", job.out).code == 0
        subprocess.run(["mount", "-o", "remount,size=64m", str(tmp_path / "disk")], check=True)
        assert cli(*job.arguments()).code == 0
        assert finished < scenes(job.out)
        assert cli("verify", job.out).code == 0


@pytest.mark.parametrize(
    "place",
    ["rw3d_prep.write.create_array", "rw3d_prep.write.ShardedColumn.append", "rw3d_prep.write.sync_tree"],
)
def test_full_disk_while_a_scene_is_written(cli, kitti, monkeypatch, place):
    with monkeypatch.context() as patch:
        patch.setattr(place, full_disk)
        cli(*kitti.arguments()).refused(kitti.out, "no space left", "same command again")
    assert not list(kitti.out.rglob("*.zarr*")), "neither a store nor a temporary one stays"
    assert cli(*kitti.arguments()).code == 0


@pytest.mark.parametrize(
    "place",
    ["rw3d_prep.pipeline.save_config", "rw3d_prep.pipeline.Metrics.write", "rw3d_prep.pipeline.write_manifest"],
)
def test_full_disk_between_scenes(cli, kitti, monkeypatch, place):
    with monkeypatch.context() as patch:
        patch.setattr(place, full_disk)
        cli(*kitti.arguments()).refused(kitti.out, "no space left")
    assert cli(*kitti.arguments()).code == 0
    assert cli("verify", kitti.out).code == 0


def test_full_disk_in_a_worker_process(tmp_path):
    job = Job(kitti360_tree(tmp_path / "kitti", frames=range(12)), tmp_path / "disk" / "out", "kitti360")
    with small_disk(tmp_path / "disk", "900k"):
        result = in_a_process(*job.arguments("--workers", 2))
        result.refused(job.out, "no space left")


def test_out_is_a_file(cli, kitti):
    kitti.out.write_text("precious")
    cli(*kitti.arguments()).refused(kitti.out, "cannot be written", "--out")
    assert kitti.out.read_text() == "precious"


def test_out_lies_below_a_file(cli, kitti, tmp_path):
    (tmp_path / "file").write_text("precious")
    kitti.out = tmp_path / "file" / "out"
    cli(*kitti.arguments()).refused(kitti.out, "cannot be written", "--out")


def test_out_is_not_writable(cli, kitti, tmp_path):
    with small_disk(tmp_path / "disk", "1m,ro"):
        kitti.out = tmp_path / "disk" / "out"
        cli(*kitti.arguments()).refused(kitti.out, "cannot be written", "Read-only", "--out")


@pytest.mark.parametrize(
    ("more", "changed"),
    [
        (("--set", "fuse.confidence_percentile=20"), "fuse.confidence_percentile: 10.0 → 20.0"),
        (("--set", "backend.farthest=9"), "backend.farthest: 100.0 → 9.0"),
        (("--set", "batching.size=4"), "batching.size: 2 → 4"),
    ],
)
def test_existing_scenes_of_another_configuration(cli, kitti, more, changed):
    assert cli(*kitti.arguments()).code == 0
    before = {scene.name: scene.content_hash() for scene in open_collection(kitti.out)}
    cli(*kitti.arguments(*more)).refused(kitti.out, f"another configuration ({changed})", "choose another --out")
    assert {scene.name: scene.content_hash() for scene in open_collection(kitti.out)} == before


# Configuration


@pytest.fixture
def recipe(tmp_path) -> Path:
    shutil.copy(Path(__file__).parents[2] / "pipelines" / "kitti360.yaml", tmp_path / "mine.yaml")
    return tmp_path / "mine.yaml"


def test_misspelt_key_in_a_recipe(cli, recipe):
    edit(recipe, "stride: 1", "strid: 1")
    cli("reconstruct", "--config", recipe).refused(recipe, "'dataset.strid'", "did you mean 'stride'?")


def test_misspelt_section_in_a_recipe(cli, recipe):
    edit(recipe, "fuse:", "fuze:")
    cli("reconstruct", "--config", recipe).refused(recipe, "'fuze'", "did you mean 'fuse'?")


def test_misspelt_top_section_in_a_recipe(cli, recipe):
    edit(recipe, "prep:", "perp:")
    cli("reconstruct", "--config", recipe).refused(recipe, "unknown section 'perp'", "prep:")


def test_broken_yaml(cli, recipe):
    edit(recipe, "splits: [train]", "splits: [train")
    cli("reconstruct", "--config", recipe).refused(recipe, "not valid YAML", "line")


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "prep: 7\n"])
def test_yaml_without_a_recipe(cli, recipe, text):
    recipe.write_text(text)
    cli("reconstruct", "--config", recipe).refused(recipe, "pipelines/")


def test_missing_recipe(cli, tmp_path):
    cli("reconstruct", "--config", tmp_path / "no.yaml").refused(tmp_path / "no.yaml", "no such file")


def test_dataset_that_contradicts_the_recipe(cli, recipe):
    cli("reconstruct", "--config", recipe, "--dataset", "demo").refused("--dataset demo", "'kitti360'")


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("batching.size", ("--set batching.size", "KEY=VALUE")),
        ("batching.size=many", ("batching.size", "'many'", "integer")),
        ("batching.size=0", ("batching.size = 0", "greater than or equal to 1")),
        ("batching.sise=3", ("'batching.sise'", "did you mean 'size'?")),
        ("batching.size.deep=3", ("batching.size.deep=3", "'size' is a value, not a section")),
        ("batching.size=[3", ("batching.size=[3", "not a YAML value")),
        ("fuse.confidence_percentile=100", ("fuse.confidence_percentile = 100", "less than 100")),
        ("dataset.splits=train", ("dataset.splits = 'train'",)),
        ("backend.kind=sterio", ("sterio", "'stereo'")),
    ],
)
def test_bad_assignment(cli, kitti, assignment, words):
    cli(*kitti.arguments("--set", assignment)).refused(*words)
    assert not kitti.out.exists()


def test_misspelt_key_of_a_backend(cli, kitti):
    cli(*kitti.arguments("--set", "backend.fathest=3")).refused("fathest", "did you mean 'farthest'?")


def test_unknown_dataset(cli):
    cli("reconstruct", "--dataset", "kitty360").refused("unknown dataset 'kitty360'", "did you mean 'kitti360'?")


def test_no_dataset(cli):
    cli("reconstruct").refused("--dataset", "--config")


def test_unknown_backend_is_a_usage_error(cli, kitti):
    """Options themselves are checked by typer, which draws a box; it names option, value and choices."""
    result = cli("reconstruct", "--dataset", "kitti360", "--backend", "sterio")
    assert result.code == 2
    assert "Traceback" not in result.err
    assert all(word in result.err for word in ("--backend", "sterio", "stereo", "sensor", "mapanything"))


def test_verify_without_scenes(cli, tmp_path):
    cli("verify", tmp_path / "nothing").refused(tmp_path / "nothing", "rw3d-prep reconstruct")


# The same through a real process, where nothing is patched


def in_a_process(*arguments: object) -> Result:
    command = [sys.executable, "-c", "from rw3d_prep.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return Result(done.returncode, done.stdout, done.stderr)


def test_bad_input_through_a_process(kitti):
    (kitti.root / "calibration" / "perspective.txt").unlink()
    result = in_a_process(*kitti.arguments())
    result.refused("perspective.txt", "no such file")
    assert len(result.lines) == 2, "what is about to be done, and why not"


def test_failed_batch_in_a_worker_process(kitti):
    path = cut_short(kitti_files(kitti.root, 0, 2)["left"])
    result = in_a_process(*kitti.arguments("--workers", 2))
    result.batch_failed(LAST, path, "copy the file again")
    assert [failure["scene"] for failure in kitti.failures()] == [LAST]
    assert scenes(kitti.out) == {FIRST}
