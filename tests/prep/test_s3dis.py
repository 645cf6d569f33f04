"""S3DIS in its official byte format, with the faults that its release is known for."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rw3d_common import open_collection, open_scene
from rw3d_common.errors import UserError
from rw3d_common.manifest import dataset_entry
from rw3d_prep.check import check_layout, frame_counts
from rw3d_prep.config import load_config
from rw3d_prep.datasets import DatasetConfig, read_frames
from rw3d_prep.datasets.s3dis import read_points
from rw3d_prep.pipeline import find_batches, reconstruct
from rw3d_prep.report import report
from rw3d_prep.verify import verify
from s3dis_builder import OBJECTS, RELEASE, lines_of, room_folder, s3dis_root, slow_points

CLASSES = ["ceiling", "floor", "wall", "beam", "column", "window", "door", "table", "chair", "sofa", "bookcase",
           "board", "clutter"]  # fmt: skip


def clouds(root, **options):
    return read_frames(root, DatasetConfig(name="s3dis", **options)).clouds


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def test_the_thirteen_classes_in_their_official_order():
    entry = dataset_entry("s3dis")
    assert entry.class_map().names == CLASSES
    assert [item.ids for item in entry.classes] == [(index,) for index in range(13)]


def test_area_five_is_the_split_val(tmp_path):
    root = s3dis_root(tmp_path)
    assert [cloud.name for cloud in clouds(root, splits=("train",))] == [
        "train/Area_1/hallway_2",
        "train/Area_1/office_1",
    ]
    assert [cloud.name for cloud in clouds(root, splits=("val",))] == ["val/Area_5/hallway_6"]
    assert clouds(root, splits=("train", "val"), sequences=("Area_5",))[0].sequence == "Area_5"
    areas = [area for split in dataset_entry("s3dis").splits.values() for area in split.sequences]
    assert sorted(areas) == [f"Area_{number}" for number in range(1, 7)]


def test_a_room_is_all_points_of_its_objects(tmp_path):
    cloud = clouds(s3dis_root(tmp_path))[0]
    points = cloud.source.read()
    files = [cloud.source.path / "Annotations" / f"{name}.txt" for name in sorted(OBJECTS)]
    expected = np.concatenate([slow_points(path) for path in files])
    np.testing.assert_array_equal(points.position, expected[:, :3])
    np.testing.assert_array_equal(points.color, expected[:, 3:])
    names = [CLASSES[i] for i in points.truth[::40]]
    assert names == ["ceiling", "chair", "floor", "clutter", "wall", "wall"]


def test_names_of_no_class_are_clutter_and_told(tmp_path):
    (note,) = clouds(s3dis_root(tmp_path))[0].source.read().notes
    assert re.search(r"hallway_2: 'stairs' \(1 object\) is no class of S3DIS and counts as clutter", note)


numbers = st.floats(-1000, 1000, allow_subnormal=False)
color = st.integers(0, 255)


@settings(max_examples=40)
@given(st.lists(st.tuples(numbers, numbers, numbers, color, color, color), min_size=1, max_size=20), st.booleans())
def test_numbers_are_read_exactly(tmp_path_factory, rows, windows):
    path = tmp_path_factory.getbasetemp() / "object_1.txt"
    end = b"\r" if windows else b""
    write(path, [" ".join(map(repr, row)).encode() + end for row in rows])
    values, dropped = read_points(path)
    assert values.tolist() == [list(map(float, row)) for row in rows]
    assert dropped == []


# The release's known faults


def test_a_nul_inside_a_number_drops_that_line(tmp_path):
    good = [line.encode() for line in lines_of(np.random.default_rng(0), 5)]
    path = write(tmp_path / "ceiling_1.txt", [*good[:3], b"22.345 1.000 2.981 185\x00187 180 190", *good[3:]])
    values, dropped = read_points(path)
    assert dropped == [4]
    np.testing.assert_array_equal(values, [[float(word) for word in line.split()] for line in good])


def test_a_space_inside_a_number_drops_that_line(tmp_path):
    good = [line.encode() for line in lines_of(np.random.default_rng(0), 5)]
    path = write(tmp_path / "wall_1.txt", [b"-9.1 0 3.200 1.000 10 20 30", *good])
    values, dropped = read_points(path)
    assert (len(values), dropped) == (5, [1])


def test_a_copied_file_is_left_out_and_told(tmp_path):
    root = s3dis_root(tmp_path)
    folder = room_folder(root, "Area_5", "hallway_6") / "Annotations"
    (folder / "wall_2 (1).txt").write_bytes((folder / "wall_2.txt").read_bytes())
    (folder / "table_3 (1).txt").write_bytes((folder / "wall_2.txt").read_bytes())  # of nothing: an object of its own
    points = clouds(root, splits=("val",))[0].source.read()
    assert len(points.truth) == 40 * (len(OBJECTS) + 1)
    assert (points.truth == CLASSES.index("table")).sum() == 40
    assert any("wall_2 (1).txt: a copy" in note for note in points.notes)
    assert not any("table_3" in note for note in points.notes)


# End to end


def test_rooms_become_scenes_and_faults_are_told(tmp_path, caplog):
    root = s3dis_root(tmp_path / "data")
    path = room_folder(root, "Area_5", "hallway_6") / "Annotations" / "ceiling_1.txt"
    write(path, [*path.read_bytes().splitlines(), b"1 2 3 185\x00187 1 1"])
    outcome = reconstruct(load_config("s3dis", None, None, None, []), root, tmp_path / "out", workers=1)
    assert outcome.exit_code() == 0, outcome.failed
    assert f"{path}: line 41 is damaged, as in the official release, and left out" in caplog.text
    assert verify(tmp_path / "out") == []
    scenes = list(open_collection(tmp_path / "out"))
    assert [scene.name for scene in scenes] == sorted(outcome.written)
    for scene in scenes:
        source = room_folder(root, scene.attrs["sequence"], scene.path.stem) / "Annotations"
        expected = [slow_points(source / f"{name}.txt") if name != "ceiling_1" or "Area_5" not in scene.name
                    else slow_points_without_last(source / f"{name}.txt") for name in sorted(OBJECTS)]  # fmt: skip
        exact = np.concatenate(expected)[:, :3]
        assert np.abs(scene.read("position") + scene.world_offset - exact).max() < 1e-5
        assert scene.attrs["complete"]["class_points"]["truth"]["12"] == 40
    report(scenes, views_of=3)


def slow_points_without_last(path):
    return np.array([[float(word) for word in line.split()] for line in path.read_bytes().splitlines()[:-1]])


def test_a_second_run_keeps_what_is_there(tmp_path):
    root = s3dis_root(tmp_path / "data")
    config = load_config("s3dis", None, None, None, [])
    first = reconstruct(config, root, tmp_path / "out", workers=1)
    again = reconstruct(config, root, tmp_path / "out", workers=1)
    assert sorted(again.skipped) == sorted(first.written)
    assert again.written == []


def test_check_finds_everything_expected(tmp_path):
    root = s3dis_root(tmp_path)
    layout = check_layout(root, dataset_entry("s3dis"))
    assert (layout.missing, layout.unexpected) == ([], [])
    counts, notes = frame_counts(root, "s3dis", ("train", "val"))
    assert (counts["train"]["clouds"], counts["val"]["clouds"]) == (2, 1)
    assert len(notes) == 4, "Areas 2, 3, 4 and 6 are not there"


# Bad input


@pytest.mark.parametrize(
    "line",
    [b"1.0 2.0 3.0 10 20", b"x y z r g b", b"1 2 3 10 20 256", b"1 2 3 -1 20 30", b"1 2 3 0.5 20 30",
     b"nan 2 3 10 20 30", b"1 inf 3 10 20 30", b"1 2 3 4 5 6 7 8", b"# a comment"],
)  # fmt: skip
def test_any_other_fault_is_refused_with_its_line(tmp_path, line):
    good = [text.encode() for text in lines_of(np.random.default_rng(0), 3)]
    path = write(tmp_path / "wall_1.txt", [*good[:2], line, good[2]])
    with pytest.raises(UserError) as caught:
        read_points(path)
    assert str(caught.value).startswith(f"{path}: line 3 is '{line.decode()}', not x y z")
    assert f"unpack {RELEASE}.zip again" in str(caught.value)


@pytest.mark.parametrize("line", [b"1 2 3 10 20", b"1 2 3 10 20 30 40"])
def test_a_file_of_another_format_is_not_silently_dropped(tmp_path, line):
    path = write(tmp_path / "wall_1.txt", [line] * 50)
    with pytest.raises(UserError, match=r"line 1 is '1 2 3 10 20'|50 lines are damaged, the first is line 1;"):
        read_points(path)


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_empty_file_is_refused(tmp_path, content):
    path = tmp_path / "wall_1.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"wall_1\.txt: holds no point; unpack"):
        read_points(path)


def test_a_missing_file_a_room_without_objects_and_a_missing_release_are_named(tmp_path):
    with pytest.raises(UserError, match=r"wall_1\.txt: no such file; unpack"):
        read_points(tmp_path / "wall_1.txt")
    with pytest.raises(UserError, match=rf"{RELEASE}: no such folder; unpack {RELEASE}\.zip of S3DIS in"):
        clouds(tmp_path)
    root = s3dis_root(tmp_path)
    for path in (room_folder(root, "Area_5", "hallway_6") / "Annotations").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"hallway_6/Annotations: holds no <class>_<n>\.txt; unpack"):
        clouds(root, splits=("val",))[0].source.read()


def test_a_bad_room_fails_alone(tmp_path):
    root = s3dis_root(tmp_path / "data")
    path = room_folder(root, "Area_1", "office_1") / "Annotations" / "wall_1.txt"
    write(path, [b"what is this"])
    outcome = reconstruct(load_config("s3dis", None, None, None, []), root, tmp_path / "out", workers=1)
    assert outcome.exit_code() == 3
    assert outcome.failed == {"train/Area_1/office_1": next(iter(outcome.failed.values()))}
    assert f"{path}: line 1 is 'what is this'" in outcome.failed["train/Area_1/office_1"]
    assert len(outcome.written) == 2
    assert [path.name for path in (tmp_path / "out" / "train" / "Area_1").iterdir()] == ["hallway_2.zarr"]


def test_another_backend_has_nothing_to_work_on(tmp_path):
    root = s3dis_root(tmp_path)
    config = load_config("s3dis", None, "stereo", None, [])
    with pytest.raises(UserError, match=r"3 point clouds without images are left out: --backend sensor takes them"):
        find_batches(config, root)


def test_an_unknown_split_is_named(tmp_path):
    with pytest.raises(UserError, match=r"unknown split 'test'; data_manifest\.yaml has train, val"):
        clouds(s3dis_root(tmp_path), splits=("test",))


def test_open_scene_says_what_it_is(tmp_path):
    root = s3dis_root(tmp_path / "data")
    config = load_config("s3dis", None, None, None, ["dataset.splits=[val]"])
    (name,) = reconstruct(config, root, tmp_path / "out", workers=1).written
    scene = open_scene(tmp_path / "out" / f"{name}.zarr")
    assert (len(scene), scene.n_points, scene.has_truth) == (0, 240, True)
    assert "0 (0 with sparse labels)" in repr(scene)
    assert scene.attrs["backend"] == {**scene.attrs["backend"], "name": "sensor", "model": "measured points"}
