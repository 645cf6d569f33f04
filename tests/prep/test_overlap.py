"""Batches that overlap, the similarities between their scenes, and whole drives in one world."""

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plyfile import PlyData

from builders import kitti360_tree
from moved_backend import MovedBackend
from run_command import run_command
from rw3d_common import open_collection
from rw3d_common.errors import UserError
from rw3d_prep import align as align_module
from rw3d_prep import batch_scene
from rw3d_prep.align import ALIGNMENT, align, chains, read_alignment
from rw3d_prep.batching import Batch, BatchConfig, make_batches
from rw3d_prep.config import PrepConfig
from rw3d_prep.datasets import DatasetConfig
from rw3d_prep.export import export_merged
from rw3d_prep.frames import Frame
from rw3d_prep.overlap import correspondences
from rw3d_prep.pipeline import find_batches, reconstruct
from rw3d_prep.reconstruct.sensor import SensorBackend, SensorConfig
from rw3d_prep.samples import wanted_views
from rw3d_prep.sampling import SampleConfig

# Batching


def drive(times: int, cameras: int = 1) -> list[Frame]:
    return [
        Frame("train", "s", time, f"c{camera}", Path("x.png")) for time in range(times) for camera in range(cameras)
    ]


def times_of(batch: Batch) -> list[int]:
    return sorted({frame.id for frame in batch.frames})


@given(st.integers(1, 60), st.integers(1, 3), st.integers(2, 12), st.data())
def test_neighbours_share_exactly_the_overlap(times, cameras, most, data):
    overlap = data.draw(st.integers(0, most - 1))
    batches = make_batches(drive(times, cameras), BatchConfig(size=most * cameras, overlap=overlap))
    for batch in batches:
        assert len(times_of(batch)) <= most
        assert Counter(frame.id for frame in batch.frames) == dict.fromkeys(times_of(batch), cameras)
        assert times_of(batch) == list(range(times_of(batch)[0], times_of(batch)[-1] + 1))
    for earlier, later in itertools.pairwise(batches):
        common = sorted(set(times_of(earlier)) & set(times_of(later)))
        assert common == times_of(later)[:overlap] == times_of(earlier)[len(times_of(earlier)) - overlap :]
        assert later.shared == overlap * cameras
    assert batches[0].shared == 0
    new = [frame for batch in batches for frame in batch.frames[batch.shared :]]
    assert Counter(map(str, new)) == Counter(map(str, drive(times, cameras))), "each frame is new in exactly one batch"
    assert len({batch.name for batch in batches}) == len(batches)
    fewest = 1 if times <= most else -(-(times - overlap) // (most - overlap))
    assert len(batches) == fewest
    sizes = [len(times_of(batch)) for batch in batches]
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(2, 60), st.integers(1, 3), st.integers(0, 20))
def test_halves_overlap_too_and_stay_smaller(times, cameras, overlap):
    (whole,) = make_batches(drive(times, cameras), BatchConfig(size=1000, overlap=overlap))
    todo, leaves = [whole], []
    while todo:
        part = todo.pop()
        halves = part.halves()
        if halves is None:
            leaves.append(part)
            continue
        common = set(times_of(halves[0])) & set(times_of(halves[1]))
        assert len(common) == min(overlap, len(times_of(halves[0])) // 2)
        assert max(len(half.frames) for half in halves) < len(part.frames)
        todo += halves[::-1]
    new = [frame for leaf in leaves for frame in leaf.frames[leaf.shared :]]
    assert Counter(map(str, new)) == Counter(map(str, whole.frames)), "each frame is new in exactly one part"


def test_an_overlap_that_leaves_nothing_new_is_refused():
    with pytest.raises(
        UserError, match=r"batching\.overlap = 3: s has 4 cameras, so a batch of 12 frames holds 3 times"
    ):
        make_batches(drive(9, cameras=4), BatchConfig(size=12, overlap=3))
    with pytest.raises(ValueError, match="overlap 8 must be smaller than size 8"):
        BatchConfig(size=8, overlap=8)


def test_no_overlap_leaves_the_configuration_as_it_was():
    assert "overlap" not in settings().identity()["batching"]
    assert settings(overlap=2).hash() != settings().hash()


# Scenes


def settings(size: int = 4, overlap: int = 0) -> PrepConfig:
    return PrepConfig(
        dataset=DatasetConfig(name="kitti360", labels="scribble"),
        batching=BatchConfig(size=size, overlap=overlap),
        backend=SensorConfig(),
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return kitti360_tree(tmp_path_factory.mktemp("kitti360"), frames=range(9), size=(48, 96))


@pytest.fixture(scope="module")
def measured(tree, tmp_path_factory) -> Path:
    """Three scenes of a drive, in the dataset's world, each sharing two frames with the next."""
    out = tmp_path_factory.mktemp("measured")
    reconstruct(settings(5, 2), tree, out, workers=1)
    return out


def moved(tree: Path, out: Path, noise: float, outliers: float) -> MovedBackend:
    """The same scenes, each in a world of its own."""
    backend = MovedBackend(SensorBackend(SensorConfig()), noise, outliers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_scene, "backend_of", lambda _: backend)
        reconstruct(settings(5, 2), tree, out, workers=1)
    return backend


@pytest.fixture(scope="module")
def predicted(tree, tmp_path_factory) -> tuple[Path, MovedBackend]:
    out = tmp_path_factory.mktemp("predicted")
    return out, moved(tree, out, noise=0.005, outliers=0.16)


def test_the_later_scene_marks_the_frames_that_it_shares(measured):
    marks = [scene.view_table["shared"].tolist() for scene in open_collection(measured)]
    assert marks == [[False] * 4, [True] * 2 + [False] * 3, [True] * 2 + [False] * 2]


def test_each_frame_is_sampled_once(measured):
    scenes = list(open_collection(measured))
    for views in ("labelled", "all"):
        frames = [
            int(scene.view_table["frame_id"][view])
            for scene in scenes
            for view in wanted_views(scene, SampleConfig(views=views))
        ]
        assert frames == list(range(9))


def test_in_the_datasets_world_the_similarity_is_the_difference_of_offsets(measured):
    scenes, links = list(open_collection(measured)), align(measured)
    assert [(link.predecessor, link.scene, link.shared_views) for link in links] == [
        (a.name, b.name, 2) for a, b in itertools.pairwise(scenes)
    ]
    for link, (earlier, later) in zip(links, itertools.pairwise(scenes), strict=True):
        assert link.sim3 is not None
        assert link.sim3.scale == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(link.sim3.rotation, np.eye(3), atol=1e-6)
        np.testing.assert_allclose(link.sim3.translation, later.world_offset - earlier.world_offset, atol=1e-5)
        assert link.residual < 1e-5
        assert link.inlier_share == 1


def test_a_random_similarity_is_recovered_despite_noise_and_30_percent_of_outliers(predicted):
    out, backend = predicted
    scenes, links = list(open_collection(out)), align(out)
    assert len(links) == 2
    for link, (earlier, later) in zip(links, itertools.pairwise(scenes), strict=True):
        first, second = (backend.worlds[int(scene.view_table["frame_id"][0])] for scene in (earlier, later))
        true = first @ second.inverse()
        assert link.sim3 is not None
        assert abs(link.sim3.scale / true.scale - 1) < 1e-3
        centres = later.view_table["camera_to_world"][:, :3, 3]
        missed = np.linalg.norm(link.sim3.apply(centres) - true.apply(centres), axis=1) / first.scale
        assert missed.max() < 0.01, "metres, at the cameras"
        assert link.inlier_share == pytest.approx(0.84**2, abs=0.05), "16 % of the points of either scene were thrown"
        assert 0.001 < link.residual < 0.05


def test_correspondences_are_the_pixels_that_both_scenes_kept(measured):
    earlier, later = itertools.islice(open_collection(measured), 2)
    found = correspondences(earlier, later)
    slow = []
    for i, j in ((2, 0), (3, 1)):
        there = dict(zip(earlier.view(i).pixel.tolist(), earlier.view(i).position, strict=True))
        here = dict(zip(later.view(j).pixel.tolist(), later.view(j).position, strict=True))
        slow += [(here[pixel], there[pixel]) for pixel in sorted(here.keys() & there.keys())]
    assert found.views == 2
    np.testing.assert_array_equal(found.source, [source for source, _ in slow])
    np.testing.assert_array_equal(found.target, [target for _, target in slow])
    assert found.depth.min() > 0
    assert (found.weights == 1).all(), "sensors state no confidence"


# alignment.json


def test_links_are_kept_while_their_scenes_stay_the_same(tree, tmp_path, monkeypatch):
    reconstruct(settings(5, 2), tree, tmp_path, workers=1)
    first = align(tmp_path)
    assert read_alignment(tmp_path)[0].sim3.translation.tolist() == first[0].sim3.translation.tolist()
    made = []
    monkeypatch.setattr(align_module, "correspondences", lambda a, b: made.append(b.name) or correspondences(a, b))
    written = (tmp_path / ALIGNMENT).stat().st_mtime_ns
    align(tmp_path)
    assert not made
    assert (tmp_path / ALIGNMENT).stat().st_mtime_ns == written
    last = open_collection(tmp_path)[2]
    attributes = json.loads((last.path / "zarr.json").read_text())
    attributes["attributes"]["complete"]["finished"] = "later"
    (last.path / "zarr.json").write_text(json.dumps(attributes))
    align(tmp_path)
    assert made == [last.name]


def test_a_damaged_alignment_says_so(measured, tmp_path):
    (tmp_path / ALIGNMENT).write_text('{"links": [{"scene": 3}]}')
    with pytest.raises(UserError, match=r"alignment\.json: cannot be read .*delete it, it is made anew"):
        read_alignment(tmp_path)


def test_scenes_without_common_frames_have_no_link(tree, tmp_path):
    reconstruct(settings(5), tree, tmp_path, workers=1)
    assert align(tmp_path) == []
    assert not (tmp_path / ALIGNMENT).exists()
    with pytest.raises(UserError, match=r"share no frame, .*reconstruct with --overlap 10 into another --out"):
        chains(open_collection(tmp_path), [], 0.05)


# Merging


def merged(out: Path, path: Path, max_residual: float) -> np.ndarray:
    (drive,) = chains(open_collection(out), align(out), max_residual)
    count = export_merged(drive, path)
    vertices = PlyData.read(path)["vertex"].data
    assert len(vertices) == count
    return vertices


def test_merged_points_are_the_datasets_and_each_frames_once(tree, measured, tmp_path):
    vertices = merged(measured, tmp_path / "drive.ply", 0.01)
    scenes = list(open_collection(measured))
    expected = []
    for number, scene in enumerate(scenes):
        for index in range(0 if number == 0 else 2, len(scene)):
            view = scene.view(index)
            expected.append(view.position + (scene.world_offset - scenes[0].world_offset))
    position = np.column_stack([vertices[axis] for axis in "xyz"])
    np.testing.assert_allclose(position, np.concatenate(expected), atol=1e-4)
    seen = Counter(zip(vertices["scene"].tolist(), vertices["view"].tolist(), strict=True))
    assert seen.keys() == {(0, 0), (0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (1, 4), (2, 2), (2, 3)}


def test_predicted_worlds_are_merged_into_the_first(tree, predicted, tmp_path):
    out, backend = predicted
    vertices = merged(out, tmp_path / "drive.ply", 0.5)
    first = backend.worlds[0]
    position = first.inverse().apply(np.column_stack([vertices[axis] for axis in "xyz"]))
    clean = find_batches(settings(9), tree)[0][0]
    true = [view.points[view.valid] for view in SensorBackend(SensorConfig()).reconstruct(clean.frames, np.zeros(3))]
    from scipy.spatial import cKDTree

    distance, _ = cKDTree(np.concatenate(true)).query(position)
    assert np.median(distance) < 0.1, "noise of 0.5 % of 6 to 16 m; worlds that do not fit would be metres apart"


def test_merging_above_the_limit_is_refused(predicted, tmp_path):
    out, _ = predicted
    said = r"0000000002-0000000006\.zarr and 0000000000-0000000003: the same pixels lie .* --max-residual allows 0\.1%"
    with pytest.raises(UserError, match=said):
        merged(out, tmp_path / "drive.ply", 1e-3)
    assert not list(tmp_path.iterdir())


def test_points_on_a_line_determine_nothing(measured, monkeypatch, tmp_path):
    monkeypatch.setattr(align_module, "robust_sim3", lambda *_: None)
    monkeypatch.setattr(align_module, "_write", lambda path, links: None)
    monkeypatch.setattr(align_module, "read_alignment", lambda path: [])
    links = align(measured)
    assert align_module._from_json(json.loads(json.dumps(align_module._to_json(links[0])))) == links[0]
    with pytest.raises(UserError, match="shared pixels determine no similarity; reconstruct with a larger --overlap"):
        chains(open_collection(measured), links, 1.0)


def test_a_gap_begins_a_cloud_of_its_own_and_is_named(tmp_path, caplog):
    frames = [*range(4), *range(6, 10)]
    tree = kitti360_tree(tmp_path / "data", sequences=(0, 2), frames=frames, size=(48, 96))
    reconstruct(settings(3, 2), tree, tmp_path / "stores", workers=1)
    with caplog.at_level("WARNING", logger="rw3d"):
        drives = chains(open_collection(tmp_path / "stores"), align(tmp_path / "stores"), 0.05)
    assert [[placed.scene.path.stem for placed in drive] for drive in drives] == [
        ["0000000000-0000000002", "0000000001-0000000003"],
        ["0000000006-0000000008", "0000000007-0000000009"],
    ] * 2
    assert caplog.text.count("shares no frame with 0000000001-0000000003 and begins a cloud of its own") == 2


# Commands


def test_overlap_align_and_merge_as_commands(tree, tmp_path, monkeypatch, capsys):
    made = ("--root", str(tree), "--backend", "sensor", "--batch-size", "5", "--overlap", "2", "--out", str(tmp_path))
    assert run_command(monkeypatch, "reconstruct", "--dataset", "kitti360", *made) == 0
    assert "Alignment" in capsys.readouterr().out
    (tmp_path / ALIGNMENT).unlink()
    assert run_command(monkeypatch, "align", str(tmp_path)) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("Alignment", "0000000002-0000000006", "1.0000", "100%"))
    assert run_command(monkeypatch, "inspect", str(tmp_path)) == 0
    assert "Alignment" in capsys.readouterr().out
    assert run_command(monkeypatch, "export", str(tmp_path), "--merge", "--ply", str(tmp_path / "drive.ply")) == 0
    assert (tmp_path / "drive.ply").is_file()


def test_what_cannot_be_aligned_is_said(tree, tmp_path, monkeypatch, capsys):
    reconstruct(settings(5), tree, tmp_path, workers=1)
    assert run_command(monkeypatch, "align", str(tmp_path)) == 2
    assert "no two scenes share a frame; reconstruct with --overlap 10 into another --out" in capsys.readouterr().err
    assert run_command(monkeypatch, "export", str(tmp_path), "--merge", "--ply", str(tmp_path / "drive.ply")) == 2
    assert "share no frame" in capsys.readouterr().err
