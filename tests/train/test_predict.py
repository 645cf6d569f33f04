"""Prediction: raw ids that the dataset's own reader takes back, colours, overlays; names that would collide are told."""

import numpy as np
import pytest
import torch
from PIL import Image

import rw3d_train
from builders import cut_short, save_image
from rw3d_common import UserError
from rw3d_common.images import LabelFile
from rw3d_common.manifest import dataset_entry
from rw3d_train.models.segmenter import segmenter
from rw3d_train.predict import overlay, predict_all, raw_ids
from train_builders import kitti_classes, saved_run, tiny_config

SIZE = (32, 48)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with an untrained U-Net, which says many different things."""
    folder = tmp_path_factory.mktemp("predict")
    torch.manual_seed(0)
    net = segmenter("unet", kitti_classes().names)
    torch.nn.init.normal_(net.head.weight, std=3)
    config = tiny_config(folder / "stores", "ema")
    return saved_run(folder / "run", {"student_2d": net, "teacher_2d": net}, config, kitti_classes())


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def names(folder) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_three_lines_predict_an_image(run, tmp_path):
    save_image(tmp_path / "a.png", picture())
    labels = rw3d_train.load(run).predict(tmp_path / "a.png")
    assert labels.shape == SIZE
    assert labels.dtype == np.uint8
    assert labels.max() < len(kitti_classes())
    assert len(np.unique(labels)) > 2
    segmenter = rw3d_train.load(str(run))
    np.testing.assert_array_equal(labels, segmenter.predict(picture()))
    np.testing.assert_array_equal(labels, segmenter.logits(picture()).argmax(0).numpy())


def test_files_hold_the_prediction_three_times(run, tmp_path):
    save_image(tmp_path / "in" / "a.png", picture())
    segmenter = rw3d_train.load(run)
    labels = segmenter.predict(picture())
    assert predict_all(segmenter, [tmp_path / "in" / "a.png"], tmp_path / "out") == 1
    assert names(tmp_path / "out") == ["color/a.png", "ids/a.png", "overlay/a.jpg"]
    entry = dataset_entry("kitti360")
    for encoding in ("rgb_equal", "gray8"):  # as the dataset's own scribbles and dense labels are read
        read = LabelFile(tmp_path / "out" / "ids" / "a.png", encoding, entry.class_map()).read(SIZE)
        np.testing.assert_array_equal(read, labels)
    color = Image.open(tmp_path / "out" / "color" / "a.png")
    np.testing.assert_array_equal(np.asarray(color), labels)
    np.testing.assert_array_equal(np.asarray(color.convert("RGB")), entry.class_map().palette[labels])
    seen = np.asarray(Image.open(tmp_path / "out" / "overlay" / "a.jpg"))
    expected = overlay(picture(), labels, entry.class_map())
    assert seen.shape == expected.shape
    assert abs(seen.mean((0, 1)) - expected.mean((0, 1))).max() < 3  # JPEG keeps the means of noise


def test_raw_ids_and_overlay_leave_the_unlabelled_alone():
    classes = kitti_classes()
    assert raw_ids(classes)[255] == 255
    assert [classes.train_id_of[raw_ids(classes)[item.train_id]] for item in classes.classes] == list(
        range(len(classes))
    )
    image, labels = picture(), np.full(SIZE, 255, np.uint8)
    labels[0, 0] = 2
    mixed = overlay(image, labels, classes, opacity=1.0)
    assert mixed[0, 0].tolist() == classes.palette[2].tolist()
    np.testing.assert_array_equal(mixed[1:], image[1:])


def test_folders_keep_their_paths_in_the_names(run, tmp_path):
    for name in ("a.png", "left/a.jpg", "left/deep/B.JPG"):
        save_image(tmp_path / "in" / name, picture())
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    save_image(tmp_path / "lone.webp", picture())
    done = predict_all(rw3d_train.load(run), [tmp_path / "in", tmp_path / "lone.webp"], tmp_path / "out")
    assert done == 4
    assert names(tmp_path / "out" / "ids") == ["a.png", "left_a.png", "left_deep_B.png", "lone.png"]


@pytest.mark.parametrize(
    ("made", "given", "sentence"),
    [
        (("a.png", "a.jpg"), ["."], r"a\.png: would be written as a, and so would .*a\.jpg; predict them apart"),
        (("x/a.png", "x_a.png"), ["."], r"would be written as x_a, and so would .*; predict them apart"),
        (("x/a.png", "y/a.png"), ["x", "y"], r"y/a\.png: would be written as a, and so would .*x/a\.png"),
        (("x/v.mp4", "y/v.mp4"), ["x/v.mp4", "y/v.mp4"], r"y/v\.mp4: would be written as v, and so would .*x/v\.mp4"),
        (("a.png",), ["b.png"], r"b\.png: no such file; give images, folders of images, or videos"),
        (("a.png",), ["v.mp4"], r"v\.mp4: no such file; give images, folders of images, or videos"),
        (("x/a.txt",), ["x"], r"x: no image or video in this folder \(\.jpg, .*\); name another one"),
    ],
)
def test_what_cannot_be_named_or_found_is_told_before_anything_is_written(run, tmp_path, made, given, sentence):
    for name in made:
        if name.endswith((".png", ".jpg")):
            save_image(tmp_path / "in" / name, picture())
        else:
            (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / name).write_text("text")
    with pytest.raises(UserError, match=sentence):
        predict_all(rw3d_train.load(run), [tmp_path / "in" / name for name in given], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_broken_image_is_named(run, tmp_path):
    path = cut_short(save_image(tmp_path / "a.png", picture()))
    with pytest.raises(UserError, match=r"a\.png: cannot be decoded \(.*; copy the file again"):
        predict_all(rw3d_train.load(run), [path], tmp_path / "out")


def test_every_frame_of_a_video_is_predicted(run, tmp_path):
    cv2 = pytest.importorskip("cv2", reason="video is read through OpenCV")
    frames = [np.full((*SIZE, 3), (250, 10 * n, 10), np.uint8) for n in range(3)]  # RGB, so a swap shows
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, SIZE[::-1])
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no MJPG")
    for frame in frames:
        writer.write(frame[..., ::-1])
    writer.release()
    from rw3d_train.predict import video_frames

    read = list(video_frames(tmp_path / "v.avi"))
    assert len(read) == 3
    for frame, one in zip(frames, read, strict=True):
        assert abs(frame.astype(int) - one).max() < 12
    assert predict_all(rw3d_train.load(run), [tmp_path / "v.avi"], tmp_path / "out") == 3
    assert names(tmp_path / "out" / "ids") == [f"v_{n:06d}.png" for n in range(3)]


def test_what_is_no_video_is_named(run, tmp_path):
    pytest.importorskip("cv2", reason="video is read through OpenCV")
    (tmp_path / "v.mp4").write_text("no video")
    with pytest.raises(UserError, match=r"v\.mp4: no frame can be decoded; give another video, or its frames"):
        predict_all(rw3d_train.load(run), [tmp_path / "v.mp4"], tmp_path / "out")


def test_a_missing_opencv_is_told(run, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    (tmp_path / "v.mp4").write_text("no video")
    with pytest.raises(UserError, match=r"v\.mp4: reading video needs OpenCV: pip install opencv-python-headless"):
        predict_all(rw3d_train.load(run), [tmp_path / "v.mp4"], tmp_path / "out")


def test_a_missing_run_is_told(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such folder; give a run folder"):
        rw3d_train.load(tmp_path / "nowhere")
