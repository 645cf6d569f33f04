"""`labels check`: counts per class, and files that are not what data_manifest.yaml says."""

import sys

import numpy as np
import pytest
from PIL import Image

from builders import kitti360_tree, kitti_files, save_image
from rw3d_common.errors import UserError
from rw3d_common.labels import IGNORE
from rw3d_common.manifest import dataset_entry
from rw3d_prep import cli
from rw3d_prep.check_labels import check_labels, labels_table
from rw3d_prep.datasets import DatasetConfig, read_frames

SIZE = (48, 96)
ENTRY = dataset_entry("kitti360")


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return kitti360_tree(tmp_path / "data" / "kitti360", size=SIZE)


def frames(root, labels="scribble"):
    return read_frames(root, DatasetConfig(name="kitti360", labels=labels)).frames


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["rw3d-prep", *arguments])
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def raw(path):
    with Image.open(path) as image:
        return np.array(image)


def test_counts_are_those_of_the_files(root):
    sparse, dense = check_labels(frames(root), ENTRY, "rgb_equal")
    assert (sparse.kind, dense.kind) == ("sparse", "dense")
    for checked, name in ((sparse, "scribble"), (dense, "semantic")):
        ids = np.stack([raw(kitti_files(root, 0, frame)[name]).reshape(*SIZE, -1)[..., 0] for frame in range(4)])
        for item in ENTRY.truth_map().classes:
            belongs = np.isin(ids, item.raw_ids)
            assert checked.pixels[item.train_id] == belongs.sum()
            assert checked.images[item.train_id] == belongs.any(axis=(1, 2)).sum()
        assert checked.pixels.sum() == ids.size
        assert checked.share == pytest.approx(np.isin(ids, [7, 11, 17, 23, 26]).mean())
        assert (checked.files, checked.frames, list(checked.empty)) == (4, 4, [])


def test_two_workers_count_the_same(root):
    alone, together = (check_labels(frames(root), ENTRY, "rgb_equal", workers)[1] for workers in (1, 2))
    assert (alone.pixels == together.pixels).all()


def test_images_without_labels_are_counted_and_named(root):
    kitti_files(root, 0, 1)["scribble"].unlink()
    save_image(kitti_files(root, 0, 2)["scribble"], np.zeros((*SIZE, 3), np.uint8))
    sparse, dense = check_labels(frames(root), ENTRY, "rgb_equal")
    assert (sparse.files, sparse.frames, dense.files) == (3, 4, 4)
    assert list(sparse.empty) == ["train/2013_05_28_drive_0000_sync/0000000002 image_00"]
    cells = [list(column.cells) for column in labels_table(sparse, ENTRY.class_map()).columns]
    rows = dict(zip(cells[1], cells[4], strict=True))
    assert rows["frames without a label image"] == "1"
    assert rows[f"images in which nothing is labelled ({sparse.empty[0]})"] == "1"


def test_the_command_shows_both_kinds(root, monkeypatch, capsys):
    assert run(monkeypatch, "labels", "check", "--dataset", "kitti360", "--workers", "1") == 0
    shown = capsys.readouterr().out
    assert "sparse labels: 4 images stored as rgb_equal" in shown
    assert "dense labels: 4 images stored as gray8" in shown
    assert all(name in shown for name in ("road", "building", "pole", "sky", "car"))


def test_made_labels_can_be_checked(root, monkeypatch, capsys):
    run(monkeypatch, "make-labels", "points", "--dataset", "kitti360", "--workers", "1")
    capsys.readouterr()
    command = ("labels", "check", "--dataset", "kitti360", "--labels", "labels/kitti360/points", "--workers", "1")
    assert run(monkeypatch, *command) == 0
    assert "sparse labels: 4 images stored as train_ids" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["scribble", "semantic"])
def test_unknown_id_exits_2_naming_file_and_value(root, monkeypatch, capsys, name):
    path = kitti_files(root, 0, 3)[name]
    ids = raw(path)
    ids[5, 7] = 99
    save_image(path, ids)
    assert run(monkeypatch, "labels", "check", "--dataset", "kitti360", "--workers", "1") == 2
    said = capsys.readouterr().err
    assert f"{name}/0000000003.png: unknown label id 99" in said
    assert "Traceback" not in said


def other_encodings():
    ids = np.full(SIZE, 7, np.uint8)
    palette = Image.fromarray(ids)
    palette.putpalette(list(range(256)) * 3)
    rgb = np.repeat(ids[..., None], 3, axis=2)
    return {
        "palette": (palette, "is an 8-bit palette image, where", "truth_encoding: palette8"),
        "16-bit": (Image.fromarray(ids.astype(np.uint16) * 1000), "is one 16-bit channel", "convert it"),
        "RGB of ids": (Image.fromarray(rgb), "is three 8-bit channels, all equal", "truth_encoding: rgb_equal"),
        "RGB colours": (Image.fromarray(rgb + np.uint8([0, 1, 2])), "is three 8-bit channels, where", "convert it"),
        "RGBA": (Image.fromarray(rgb).convert("RGBA"), "is four 8-bit channels", "convert it"),
    }


@pytest.mark.parametrize("name", other_encodings())
def test_a_file_stored_otherwise_is_named_with_what_it_is(root, name):
    image, found, mend = other_encodings()[name]
    path = kitti_files(root, 0, 2)["semantic"]
    image.save(path)
    with pytest.raises(UserError) as error:
        check_labels(frames(root), ENTRY, "rgb_equal")
    assert all(word in str(error.value) for word in (str(path), found, "truth_encoding declares gray8", mend))


def test_sparse_labels_name_their_own_key(root):
    path = kitti_files(root, 0, 0)["scribble"]
    save_image(path, np.zeros(SIZE, np.uint16))
    with pytest.raises(UserError, match=r"scribble.*16-bit channel, where label_encoding declares rgb_equal"):
        check_labels(frames(root), ENTRY, "rgb_equal")


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "cannot be read as an image"), (b"\x89PNG\r\n\x1a\n", "cannot be read as an image")]
)
def test_damaged_files_are_named(root, content, words):
    path = kitti_files(root, 0, 1)["semantic"]
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"semantic.0000000001\.png: {words}"):
        check_labels(frames(root), ENTRY, "rgb_equal")


def test_label_of_another_size_is_named(root):
    save_image(kitti_files(root, 0, 1)["semantic"], np.full((10, 20), 7, np.uint8))
    with pytest.raises(UserError, match=r"0000000001\.png: label of 20×10 for an image of 96×48"):
        check_labels(frames(root), ENTRY, "rgb_equal")


def test_no_labels_at_all_says_where_they_belong(root):
    for frame in range(4):
        for name in ("scribble", "semantic"):
            kitti_files(root, 0, frame)[name].unlink()
    with pytest.raises(UserError, match=r"none of the 4 frames has a label; `rw3d-prep datasets check`"):
        check_labels(frames(root), ENTRY, "rgb_equal")


def test_nothing_counts_as_labelled_at_255(root):
    sparse, _ = check_labels(frames(root), ENTRY, "rgb_equal")
    assert sparse.pixels[IGNORE] == 4 * SIZE[0] * SIZE[1] - sparse.pixels[:IGNORE].sum() > 0
