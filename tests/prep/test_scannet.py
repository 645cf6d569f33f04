"""ScanNetV2 in its official byte formats: lists, frames with lost poses, 16-bit labels, two meshes."""

import io
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from builders import cut_short, save_image
from ply_builder import vertex_table, write_ply
from rw3d_common import open_collection, open_scene
from rw3d_common.errors import UserError
from rw3d_common.images import encode_train_ids, read_label
from rw3d_common.manifest import dataset_entry
from rw3d_prep.check import check_layout, frame_counts
from rw3d_prep.config import load_config
from rw3d_prep.datasets import DatasetConfig, read_frames
from rw3d_prep.datasets.scannet import Mesh, RawLabel, nyu40_of_raw
from rw3d_prep.label_folders import image_of
from rw3d_prep.pipeline import reconstruct
from rw3d_prep.report import report
from rw3d_prep.sample_views import sample_views
from rw3d_prep.sampling import SampleConfig
from rw3d_prep.verify import verify
from scannet_builder import CATEGORIES, COLOR_SIZE, raw_labels, scannet_root

TABLE = "scannetv2-labels.combined.tsv"
SCENE = "scene0000_00"


def found(root, **options):
    return read_frames(root, DatasetConfig(name="scannet", **options))


def test_the_twenty_classes_are_the_benchmarks():
    entry = dataset_entry("scannet")
    assert [item.ids for item in entry.classes] == [
        (nyu40,) for nyu40 in (*range(1, 13), 14, 16, 24, 28, 33, 34, 36, 39)
    ]
    raw = np.array([0, 13, 40, 50, 149, 39], np.uint8)
    assert entry.class_map().to_train_ids(raw, "x").tolist() == [255] * 5 + [19]


def test_scenes_belong_to_the_splits_of_the_official_lists(tmp_path):
    root = scannet_root(tmp_path, train=("scene0000_00", "scene0000_01"))
    both = found(root, splits=("train", "val"))
    scenes = [("train", "scene0000_00"), ("train", "scene0000_01"), ("val", "scene0011_00")]
    assert [(frame.split, frame.sequence, frame.id) for frame in both.frames] == [
        (*s, i) for s in scenes for i in range(4)
    ]
    assert [cloud.name for cloud in both.clouds] == [f"{split}/{scene}/mesh" for split, scene in scenes]
    assert both.notes == []
    for frame in both.frames:
        assert all(part is not None for part in (frame.camera_to_world, frame.intrinsics, frame.truth, frame.depth))
        assert frame.label is None
    only = found(root, sequences=("scene0000_01",))
    assert {frame.sequence for frame in only.frames} == {cloud.sequence for cloud in only.clouds} == {"scene0000_01"}


def test_every_hundredth_frame_in_the_order_of_numbers(tmp_path):
    """Names have no leading zeros: as text, 100 comes before 11."""
    root = scannet_root(tmp_path, val=(), frames=range(0, 250, 1))
    assert [frame.id for frame in found(root, stride=100).frames] == [0, 100, 200]


def test_poses_that_the_stride_leaves_out_are_not_read(tmp_path):
    root = scannet_root(tmp_path, val=())
    (root / "scans" / SCENE / "pose" / "1.txt").write_text("not numbers")
    assert [frame.id for frame in found(root, stride=2).frames] == [0, 2]
    with pytest.raises(UserError, match=r"1\.txt: not a matrix of numbers"):
        found(root)


def test_lost_frames_are_kept_without_pose_and_told(tmp_path):
    listed = found(scannet_root(tmp_path, val=(), lost=(1, 2)))
    assert [frame.id for frame in listed.frames if frame.camera_to_world is None] == [1, 2]
    (note,) = listed.notes
    assert re.search(r"1\.jpg: 2 of 4 frames have no usable pose", note)


def test_raw_labels_become_nyu40(tmp_path):
    root = scannet_root(tmp_path, val=())
    label = found(root).frames[0].truth
    image = Image.open(io.BytesIO(label.read_bytes()))
    assert (image.mode, image.size) == ("L", COLOR_SIZE[::-1])
    nyu40 = {0: 0, **{raw: nyu40 for raw, (_, nyu40) in CATEGORIES.items()}}
    expected = [[nyu40[raw] for raw in row] for row in raw_labels().tolist()]
    assert np.asarray(image).tolist() == expected
    assert str(label).endswith("label-filt/0.png")


def test_filtered_labels_are_preferred_and_unfiltered_ones_serve(tmp_path):
    root = scannet_root(tmp_path, val=())
    folder = root / "scans" / SCENE
    shutil.copytree(folder / "label-filt", folder / "label")
    (folder / "label-filt" / "2.png").unlink()
    assert [frame.truth.path.parent.name for frame in found(root).frames] == [
        "label-filt",
        "label-filt",
        "label",
        "label-filt",
    ]


def test_a_mesh_has_photo_colours_and_the_labels_of_its_twin(tmp_path):
    (cloud,) = found(scannet_root(tmp_path, val=())).clouds
    points = cloud.source.read()
    photo, labelled = (cloud.source.path.with_name(f"{SCENE}_vh_clean_2{suffix}.ply") for suffix in ("", ".labels"))
    vertex = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("r", "u1"), ("g", "u1"), ("b", "u1"), ("a", "u1")]
    rows = np.frombuffer(photo.read_bytes().split(b"end_header\n")[1], vertex, 300)
    twin = np.frombuffer(labelled.read_bytes().split(b"end_header\n")[1], [*vertex, ("label", "<u2")], 300)
    assert points.position.dtype == np.float64
    for index, (row, other) in enumerate(zip(rows, twin, strict=True)):
        assert points.position[index].tolist() == [row["x"], row["y"], row["z"]]
        assert points.color[index].tolist() == [row["r"], row["g"], row["b"]]
        assert points.truth[index] == other["label"]
    assert (points.color != points.truth[:, None]).any()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A ScanNet root with made labels of two frames, and its stores, sampled."""
    folder = tmp_path_factory.mktemp("scannet")
    root = scannet_root(folder / "data", val=(), frames=range(0, 8), lost=(5,))
    labels, classes = folder / "labels", dataset_entry("scannet").class_map()
    for frame in found(root).frames[1:4:2]:  # frames 1 and 3: the stride below leaves them out
        train_ids = np.full(COLOR_SIZE, 255, np.uint8)
        train_ids[10:14, 20:60] = 0
        path = image_of(labels, frame)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_train_ids(train_ids, classes))
    description = f'{{"dataset": "scannet", "kind": "scribbles", "class_map_hash": "{classes.hash}"}}'
    (labels / "labels.json").write_text(description)
    config = load_config("scannet", None, None, None, ["dataset.stride=4", f"dataset.labels={labels}"])
    outcome = reconstruct(config, root, folder / "stores", workers=1)
    assert outcome.exit_code() == 0, outcome.failed
    sampled = sample_views(folder / "stores", SampleConfig(points=200), workers=1)
    assert sampled.exit_code() == 0
    return root, folder / "stores", outcome


def test_frames_become_one_scene_and_the_mesh_another(made):
    _, stores, outcome = made
    assert sorted(outcome.written) == [f"train/{SCENE}/0000000000-0000000004", f"train/{SCENE}/mesh"]
    assert verify(stores) == []
    frames, mesh = open_collection(stores)
    assert frames.view_table["frame_id"].tolist() == [0, 1, 3, 4]
    assert frames.view_table["has_label"].tolist() == [False, True, True, False]
    assert (len(mesh), mesh.n_points) == (0, 300)


def test_dense_labels_are_stored_and_agree_with_their_points(made):
    root, stores, _ = made
    scene = open_scene(stores / "train" / SCENE / "0000000000-0000000004.zarr")
    shutil.move(root / "scans", root / "moved")  # labels in another encoding travel with the scene
    try:
        for index in range(len(scene)):
            view = scene.view(index)
            truth = view.read_truth()
            np.testing.assert_array_equal(view.truth, truth.ravel()[view.pixel])
            assert set(np.unique(truth)) == {0, 1, 4, 255}
    finally:
        shutil.move(root / "moved", root / "scans")


def test_only_labelled_views_are_sampled(made):
    _, stores, _ = made
    frames, mesh = open_collection(stores)
    assert frames.samples.record["samples"] == 2
    assert not (mesh.path / "samples").exists()


def test_inspect_shows_frames_and_mesh(made):
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report(list(open_collection(made[1])), views_of=2))
    text = console.export_text()
    assert f"train/{SCENE}/mesh" in text
    assert text.count("Views of") == 1


def test_check_counts_frames_and_clouds(tmp_path):
    root = scannet_root(tmp_path)
    assert check_layout(root, dataset_entry("scannet")).missing == []
    assert check_layout(root, dataset_entry("scannet")).unexpected == []
    counts, notes = frame_counts(root, "scannet", ("train", "val"))
    assert notes == []
    assert counts["val"] == {
        "frames": 4, "pose": 4, "sparse label": 0, "truth": 4, "right": 0, "depth": 4, "LiDAR": 0,
        "accumulated LiDAR": 0, "clouds": 1,
    }  # fmt: skip


def test_what_is_missing_is_told_once_per_split(tmp_path):
    root = scannet_root(tmp_path, train=("scene0000_00", "scene0001_00", "scene0002_00", "scene0003_00"), val=())
    shutil.rmtree(root / "scans" / "scene0001_00")
    shutil.rmtree(root / "scans" / "scene0002_00" / "color")
    (root / "scans" / "scene0003_00" / "scene0003_00_vh_clean_2.labels.ply").unlink()
    listed = found(root)
    assert {frame.sequence for frame in listed.frames} == {"scene0000_00", "scene0003_00"}
    assert {cloud.sequence for cloud in listed.clouds} == {"scene0000_00", "scene0002_00"}
    absent, unexported, no_mesh = listed.notes
    assert "scene0001_00: 1 of 4 scenes of split 'train' are not there" in absent
    assert "scene0002_00: 1 of 4 scenes" in unexported
    assert "SensReader" in unexported
    assert "scene0003_00: 1 of 4 scenes" in no_mesh


# Bad input


@pytest.mark.parametrize("name", ["scannetv2_train.txt", TABLE])
def test_a_missing_list_or_table_is_named_with_where_to_get_it(tmp_path, name):
    root = scannet_root(tmp_path)
    (root / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: no such file; it .*(github\.com/ScanNet|label_map)"):
        found(root)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("nyu40id", "nyu99id", "columns id and nyu40id"),
        ("\t22\t", "\twall\t", "line 5 .*'wall'"),
        ("\t40\t", "\t41\t", "nyu40id 41"),
    ],
)
def test_a_table_that_cannot_be_used_is_named(tmp_path, old, new, told):
    table = scannet_root(tmp_path) / TABLE
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(UserError, match=rf"{TABLE}: line \d .*{told}|{TABLE}: .*{told}"):
        nyu40_of_raw(table)


def test_a_raw_id_that_the_table_lacks_is_named(tmp_path):
    root = scannet_root(tmp_path)
    labels = raw_labels()
    labels[3, 3] = 4711
    path = save_image(root / "scans" / SCENE / "label-filt" / "0.png", labels)
    with pytest.raises(UserError, match=rf"{path}: label id 4711 is not in .*{TABLE}; take .* of one release"):
        RawLabel(path, root / TABLE).read_bytes()


@pytest.mark.parametrize(
    ("pixels", "told"),
    [(raw_labels().astype(np.uint8), "label image of mode L where a 16-bit"), (None, "copy the file again")],
)
def test_an_eight_bit_or_damaged_label_is_named(tmp_path, pixels, told):
    root = scannet_root(tmp_path)
    path = root / "scans" / SCENE / "label-filt" / "0.png"
    if pixels is None:
        cut_short(path)
    else:
        save_image(path, pixels)
    with pytest.raises(UserError, match=rf"{path}: .*{told}"):
        RawLabel(path, root / TABLE).read_bytes()


def test_a_label_of_another_size_than_the_colour_image_is_named(tmp_path):
    root = scannet_root(tmp_path)
    path = save_image(root / "scans" / SCENE / "label-filt" / "0.png", raw_labels((24, 32)))
    with pytest.raises(UserError, match=rf"{path}: label of 32×24 for an image of 64×48; .*nearest"):
        read_label(RawLabel(path, root / TABLE), "gray8", COLOR_SIZE)


@pytest.mark.parametrize("damage", ["fewer vertices", "other vertices", "no labels", "large label", "cut short"])
def test_a_mesh_that_does_not_fit_its_twin_is_named(tmp_path, damage):
    folder = scannet_root(tmp_path) / "scans" / SCENE
    path = folder / f"{SCENE}_vh_clean_2.labels.ply"
    photo = folder / f"{SCENE}_vh_clean_2.ply"
    xyz = Mesh(photo).read().position.astype(np.float32)
    if damage == "cut short":
        cut_short(path)
    else:
        xyz = xyz[:-1] if damage == "fewer vertices" else xyz[::-1] if damage == "other vertices" else xyz
        columns = [(name, "f4", xyz[:, axis]) for axis, name in enumerate("xyz")]
        label = ("object" if damage == "no labels" else "label", "u2", np.full(len(xyz), 1191))
        write_ply(path, vertex_table([*columns, label]))
    told = {
        "fewer vertices": r"its vertices \(299\) are not those of .*\(300\); download both again",
        "other vertices": r"its vertices \(300\) are not those of",
        "no labels": "have no property label, only x, y, z, object",
        "large label": "holds the label 1191, where NYU40 ids belong",
        "cut short": "early end-of-file.*copy the official file again",
    }[damage]
    with pytest.raises(UserError, match=rf"{path}: .*{told}"):
        Mesh(photo).read()


def test_missing_intrinsics_and_an_unknown_split_are_named(tmp_path):
    root = scannet_root(tmp_path)
    (root / "scans" / SCENE / "intrinsic" / "intrinsic_depth.txt").unlink()
    with pytest.raises(UserError, match=r"intrinsic_depth\.txt: no such file; export it with the sequence"):
        found(root)
    with pytest.raises(UserError, match=r"unknown split 'test'; data_manifest\.yaml has train, val"):
        found(root, splits=("test",))
