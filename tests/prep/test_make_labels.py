"""`make-labels points|scribbles|coarse`: what is drawn, stored, resumed and refused."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from builders import kitti360_tree, kitti_files, save_image
from rw3d_common.errors import UserError
from rw3d_common.images import LabelFile
from rw3d_common.labels import IGNORE
from rw3d_common.manifest import dataset_entry
from rw3d_prep import cli
from rw3d_prep.cli_labels import PresetName, parse_lengths
from rw3d_prep.datasets import DatasetConfig
from rw3d_prep.label_folders import open_label_folder
from rw3d_prep.sparse_labels import make
from rw3d_prep.sparse_labels.coarse import make_coarse
from rw3d_prep.sparse_labels.dense import dense_frames
from rw3d_prep.sparse_labels.instances import read_instances
from rw3d_prep.sparse_labels.make import keyed_generator, make_labels, read_curves
from rw3d_prep.sparse_labels.points import draw_points, kept_by_nearest, make_points
from rw3d_prep.sparse_labels.scribbles import PRESETS
from rw3d_prep.sparse_labels.settings import CoarseSettings, PointSettings, ScribbleSettings

SIZE = (64, 96)
CAR, POLE, ROAD, SKY = 12, 5, 0, 18  # train ids of KITTI-360 in the builder's street
SCRIBBLES = ScribbleSettings(PRESETS["default"], (0.9,))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


@pytest.fixture
def kitti(tmp_path, monkeypatch):
    """A working folder with a drive of four frames, and its dense frames."""
    monkeypatch.chdir(tmp_path)
    root = kitti360_tree(tmp_path / "data" / "kitti360", size=SIZE)
    return dense_frames(root, DatasetConfig(name="kitti360"), dataset_entry("kitti360"))


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["rw3d-prep", *arguments])
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def made(frames, settings, out, seed=0, workers=1):
    return make_labels(frames, "kitti360", settings, out, seed, workers)


def tree(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# points


@given(
    hnp.arrays(
        np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20)), elements=st.sampled_from([0, 3, 7, IGNORE])
    ),
    st.floats(0.2, 1.0),
    st.integers(0, 9),
)
def test_training_at_the_scale_finds_exactly_one_pixel_per_class(dense, scale, seed):
    label = draw_points(make_points(dense, rng(seed), scale), dense.shape)
    assert (label[label != IGNORE] == dense[label != IGNORE]).all()
    seen, whole = slow_nearest(label, scale), slow_nearest(dense, scale)
    classes = set(np.unique(whole)) - {IGNORE}
    assert {int(i): int((seen == i).sum()) for i in np.unique(seen) if i != IGNORE} == dict.fromkeys(classes, 1)
    assert np.count_nonzero(label != IGNORE) == len(classes), "no pixel that training would not see"


def slow_nearest(image, scale):
    """Pixel by pixel: the source centre nearest to (x + 0.5) / s − 0.5, the larger of two equally near."""
    small = [max(1, round(n * scale)) for n in image.shape]
    out = np.empty(small, image.dtype)
    for row in range(small[0]):
        for column in range(small[1]):
            place = []
            for x, n, m in zip((row, column), image.shape, small, strict=True):
                centre = (x + 0.5) * n / m - 0.5
                place.append(min(range(n), key=lambda i, c=centre: (round(abs(i - c), 9), -i)))
            out[row, column] = image[tuple(place)]
    return out


def test_points_survive_the_trainers_own_resize():
    geometry = pytest.importorskip("rw3d_train.data.geometry2d")
    dense = np.random.default_rng(0).integers(0, 12, (376, 1408), dtype=np.uint8)
    label = draw_points(make_points(dense, rng(), 0.5), dense.shape)
    small = (188, 704)
    resized = geometry.warp_labels(label, geometry.resize_matrix(dense.shape, small), small)
    assert np.bincount(resized.ravel(), minlength=256)[:IGNORE].tolist() == [1] * 12 + [0] * 243


def test_every_kept_pixel_is_as_likely():
    dense = np.zeros((3, 4), np.uint8)
    dense[:, 3] = IGNORE
    generator, hits = rng(), np.zeros((3, 4), int)
    for _ in range(4500):
        (point,) = make_points(dense, generator)
        hits[point.row, point.column] += 1
    assert (hits[:, 3] == 0).all()
    assert np.abs(hits[:, :3] - 500).max() < 4 * np.sqrt(500)


def test_nearest_keeps_the_larger_of_two_equally_near():
    assert kept_by_nearest(8, 0.5).tolist() == [1, 3, 5, 7]
    assert kept_by_nearest(5, 1.0).tolist() == [0, 1, 2, 3, 4]


def test_one_point_per_instance_and_one_for_the_rest_of_a_class():
    dense = np.full((6, 9), 4, np.uint8)
    dense[0] = IGNORE
    instances = np.zeros((6, 9), np.uint16)
    instances[1:3], instances[3, :5] = 26001, 26002
    points = make_points(dense, rng(), instances=instances)
    assert [(point.train_id, point.instance) for point in points] == [(4, 0), (4, 26001), (4, 26002)]
    assert all(instances[point.row, point.column] == point.instance for point in points)


def test_kitti360_instances_lie_beside_semantic(tmp_path):
    dense = tmp_path / "image_00" / "semantic" / "0000000003.png"
    stored = np.array([[7000, 26000, 26001, 26012]], np.uint16)
    save_image(tmp_path / "image_00" / "instance" / dense.name, stored)
    assert read_instances(dense, (1, 4)).tolist() == [[0, 0, 26001, 26012]], "number 0 means no instance"


def test_cityscapes_instances_count_from_zero(tmp_path):
    dense = tmp_path / "aachen_000000_000019_gtFine_labelIds.png"
    stored = np.array([[7, 26, 26000, 26001]], np.uint16)
    save_image(tmp_path / "aachen_000000_000019_gtFine_instanceIds.png", stored)
    assert read_instances(dense, (1, 4)).tolist() == [[0, 0, 26000, 26001]], "below 1000 means no instance"


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (None, ("no such file", "--per class")),
        (np.zeros((1, 4), np.uint8), ("mode L", "16-bit")),
        (np.zeros((2, 4), np.uint16), ("4×2", "4×1")),
    ],
)
def test_unusable_instances_are_named(tmp_path, pixels, words):
    path = tmp_path / "instance" / "1.png"
    if pixels is not None:
        save_image(path, pixels)
    with pytest.raises(UserError) as error:
        read_instances(tmp_path / "semantic" / "1.png", (1, 4))
    assert all(word in str(error.value) for word in (str(path), *words))


def test_dataset_without_instances_says_which_have_them(tmp_path):
    with pytest.raises(UserError, match=r"label.1\.png: no instance image.*KITTI-360.*Cityscapes.*--per class"):
        read_instances(tmp_path / "label" / "1.png", (1, 4))


# folders of labels


def test_points_of_a_drive_are_stored_and_described(kitti, tmp_path):
    counts = made(kitti, PointSettings(), tmp_path / "labels" / "points")
    folder = open_label_folder("labels/points", "kitti360", dataset_entry("kitti360"))
    assert folder.kind == "points"
    for frame, file in kitti:
        path = folder.file(frame)
        with Image.open(path) as image:
            assert image.mode == "P"
        dense = file.read(SIZE)
        label = LabelFile(path, "train_ids", file.classes).read(SIZE)
        stored = json.loads(
            (tmp_path / "labels/points/points" / path.relative_to(folder.path)).with_suffix(".json").read_text()
        )
        assert stored["size"] == list(SIZE)
        assert sorted(label[label != IGNORE]) == sorted(set(dense.ravel()) - {IGNORE})
        assert all(
            label[p["row"], p["column"]] == p["train_id"] == dense[p["row"], p["column"]] for p in stored["points"]
        )
        assert {"class": "car", "train_id": CAR, "instance": None}.items() <= stored["points"][3].items()
    described = json.loads((tmp_path / "labels/points/labels.json").read_text())
    assert described["settings"] == {"per_instance": False, "scale": 1.0}
    assert described["pixels"]["car"] == described["images"] == 4
    assert described["images_without_label"] == 0
    assert described["labelled_share"] == pytest.approx(5 / 64 / 96, abs=1e-6)
    assert counts[tmp_path / "labels" / "points"].share == 5 / 64 / 96


def test_reconstruct_takes_them(kitti, monkeypatch, capsys):
    assert run(monkeypatch, "make-labels", "points", "--dataset", "kitti360", "--workers", "1") == 0
    shown = capsys.readouterr().out
    assert "labels/kitti360/points" in shown
    assert "100.00%" in shown
    command = ("reconstruct", "--dataset", "kitti360", "--backend", "sensor", "--labels", "labels/kitti360/points")
    assert run(monkeypatch, *command) == 0


def test_next_hint_is_the_command_to_run(kitti, monkeypatch, caplog):
    monkeypatch.setattr(cli, "configure", lambda: None)
    with caplog.at_level("INFO", logger="rw3d"):
        run(monkeypatch, "make-labels", "coarse", "--dataset", "kitti360", "--workers", "1")
    assert "data/kitti360" in caplog.messages[0]
    assert caplog.messages[-1] == "next: rw3d-prep reconstruct --dataset kitti360 --labels labels/kitti360/coarse"


def test_dataset_whose_labels_are_dense_uses_them(tmp_path):
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "train.txt").write_text("0001TP/0001TP_000030\n")
    save_image(tmp_path / "0001TP" / "image" / "0001TP_000030.jpg", np.zeros((30, 40, 3), np.uint8))
    dense = np.full((30, 40), 3, np.uint8)
    dense[:10], dense[20:, :5] = 0, 11
    save_image(tmp_path / "0001TP" / "label" / "0001TP_000030.png", dense)
    ((frame, file),) = dense_frames(tmp_path, DatasetConfig(name="camvid", labels="label"), dataset_entry("camvid"))
    assert file.path == frame.label
    assert set(np.unique(file.read((30, 40)))) == {2, 10, IGNORE}


def test_ids_left_out_of_evaluation_alone_are_labelled(kitti):
    frame, file = kitti[0]
    garage = np.full(SIZE, 34, np.uint8)
    save_image(frame.truth, garage)
    assert (file.read(SIZE) == 2).all(), "garage trains as building"


def test_workers_do_not_change_a_byte(kitti, tmp_path, monkeypatch):
    monkeypatch.setattr(make, "CHUNK", 1)
    made(kitti, SCRIBBLES, tmp_path / "one")
    made(kitti, SCRIBBLES, tmp_path / "two", workers=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert len(tree(tmp_path / "one")) == 4 + 4 + 2


def test_seed_and_key_decide_the_numbers(kitti):
    frames = [frame for frame, _ in kitti]
    drawn = {tuple(keyed_generator(seed, frame).random(3)) for seed in (0, 1) for frame in frames}
    assert len(drawn) == 8
    assert keyed_generator(0, frames[0]).random() == keyed_generator(0, frames[0]).random()


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(kitti, tmp_path, monkeypatch):
    made(kitti, SCRIBBLES, tmp_path / "whole")
    count, draw = 0, make.draw_scribbles

    def killed(*arguments):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return draw(*arguments)

    monkeypatch.setattr(make, "draw_scribbles", killed)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        made(kitti, SCRIBBLES, out)
    with pytest.raises(UserError, match=r"no finished labels; make some with"):
        open_label_folder(str(out), "kitti360", dataset_entry("kitti360"))
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert len(times) == 2
    made(kitti, SCRIBBLES, out)
    assert tree(out) == tree(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == then for path, then in times.items()), "finished images are kept"


def test_a_finished_folder_that_lacks_an_image_counts_as_unfinished_until_it_has_it(kitti, tmp_path, monkeypatch):
    made(kitti, CoarseSettings(), tmp_path / "out")
    before = tree(tmp_path / "out")
    next((tmp_path / "out").rglob("*.png")).unlink()
    monkeypatch.setattr(make, "make_coarse", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        made(kitti, CoarseSettings(), tmp_path / "out")
    assert not (tmp_path / "out" / "labels.json").exists()
    monkeypatch.undo()
    made(kitti, CoarseSettings(), tmp_path / "out")
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("settings", "seed", "changed"),
    [
        (PointSettings(), 7, "seed: 0 → 7"),
        (PointSettings(scale=0.5), 0, "settings.scale: 1.0 → 0.5"),
        (CoarseSettings(), 0, "kind: 'points' → 'coarse'"),
    ],
)
def test_labels_made_otherwise_are_never_mixed(kitti, tmp_path, settings, seed, changed):
    made(kitti, PointSettings(), tmp_path / "out")
    before = tree(tmp_path / "out")
    with pytest.raises(UserError) as error:
        made(kitti, settings, tmp_path / "out", seed)
    assert str(tmp_path / "out") in str(error.value)
    assert changed in str(error.value)
    assert "--out" in str(error.value)
    assert tree(tmp_path / "out") == before


def test_damaged_description_and_images_of_unknown_making_are_refused(kitti, tmp_path):
    out = tmp_path / "out"
    made(kitti, PointSettings(), out)
    (out / "labels.json").write_text("{")
    with pytest.raises(UserError, match=r"labels\.json: damaged .*delete the folder"):
        made(kitti, PointSettings(), out)
    (out / "labels.json").unlink()
    with pytest.raises(UserError, match=r"out: holds label images but no labels\.json.*choose another --out"):
        made(kitti, PointSettings(), out)


# lengths


def test_lengths_trim_the_same_stored_curves(kitti, tmp_path):
    lengths = (1.0, 0.8, 0.5, 0.3, 0.1)
    counts = made(kitti, ScribbleSettings(PRESETS["default"], lengths), tmp_path / "out")
    assert [folder.name for folder in counts] == [f"length_{length}" for length in lengths]
    pixels = [int(count.made.sum()) for count in counts.values()]
    assert pixels == sorted(pixels, reverse=True)
    assert pixels[-1] < 0.6 * pixels[0]
    made(kitti, SCRIBBLES, tmp_path / "alone")
    curves = sorted((tmp_path / "out" / "curves").rglob("*.json"))
    assert len(curves) == 4
    for path in curves:
        alone = tmp_path / "alone" / path.relative_to(tmp_path / "out")
        assert path.read_bytes() == alone.read_bytes(), "one length or five: the curves stay whole"
    for folder, length in zip(counts, lengths, strict=True):
        assert open_label_folder(str(folder), "kitti360", dataset_entry("kitti360")).kind == "scribbles"
        assert json.loads((folder / "labels.json").read_text())["settings"]["length"] == length


def test_another_length_later_uses_the_curves_that_are_there(kitti, tmp_path, monkeypatch):
    made(kitti, ScribbleSettings(PRESETS["default"], (1.0, 0.5)), tmp_path / "out")
    monkeypatch.delattr(make, "make_curves")
    counts = made(kitti, ScribbleSettings(PRESETS["default"], (0.5, 0.3)), tmp_path / "out")
    assert counts[tmp_path / "out" / "length_0.3"].images == 4
    with pytest.raises(UserError, match=r"out: holds labels made otherwise \(seed: 0 → 1\)"):
        made(kitti, ScribbleSettings(PRESETS["default"], (0.2, 0.1)), tmp_path / "out", seed=1)


def test_stored_curves_can_be_read_and_damaged_ones_are_named(kitti, tmp_path):
    made(kitti, SCRIBBLES, tmp_path / "out")
    path = sorted((tmp_path / "out" / "curves").rglob("*.json"))[0]
    stored = json.loads(path.read_text())["curves"]
    assert {one["class"] for one in stored} >= {"road", "building", "sky"}
    curves = read_curves(path)
    assert [len(curve.points) for curve in curves] == [50] * len(stored)
    path.write_text('{"curves": [{"train_id": 0}]}')
    with pytest.raises(UserError, match=r"\.json: holds no curves .*delete it"):
        read_curves(path)


@pytest.mark.parametrize("text", ["", "0.5,x", "0", "1.5", "-0.1", "0.5,0.5", "nan"])
def test_lengths_that_are_none_are_refused(text):
    with pytest.raises(UserError, match=rf"length {text}: expected"):
        parse_lengths(text)


# coarse


def test_coarse_keeps_away_from_borders_but_keeps_thin_things():
    dense = np.zeros((200, 300), np.uint8)
    dense[40:160, 60:200], dense[20:180, 250:254], dense[90:110, 120:140] = 1, 2, IGNORE
    label = make_coarse(dense, 0.05)
    labelled = label != IGNORE
    assert (label[labelled] == dense[labelled]).all()
    assert (label[40:45, 60:200] == IGNORE).all(), "10 pixels of margin, less 5 that simplification may give back"
    assert np.count_nonzero(label[60:140, 70:190] == 1) > 0.8 * (80 * 120 - 40 * 40)
    assert (label[100, 115:145] == IGNORE).all(), "a hole stays a hole, with a margin around it"
    assert np.count_nonzero(label == 2) > 100


@given(hnp.arrays(np.uint8, (20, 25), elements=st.sampled_from([0, 1, IGNORE])), st.floats(0, 0.3))
def test_coarse_never_labels_another_class(dense, margin):
    label = make_coarse(dense, margin)
    assert (label[label != IGNORE] == dense[label != IGNORE]).all()


def test_coarse_labels_by_people_are_used_instead(kitti, tmp_path, monkeypatch, caplog):
    (tmp_path / "data" / "kitti360" / "gtCoarse").mkdir()
    monkeypatch.setattr(cli, "configure", lambda: None)
    with caplog.at_level("INFO", logger="rw3d"):
        assert run(monkeypatch, "make-labels", "coarse", "--dataset", "kitti360") == 0
    assert "coarse labels by people are there" in caplog.messages[-1]
    assert "--labels gtCoarse" in caplog.messages[-1]
    assert not (tmp_path / "labels").exists()


# bad input


def test_scribbles_are_no_dense_labels(kitti, tmp_path):
    root = tmp_path / "data" / "kitti360"
    for frame in range(4):
        kitti_files(root, 0, frame)["semantic"].unlink()
    with pytest.raises(
        UserError, match=r"scribble.*\.png: labels only \d+\.\d% of its pixels, so it is a sparse label"
    ):
        dense_frames(root, DatasetConfig(name="kitti360"), dataset_entry("kitti360"))
    for frame in range(4):
        kitti_files(root, 0, frame)["scribble"].unlink()
    with pytest.raises(UserError, match=r"none of the 4 frames has a dense label; .*datasets check kitti360"):
        dense_frames(root, DatasetConfig(name="kitti360"), dataset_entry("kitti360"))


def test_frames_without_a_dense_label_are_left_out_and_told(kitti, tmp_path, caplog):
    root = tmp_path / "data" / "kitti360"
    kitti_files(root, 0, 1)["semantic"].unlink()
    with caplog.at_level("INFO", logger="rw3d"):
        frames = dense_frames(root, DatasetConfig(name="kitti360"), dataset_entry("kitti360"))
    assert [frame.id for frame, _ in frames] == [0, 2, 3]
    assert caplog.messages == ["1 of 4 frames have no dense label and get no sparse one"]


def test_a_recipe_with_made_labels_still_finds_the_dense_ones(kitti, tmp_path):
    made(kitti, PointSettings(), tmp_path / "points")
    config = DatasetConfig(name="kitti360", labels=str(tmp_path / "points"))
    again = dense_frames(tmp_path / "data" / "kitti360", config, dataset_entry("kitti360"))
    assert [file.path for _, file in again] == [file.path for _, file in kitti]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("points", "--scale", "1.5"), ("--scale 1.5", "up to 1")),
        (("points", "--per", "instance"), ("instance", "no such file", "--per class")),
        (("scribbles", "--length", "0.5", "--lengths", "1,0.5"), ("--length", "contradict")),
        (("scribbles", "--lengths", "2"), ("length 2", "up to 1")),
        (("coarse", "--margin", "3"), ("--margin 3", "0.01")),
        (("points", "--root", "elsewhere"), ("elsewhere: no such folder",)),
    ],
)
def test_bad_options_are_one_sentence(kitti, monkeypatch, capsys, options, words):
    assert run(monkeypatch, "make-labels", *options, "--dataset", "kitti360", "--workers", "1") == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words)
    assert "Traceback" not in said


def test_unknown_dense_id_stops_the_run_with_file_and_value(kitti, tmp_path, monkeypatch, capsys):
    frame, file = kitti[2]
    dense = np.array(Image.open(file.path))
    dense[3, 3] = 77
    save_image(frame.truth, dense)
    assert run(monkeypatch, "make-labels", "scribbles", "--dataset", "kitti360", "--workers", "1") == 2
    said = capsys.readouterr().err
    assert "semantic/0000000002.png: unknown label id 77" in said
    assert not (tmp_path / "labels/kitti360/scribbles/labels.json").exists()


def test_a_file_in_place_of_the_folder_is_named(kitti, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="out: cannot be written"):
        made(kitti, PointSettings(), tmp_path / "out")


def test_every_preset_can_be_named():
    assert {name.value for name in PresetName} == PRESETS.keys()
