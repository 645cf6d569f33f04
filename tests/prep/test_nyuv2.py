"""NYU Depth v2 in its official byte format: axes, 1-based lists, cells of strings, 40 classes, and the white frame."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.io import savemat

from builders import cut_short
from nyuv2_builder import CLASSES, RAW, TEST, TRAIN, nyuv2_root, write_mapping, write_splits
from rw3d_common import UserError, open_collection
from rw3d_common.images import LabelFile, encode_train_ids, image_size, read_image, read_label
from rw3d_common.manifest import dataset_entry
from rw3d_prep.check import check_layout
from rw3d_prep.config import load_config
from rw3d_prep.datasets import DatasetConfig, read_frames
from rw3d_prep.datasets.nyuv2_images import FRAME_WIDTH, WHITE, MatImage, white_frame
from rw3d_prep.pipeline import find_batches, reconstruct
from rw3d_prep.reconstruct.sensor import read_depth
from rw3d_prep.sample_views import sample_views
from rw3d_prep.sampling import SampleConfig
from rw3d_prep.verify import verify
from rw3d_prep.workers import run_in_processes
from rw3d_train.data.dataset import SceneDataset

ENTRY = dataset_entry("nyuv2")
SIZE = (480, 640)
LABELED = "nyu_depth_v2_labeled.mat"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The three official files, and what they show; read only."""
    return nyuv2_root(tmp_path_factory.mktemp("nyuv2"))


@pytest.fixture
def root(made, tmp_path):
    """Copies that a test may break."""
    folder = tmp_path / "nyuv2"
    folder.mkdir()
    for path in made[0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def config(**values):
    return DatasetConfig(name="nyuv2", **{"labels": "", **values})


def error_of(action) -> str:
    with pytest.raises(UserError) as raised:
        action()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def expected_truth(shown, index):
    """Train ids of picture `index` (from 1), class 1 being train id 0."""
    raw = shown.labels[index - 1].astype(int)
    return np.where(raw == 0, 255, shown.map_class[raw - 1].astype(int) - 1)


# What a frame holds


def test_official_lists_count_from_one_and_recordings_are_sequences(made):
    found = read_frames(made[0], config(splits=("train", "val")))
    assert [(frame.split, frame.sequence, frame.id) for frame in found.frames] == [
        ("train", "kitchen_0004", 1),
        ("train", "kitchen_0004", 2),
        ("train", "kitchen_0004", 5),
        ("val", "office_0001b", 3),
        ("val", "office_0001b", 4),
        ("val", "bathroom_0007", 6),
    ]
    assert found.notes == []
    assert {frame.camera for frame in found.frames} == {"color"}


def test_pictures_stand_upright_and_are_not_mirrored(made):
    root, shown = made
    for frame in read_frames(root, config()).frames:
        assert image_size(frame.image) == SIZE
        np.testing.assert_array_equal(read_image(frame.image), shown.images[frame.id - 1])


def test_depth_is_the_measured_one_in_millimetres(made):
    root, shown = made
    for frame in read_frames(root, config()).frames:
        metres = read_depth(frame.depth.path) * frame.depth.unit
        expected = shown.depths[frame.id - 1]
        assert np.abs(metres - expected).max() <= 0.0005 + 1e-6
        assert ((metres == 0) == (expected == 0)).all()
        assert frame.intrinsics.tolist() == [[518.8579, 0, 325.5824], [0, 519.4696, 253.7362], [0, 0, 1]]
        assert frame.depth.intrinsics is frame.intrinsics
        assert frame.camera_to_world is None


def test_depths_that_are_no_numbers_are_not_measured(root):
    with h5py.File(root / LABELED, "r+") as file:
        file["rawDepths"][0, :5, 0] = [np.nan, np.inf, -1, 70.0, 1.25]  # the first row's first columns
    depth = read_depth(MatImage(root / LABELED, "rawDepths", 1))
    assert depth[0, :5].tolist() == [0, 0, 0, 0, 1250]


def test_truth_has_40_classes_and_0_is_unlabelled(made):
    root, shown = made
    for frame in read_frames(root, config()).frames:
        raw = read_label(frame.truth, "gray8", SIZE)
        truth = LabelFile(frame.truth, ENTRY.truth_encoding, ENTRY.truth_map()).read(SIZE)
        np.testing.assert_array_equal(truth, expected_truth(shown, frame.id))
        assert (raw.min(), raw.max()) == (0, 40)
    assert [item.name for item in ENTRY.classes[:3]] == ["wall", "floor", "cabinet"]
    assert (len(ENTRY.classes), all(item.in_3d for item in ENTRY.classes)) == (40, True)


@given(
    arrays(
        np.uint8, (2 * FRAME_WIDTH + 7, 2 * FRAME_WIDTH + 3, 3), elements=st.sampled_from([0, WHITE - 1, WHITE, 255])
    )
    | arrays(np.uint8, (5, 9, 3), elements=st.sampled_from([0, 255, 255, 255]))
)
def test_white_frame_against_walking_inwards(image):
    height, width = image.shape[:2]
    expected = np.zeros((height, width), bool)
    lines = [[(r, c) for r in rows] for c in range(width) for rows in (range(height), range(height)[::-1])]
    lines += [[(r, c) for c in columns] for r in range(height) for columns in (range(width), range(width)[::-1])]
    for line in lines:
        for place in line[:FRAME_WIDTH]:
            if min(image[place]) < WHITE:
                break
            expected[place] = True
    np.testing.assert_array_equal(white_frame(image), expected)


def test_white_frame_of_a_picture(made):
    root, shown = made
    (frame, *_) = read_frames(root, config()).frames
    masked = read_label(frame.exclude, "gray8", SIZE) != 0
    expected = np.zeros(SIZE, bool)
    expected[:8] = expected[-15:] = expected[:, :9] = expected[:, -12:] = True
    for row in range(480):
        expected[row, : 9 + row // 120] = True  # the wedge
    np.testing.assert_array_equal(masked, expected)
    assert (shown.images[0, 210, 310] == 255).all()  # the lamp is white as well, and stays
    assert not masked[210, 310]


def test_other_processes_read_the_same_bytes(made):
    frame = read_frames(made[0], config()).frames[2]
    sources = [frame.image, frame.truth, frame.exclude, frame.depth.path]
    here = [source.read_bytes() for source in sources]
    finished = run_in_processes(MatImage.read_bytes, [(source,) for source in sources], 2, lambda: None)
    assert {index: future.result() for index, future in finished} == dict(enumerate(here))


def test_pictures_of_a_recording_become_one_batch(made):
    batches, notes = find_batches(load_config("nyuv2", None, None, None, []), made[0])
    assert [[frame.id for frame in batch.frames] for batch in batches] == [list(TRAIN)]
    assert notes == []


def test_every_file_of_the_layout_is_known(made):
    found = check_layout(made[0], ENTRY)
    assert (found.unexpected, found.missing) == ([], [])


# From the files to training items


@pytest.fixture(scope="module")
def trained(made, tmp_path_factory):
    """Scenes by measured depth ("Real 3D"), with labels of its own folder, samples, and the data taken away."""
    root, shown = nyuv2_root(tmp_path_factory.mktemp("data") / "nyuv2", made[1])
    labels, out = root.parent / "labels", root.parent / "stores"
    for index in TRAIN:
        path = labels / "train" / "kitchen_0004" / "color" / f"{index:010d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_train_ids(sparse_label(shown, index), ENTRY.class_map()))
    description = {"dataset": "nyuv2", "kind": "scribbles", "class_map_hash": ENTRY.class_map().hash}
    (labels / "labels.json").write_text(json.dumps(description))
    recipe = load_config("nyuv2", None, "sensor", 1, [f"dataset.labels={labels}"])
    assert reconstruct(recipe, root, out, workers=1).exit_code() == 0
    assert sample_views(out, SampleConfig(points=3000, seed=1), workers=1).exit_code() == 0
    assert verify(out) == []
    (root / LABELED).unlink()
    return out


def sparse_label(shown, index):
    label = np.full(SIZE, 255, np.uint8)
    label[50:55, 200:600] = expected_truth(shown, index)[50:55, 200:600]
    return label


def test_points_show_their_pixel_without_holes_and_frame(trained, made):
    _, shown = made
    for scene in open_collection(trained):
        view = scene.view(0)
        index = view.frame_id
        row, column = view.rows_columns.T
        depth = shown.depths[index - 1]
        frame = white_frame(shown.images[index - 1])
        assert len(row) == np.count_nonzero((depth > 0) & ~frame)
        assert not frame[row, column].any()
        assert np.abs(view.position[:, 2] - depth[row, column]).max() < 0.00051
        expected_x = (column - 325.5824) / 518.8579 * view.position[:, 2]
        assert np.abs(view.position[:, 0] - expected_x).max() < 1e-5
        np.testing.assert_array_equal(view.color, shown.images[index - 1][row, column])
        np.testing.assert_array_equal(view.truth, expected_truth(shown, index)[row, column])


def test_training_needs_nothing_but_the_store(trained, made):
    _, shown = made
    dataset = SceneDataset(trained)
    assert len(dataset) == len(TRAIN)
    for item, index in zip(dataset, TRAIN, strict=True):
        assert item.key == f"train/kitchen_0004/{index:010d}/color#0"
        np.testing.assert_array_equal(item.image, shown.images[index - 1])
        np.testing.assert_array_equal(item.truth, expected_truth(shown, index))
        np.testing.assert_array_equal(item.label, sparse_label(shown, index))
        row, column = item.pixel.astype(int).T
        np.testing.assert_array_equal(item.image[row, column], item.color[: item.n_own])
        np.testing.assert_array_equal(item.label[row, column], item.point_label[: item.n_own])


# What is missing or wrong


@pytest.mark.parametrize("name", [LABELED, "splits.mat", "classMapping40.mat"])
@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_missing_and_damaged_files(root, name, damage):
    path = root / name
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        cut_short(path)
    else:
        path.write_text("<html>404</html>" * 20)
    message = error_of(lambda: read_frames(root, config()))
    expected = "no such file; " if damage == "missing" else "cannot be read as MATLAB"
    assert f"{path}: {expected}" in message
    assert "download" in message or "`rw3d-prep datasets` says from where" in message


def change_array(root, name, values):
    with h5py.File(root / LABELED, "r+") as file:
        del file[name]
        if values is not None:
            file[name] = values


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("images", np.zeros((480, 640, 3, 6), np.uint8), ["'images' is uint8 (480, 640, 3, 6)", "(6, 3, 640, 480)"]),
        ("rawDepths", np.zeros((6, 480, 640), np.float32), ["'rawDepths' is float32 (6, 480, 640)", "(6, 640, 480)"]),
        ("labels", np.zeros((6, 640, 480), np.uint8), ["'labels' is uint8", "uint16"]),
        ("rawDepths", None, ["has no 'rawDepths'"]),
        ("names", None, ["has no cell array 'names'"]),
        ("rawRgbFilenames", np.zeros((1, 6), np.uint16), ["has no cell array 'rawRgbFilenames'"]),
    ],
)
def test_files_saved_anew_are_refused(root, name, values, words):
    """Above all with their axes in MATLAB's order, which would turn and mirror every picture."""
    change_array(root, name, values)
    message = error_of(lambda: read_frames(root, config()))
    assert all(word in message for word in [str(root / LABELED), *words, "use the official", "unchanged"]), message


@pytest.mark.parametrize(
    "stored", [np.zeros(2, np.uint64), np.frombuffer("r-1.ppm".encode("utf-16-le"), np.uint16)[:, None]]
)
def test_a_picture_without_recording(root, stored):
    """MATLAB stores an empty string as its size."""
    with h5py.File(root / LABELED, "r+") as file:
        file["rawRgbFilenames"][0, 3] = file.create_dataset("#refs#/other", data=stored).ref
    message = error_of(lambda: read_frames(root, config()))
    assert "'rawRgbFilenames' names no folder for picture 4; download it again" in message


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ([0, 1, 4], [2, 3, 5], ["pictures 0 to 5", "1 to 6", "count from 1"]),
        ([1, 2, 5], [3, 4, 7], ["pictures 1 to 7", "official lists"]),
        ([1, 2, 5], [3, 5, 6], ["picture 5 twice", "official lists"]),
        ([], [], ["pictures 0 to 0", "1 to 6", "official lists"]),
    ],
)
def test_lists_that_count_from_zero_or_overlap(root, train, test, words):
    write_splits(root / "splits.mat", tuple(train), tuple(test))
    message = error_of(lambda: read_frames(root, config()))
    assert all(word in message for word in [str(root / "splits.mat"), *words]), message


def test_mappings_of_other_classes(root):
    path, even = root / "classMapping40.mat", np.arange(RAW, dtype=np.uint8)
    savemat(path, {"classMapping13": even})
    assert f"{path}: has no 'mapClass' but classMapping13; use the official" in error_of(
        lambda: read_frames(root, config())
    )
    for wrong, found in ((even % 13, f"{RAW} raw labels to 0..12"), (even % 41 + 1, f"{RAW} raw labels to 1..41")):
        write_mapping(path, wrong)
        message = error_of(lambda: read_frames(root, config()))
        assert all(word in message for word in (str(path), found, "1..40 belong", "not the 13-class file"))
    write_mapping(path, even[:0])
    assert "maps 0 raw labels" in error_of(lambda: read_frames(root, config()))
    write_mapping(path, even[:100] % 40 + 1)
    assert f"maps 100 raw labels to 1..40 where {RAW}" in error_of(lambda: read_frames(root, config()))
    write_mapping(path, even % 40 + 1, (CLASSES[1], CLASSES[0], *CLASSES[2:]))
    assert "class 1 is 'floor', which is class 2; use the official" in error_of(lambda: read_frames(root, config()))


def test_labels_and_pictures_that_went_wrong_after_the_start(root, made):
    source = MatImage(root / LABELED, "labels", 1, bytes([0, 1, 2]))
    message = error_of(source.read_bytes)
    assert f"{root / LABELED}#labels/1: label {RAW} has no class; classMapping40.mat knows 2" in message
    assert "gone.mat#images/1: cannot be read" in error_of(
        replace(source, path=root / "gone.mat", part="images").read_bytes
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"splits": ("test",)}, ["unknown split 'test'", "train, val"]),
        ({"cameras": ("depth",)}, ["unknown camera depth", "'color'"]),
        ({"sequences": ("cellar_0001",)}, ["no frame of nyuv2 train found"]),
    ],
)
def test_choices_that_are_not_there(made, values, words):
    message = error_of(lambda: read_frames(made[0], config(**values)))
    assert all(word in message for word in words), message


def test_it_has_no_sparse_labels_of_its_own(made):
    (note,) = read_frames(made[0], config(labels="scribble")).notes
    assert "dataset.labels is 'scribble'" in note
    assert "make some with `rw3d-prep make-labels` and name their folder" in note


def test_measured_depth_wants_batches_of_one(made):
    message = error_of(lambda: find_batches(load_config("nyuv2", None, "sensor", None, []), made[0]))
    assert "3 of 3 frames have no pose and are dropped (single images need none: --batch-size 1)" in message
    recipe = load_config("nyuv2", None, "sensor", 1, ["dataset.splits=[val]"])
    assert [batch.frames[0].id for batch in find_batches(recipe, made[0])[0]] == [TEST[2], *TEST[:2]]
