"""Cityscapes in its official byte format: what the frames hold, the whole way to training, and its traps."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import cut_short
from cityscapes_builder import (
    BORDER,
    BUILDING,
    CAR,
    EGO,
    OUT_OF_ROI,
    POLE,
    ROAD,
    SIZE,
    SKY,
    VIDEO,
    camera_json,
    cityscapes_tree,
    coarse_labels,
    dense_labels,
    file_of,
    label_file,
    save,
    train_id_image,
    wall,
)
from rw3d_common import UserError, open_collection, open_scene
from rw3d_common.cameras import project
from rw3d_common.images import LabelFile, encode_train_ids, read_label
from rw3d_common.manifest import dataset_entry
from rw3d_prep.check import check_layout
from rw3d_prep.config import load_config
from rw3d_prep.datasets import DatasetConfig, read_frames
from rw3d_prep.datasets.cityscapes import DEPTH_UNIT, DisparityDepth, RigMask
from rw3d_prep.pipeline import find_batches, reconstruct
from rw3d_prep.reconstruct import in_own_world
from rw3d_prep.reconstruct.sensor import read_depth
from rw3d_prep.sample_views import sample_views
from rw3d_prep.sampling import SampleConfig
from rw3d_prep.verify import verify
from rw3d_train.data.dataset import SceneDataset

ENTRY = dataset_entry("cityscapes")
TRAIN_ID = {ROAD: 0, BUILDING: 2, POLE: 5, CAR: 12, SKY: 18}  # ids of the builder's pictures; all others are 255
AACHEN = ("aachen", 0, 19)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Stills of two cities and some frames around one of them; read only."""
    return cityscapes_tree(tmp_path_factory.mktemp("cityscapes"), video=VIDEO)


@pytest.fixture
def root(tmp_path):
    """One still, which a test may break."""
    return cityscapes_tree(tmp_path / "cityscapes", stills=[AACHEN])


def config(**values):
    return DatasetConfig(name="cityscapes", **{"labels": "gtCoarse", **values})


def settings(backend="sensor", *assignments):
    return load_config("cityscapes", None, backend, None, list(assignments))


def error_of(action) -> str:
    with pytest.raises(UserError) as raised:
        action()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def expected_train_ids(raw):
    out = np.full(raw.shape, 255, np.uint8)
    for label, train_id in TRAIN_ID.items():
        out[raw == label] = train_id
    return out


# What a frame holds


def test_stills_in_order_with_what_belongs_to_them(made):
    found = read_frames(made, config())
    assert [(frame.sequence, frame.id) for frame in found.frames] == [
        ("aachen_000000", 19),
        ("aachen_000001", 19),
        ("hamburg_000000", 42),
        ("hamburg_000000", 106),
    ]
    assert found.notes == []
    frame, camera = found.frames[0], camera_json(SIZE)
    assert str(frame) == "train/aachen_000000/0000000019 leftImg8bit"
    assert frame.image == file_of(made, "leftImg8bit", "train", *AACHEN, ".png")
    assert frame.right.image == file_of(made, "rightImg8bit", "train", *AACHEN, ".png")
    assert frame.right.baseline == camera["extrinsic"]["baseline"]
    fx, fy, u0, v0 = camera["intrinsic"].values()
    assert frame.intrinsics.tolist() == [[fx, 0, u0], [0, fy, v0], [0, 0, 1]]
    assert (frame.label, frame.truth) == tuple(
        label_file(made, kind, "train", *AACHEN) for kind in ("gtCoarse", "gtFine")
    )
    assert (frame.camera_to_world, frame.exclude) == (None, None)


def test_labels_are_ids_of_the_19_classes_with_sky_last(made):
    frame = read_frames(made, config()).frames[0]
    assert [item.name for item in ENTRY.classes][-1] == "sky"
    assert len(ENTRY.classes) == 19
    truth = LabelFile(frame.truth, ENTRY.truth_encoding, ENTRY.truth_map()).read(SIZE)
    np.testing.assert_array_equal(truth, expected_train_ids(dense_labels(SIZE)))
    label = LabelFile(frame.label, ENTRY.label_encoding, ENTRY.class_map()).read(SIZE)
    np.testing.assert_array_equal(label, expected_train_ids(coarse_labels(SIZE)))


def test_scribbles_lie_as_a_copy_of_the_dense_labels_and_have_three_channels(root):
    scribble = np.where(dense_labels(SIZE) == ROAD, ROAD, 0).astype(np.uint8)
    save(label_file(root / "scribbles", "gtFine", "train", *AACHEN), np.repeat(scribble[..., None], 3, axis=2))
    (frame,) = read_frames(root, config(labels="scribbles")).frames
    label = LabelFile(frame.label, ENTRY.label_encoding, ENTRY.class_map()).read(SIZE)
    np.testing.assert_array_equal(label, expected_train_ids(scribble))


def test_dense_labels_may_train_the_fully_supervised_reference(made):
    assert all(frame.label == frame.truth for frame in read_frames(made, config(labels="gtFine")).frames)


def test_measured_depth_is_the_wall_within_the_steps_of_disparity(made):
    frame = read_frames(made, config()).frames[0]
    depth = read_depth(frame.depth.path) * frame.depth.unit
    measured = np.ones(SIZE, bool)
    measured[:, 5] = measured[5, 6] = False
    assert (depth[~measured] == 0).all()
    focal_baseline = frame.intrinsics[0, 0] * frame.right.baseline
    half_a_step = wall(SIZE) ** 2 / focal_baseline / 512  # of disparity, 1/256 pixels, in metres
    assert (np.abs(depth - wall(SIZE)) < 1.01 * half_a_step + DEPTH_UNIT / 2)[measured].all()
    assert frame.depth.intrinsics is frame.intrinsics


@given(
    stored=st.lists(st.integers(0, 65535), min_size=4, max_size=4),
    scale=st.floats(50, 2000),
)
def test_depth_of_a_disparity_against_the_formula(tmp_path_factory, stored, scale):
    path = save(tmp_path_factory.getbasetemp() / "disparity.png", np.array([stored], np.uint16))
    units = read_depth(DisparityDepth(path, scale))[0]
    for unit, value in zip(units.tolist(), stored, strict=True):
        depth = scale / ((value - 1) / 256) if value > 1 else np.inf
        assert unit == (round(depth * 512) if depth * 512 < 65534.5 else 0)


def test_frames_around_a_still_share_its_camera_and_its_rig(made):
    frames = read_frames(made, config(cameras=("leftImg8bit_sequence",))).frames
    assert [frame.id for frame in frames] == list(VIDEO)
    (labelled,) = [frame for frame in frames if frame.label]
    still = read_frames(made, config()).frames[0]
    assert (str(labelled), labelled.label, labelled.truth, labelled.exclude) == (
        str(still),
        still.label,
        still.truth,
        None,
    )
    for frame in frames:
        assert frame.intrinsics.tolist() == still.intrinsics.tolist()
        assert "leftImg8bit_sequence" in str(frame.image)
        assert "rightImg8bit_sequence" in str(frame.right.image)
        if frame is not labelled:
            assert frame.exclude == RigMask(still.truth, (1, 2, 3))
            hidden = read_label(frame.exclude, "gray8", SIZE) != 0
            np.testing.assert_array_equal(hidden, np.isin(dense_labels(SIZE), [EGO, BORDER, OUT_OF_ROI]))
            assert read_depth(frame.depth.path).any()


def test_labels_stay_whatever_the_stride(made):
    frames = read_frames(made, config(cameras=("leftImg8bit_sequence",), stride=4)).frames
    assert [frame.id for frame in frames] == [17, 19, 21]


def test_snippets_of_one_drive_are_batches_of_their_own(tmp_path):
    root = cityscapes_tree(tmp_path, stills=[AACHEN], video=[*VIDEO, *range(117, 122)])
    recipe = load_config("cityscapes", None, None, 30, ["dataset.cameras=[leftImg8bit_sequence]"])
    batches, _ = find_batches(recipe, root)
    assert [[frame.id for frame in batch.frames] for batch in batches] == [list(VIDEO), list(range(117, 122))]


def test_sequences_are_cities_or_drives(made):
    assert {frame.sequence for frame in read_frames(made, config(sequences=("hamburg",))).frames} == {"hamburg_000000"}
    assert [str(frame)[:19] for frame in read_frames(made, config(sequences=("aachen_000001",))).frames] == [
        "train/aachen_000001"
    ]


def test_extra_pictures_have_coarse_labels_only(tmp_path):
    root = cityscapes_tree(tmp_path, stills=[("wurzburg", 0, 3)], split="train_extra")
    label_file(root, "gtFine", "train_extra", "wurzburg", 0, 3).unlink()
    for rest in (root / "gtFine").rglob("*.*"):
        rest.unlink()
    (frame,) = read_frames(root, config(splits=("train_extra",))).frames
    assert (frame.truth, frame.label) == (None, label_file(root, "gtCoarse", "train_extra", "wurzburg", 0, 3))


def test_every_file_of_the_layout_is_known(made):
    (made / "license.txt").write_text("")
    found = check_layout(made, ENTRY)
    assert (found.unexpected, found.missing) == ([], [])


# From files to training items


@pytest.fixture(scope="module")
def stores(made, tmp_path_factory):
    """Scenes of the stills by their official disparities, with samples."""
    out = tmp_path_factory.mktemp("stores")
    assert reconstruct(settings(), made, out, workers=1).exit_code() == 0
    assert sample_views(out, SampleConfig(points=2000, seed=1), workers=1).exit_code() == 0
    assert verify(out) == []
    return out


def test_every_still_is_a_scene_in_its_own_camera(stores):
    scenes = list(open_collection(stores))
    assert [len(scene) for scene in scenes] == [1] * 4
    for scene in scenes:
        assert scene.view(0).camera_to_world.tolist() == np.eye(4).tolist()
        assert scene.attrs["world_offset"] == [0, 0, 0]


def test_points_are_what_the_picture_shows_and_no_part_of_the_rig(stores):
    labels = dense_labels(SIZE)
    kept = ~np.isin(labels, [EGO, BORDER, OUT_OF_ROI]) & (coarse_labels(SIZE) != SKY)  # sky where it is known
    kept[:, 5] = kept[5, 6] = False
    for scene in open_collection(stores):
        view = scene.view(0)
        row, column = view.rows_columns.T
        seen = np.zeros(SIZE, bool)
        seen[row, column] = True
        np.testing.assert_array_equal(seen, kept)
        np.testing.assert_array_equal(view.color, view.read_image()[row, column])
        np.testing.assert_array_equal(view.label, expected_train_ids(coarse_labels(SIZE))[row, column])
        np.testing.assert_array_equal(view.truth, expected_train_ids(labels)[row, column])
        assert np.abs(view.position[:, 2] - wall(SIZE)[row, column]).max() < 0.04
        u, v, _ = project(view.position, view.intrinsics, view.camera_to_world)
        assert max(np.abs(u - column).max(), np.abs(v - row).max()) < 1e-3


def test_training_reads_the_stills(stores):
    dataset = SceneDataset(stores)
    assert dataset.index.key(0) == "train/aachen_000000/0000000019/leftImg8bit#0"
    for number in range(4):
        item = dataset[number]
        row, column = item.pixel.astype(int).T
        np.testing.assert_array_equal(item.image[row, column], item.color[: item.n_own])
        np.testing.assert_array_equal(item.label, expected_train_ids(coarse_labels(SIZE)))
        np.testing.assert_array_equal(item.truth[row, column], item.point_truth[: item.n_own])


def test_unlabelled_frames_of_a_snippet_lose_the_rig_too(made, tmp_path):
    recipe = settings("sensor", "dataset.cameras=[leftImg8bit_sequence]")
    assert reconstruct(recipe, made, tmp_path, workers=1).exit_code() == 0
    view = open_scene(tmp_path / "train" / "aachen_000000" / "0000000017-0000000017.zarr").view(0)
    hidden = np.isin(dense_labels(SIZE), [EGO, BORDER, OUT_OF_ROI])
    row, column = view.rows_columns.T
    assert len(row) == np.count_nonzero(~hidden) - np.count_nonzero(~hidden[:, 5]) - 1
    assert not hidden[row, column].any()


def test_made_labels_take_the_place_of_the_coarse_ones(made, tmp_path):
    folder, labels = tmp_path / "points", np.full(SIZE, 255, np.uint8)
    labels[40, 60] = 12
    description = {"dataset": "cityscapes", "kind": "points", "class_map_hash": ENTRY.class_map().hash}
    image = folder / "train" / "aachen_000000" / "leftImg8bit" / "0000000019.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(encode_train_ids(labels, ENTRY.class_map()))
    (folder / "labels.json").write_text(json.dumps(description))
    recipe = settings("sensor", f"dataset.labels={folder}", "dataset.sequences=[aachen_000000]")
    assert reconstruct(recipe, made, tmp_path / "out", workers=1).exit_code() == 0
    view = open_scene(tmp_path / "out" / "train" / "aachen_000000" / "0000000019-0000000019.zarr").view(0)
    row, column = view.rows_columns.T
    np.testing.assert_array_equal(view.label, labels[row, column])
    assert not np.isin(dense_labels(SIZE)[row, column], [EGO, BORDER, OUT_OF_ROI]).any()  # known from the dense labels


def test_stereo_matches_single_pairs(made, tmp_path):
    recipe = settings("stereo", "backend.min_confidence=1", "dataset.sequences=[aachen]")
    assert reconstruct(recipe, made, tmp_path, workers=1).exit_code() == 0
    for scene in open_collection(tmp_path):
        view = scene.view(0)
        row, column = view.rows_columns.T
        assert len(row) > 1000
        assert (
            np.median(np.abs(view.position[:, 2] - wall(SIZE)[row, column])) < 0.5
        )  # whole-pixel disparities of 2 to 7


# What is missing or wrong


def test_larger_batches_without_poses_are_told_the_way_out(made):
    recipe = load_config("cityscapes", None, "sensor", 30, [])
    assert "4 of 4 frames have no pose and are dropped (single images need none: --batch-size 1)" in error_of(
        lambda: find_batches(recipe, made)
    )


def test_two_cameras_at_one_time_are_no_batch_of_one(made):
    frame = read_frames(made, config()).frames[0]
    assert in_own_world([frame])[0].camera_to_world.tolist() == np.eye(4).tolist()
    assert [one.camera_to_world for one in in_own_world([frame, replace(frame, camera="other")])] == [None, None]


def test_without_camera_files_only_a_model_that_needs_none(root):
    file_of(root, "camera", "train", *AACHEN, ".json").unlink()
    found = read_frames(root, config())
    assert (found.frames[0].intrinsics, found.frames[0].depth, found.frames[0].right) == (None, None, None)
    assert found.notes == [
        f"{root}/camera: no camera file for 1 of 1 pictures, which only --backend mapanything can use"
    ]


def test_of_several_splits_one_may_be_absent(made):
    found = read_frames(made, config(splits=("train", "val")))
    assert {frame.split for frame in found.frames} == {"train"}
    assert found.notes == [
        f"{made}/leftImg8bit/val: no such folder, so split 'val' has no pictures; unpack its package leftImg8bit there"
    ]


def test_no_labels_when_none_are_asked_for(made):
    found = read_frames(made, config(labels=""))
    assert found.notes == []
    assert not any(frame.label for frame in found.frames)


def test_labels_that_are_nowhere_are_told(root):
    (note,) = read_frames(root, config(labels="gtcoarse")).notes
    assert f"{root}/gtcoarse" in note
    assert "gtCoarse, or a folder that `rw3d-prep make-labels` made" in note


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda file: file.write_text("{}"), ["KeyError('intrinsic')", "copy the official file"]),
        (cut_short, ["JSONDecodeError", "copy the official file"]),
        (
            lambda file: file.write_text(file.read_text().replace("0.209313", "0.0")),
            ["baseline 0.0", "copy the official"],
        ),
        (
            lambda file: file.write_text(file.read_text().replace("0.209313", "NaN")),
            ["baseline nan", "copy the official"],
        ),
    ],
)
def test_damaged_camera_file(root, change, words):
    camera = file_of(root, "camera", "train", *AACHEN, ".json")
    change(camera)
    message = error_of(lambda: read_frames(root, config()))
    assert all(word in message for word in [str(camera), *words]), message


def test_images_of_train_ids_are_not_read_as_ids(root, tmp_path):
    """Under their own name, and under that of the ids."""
    ids = label_file(root, "gtFine", "train", *AACHEN)
    save(ids, train_id_image(dense_labels(SIZE)))
    outcome = reconstruct(settings(), root, tmp_path / "out", workers=1)
    (message,) = outcome.failed.values()
    assert outcome.exit_code() == 2
    assert all(
        word in message for word in (str(ids), "unknown label id 255", "ids must be those of the dataset's classes")
    )
    ids.unlink()
    message = error_of(lambda: read_frames(root, config()))
    assert "aachen_000000_000019_gtFine_labelTrainIds.png: holds train ids" in message
    assert "unpack Cityscapes' package gtFine again" in message


def test_disparity_of_eight_bits(root, tmp_path):
    path = save(file_of(root, "disparity", "train", *AACHEN, ".png"), np.zeros(SIZE, np.uint8))
    (message,) = reconstruct(settings(), root, tmp_path / "out", workers=1).failed.values()
    assert str(path) in message
    assert "16-bit" in message


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"splits": ("test",)}, ["unknown split 'test'", "train, val, train_extra"]),
        (
            {"splits": ("val",)},
            ["leftImg8bit/val: no such folder", "split 'val' has no pictures", "unpack its package leftImg8bit"],
        ),
        (
            {"cameras": ("leftImg8bit_sequence",)},
            ["leftImg8bit_sequence/train: no such folder", "package leftImg8bit_sequence"],
        ),
        ({"cameras": ("image_00",)}, ["dataset.cameras is image_00", "leftImg8bit (stills)", "leftImg8bit_sequence"]),
        ({"sequences": ("ulm",)}, ["no frame of cityscapes train found"]),
    ],
)
def test_choices_that_are_not_there(root, values, words):
    message = error_of(lambda: read_frames(root, config(**values)))
    assert all(word in message for word in words), message
