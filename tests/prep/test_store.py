"""The store's declared metadata, its writer, and that other readers agree."""

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from rw3d_common import open_scene
from rw3d_common.schema import (
    CHUNK_ROWS,
    FILE_OFFSETS,
    FILES,
    POINTS,
    SAMPLE_TABLES,
    SHARD_ROWS,
    VIEWS,
    create_array,
    sample_arrays,
)
from rw3d_prep.fuse import FusedView
from rw3d_prep.write import SceneWriter, sweep_orphans

GOLDEN = Path(__file__).parent / "golden_schema.json"


def fused(n: int, seed: int = 0) -> FusedView:
    generator = np.random.default_rng(seed)
    return FusedView(
        position=generator.normal(size=(n, 3)).astype(np.float32),
        color=generator.integers(0, 255, (n, 3)).astype(np.uint8),
        confidence=generator.random(n).astype(np.float32),
        pixel=generator.integers(0, 100, n).astype(np.uint32),
        label=generator.choice(np.array([0, 1, 255], np.uint8), n),
        truth=generator.choice(np.array([0, 1], np.uint8), n),
        confidence_threshold=0.0,
        finite_share=1.0,
    )


def view_columns(count: int) -> dict[str, np.ndarray]:
    columns = {spec.name: np.zeros((count, *spec.row), spec.dtype) for spec in VIEWS if spec.name != "point_offset"}
    columns["camera_to_world"][:] = np.eye(4)
    columns["image_size"][:] = 10
    columns["has_label"][:] = True
    return columns


STRINGS = {"cameras": ["c"], "images": ["x.png"] * 300, "labels": [None] * 300, "truths": [None] * 300}
ATTRIBUTES = {
    "dataset": "demo", "split": "train", "sequence": "s", "root": "/", "backend": {"name": "test"}, "config_hash": "0",
    "world_offset": [0, 0, 0], "ignored_ids": [255], "ignored_in_truth": [], "label_encoding": "gray8",
    "truth_encoding": "gray8",
    "classes": [{"train_id": i, "name": n, "raw_ids": [i], "color": [0, 0, 0], "in_3d": True} for i, n in enumerate("ab")],
}  # fmt: skip


def write_scene(path: Path, views: list[FusedView]) -> None:
    with SceneWriter(path, with_truth=True) as writer:
        for view in views:
            writer.append(view)
        writer.publish(view_columns(len(views)), STRINGS, ATTRIBUTES)


def schema_document(tmp_path: Path) -> dict[str, object]:
    group = zarr.create_group(tmp_path / "schema")
    document = {}
    samples = (*sample_arrays(120_000, 72_000, with_truth=True), *SAMPLE_TABLES)
    for name, specs in (("points", POINTS), ("views", VIEWS), ("samples", samples), ("files", (*FILES, *FILE_OFFSETS))):
        part = group.create_group(name)
        for spec in specs:
            create_array(part, spec, 200)
            document[f"{name}/{spec.name}"] = json.loads(
                (tmp_path / "schema" / name / spec.name / "zarr.json").read_text()
            )
    return document


def test_schema_is_the_committed_one(tmp_path):
    """A change of the contract must show in review: delete the golden file, run this test, commit what it writes."""
    document = schema_document(tmp_path)
    if not GOLDEN.exists():
        GOLDEN.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
        pytest.fail(f"{GOLDEN.name} was missing and has been written anew; review and commit it")
    assert document == json.loads(GOLDEN.read_text())


def test_rows_survive_chunk_and_shard_borders(tmp_path):
    sizes = [0, 5, CHUNK_ROWS, CHUNK_ROWS - 5, 3, SHARD_ROWS, 1, 0]
    views = [fused(n, seed) for seed, n in enumerate(sizes)]
    write_scene(tmp_path / "a.zarr", views)
    scene = open_scene(tmp_path / "a.zarr")
    assert np.diff(scene.view_table["point_offset"]).tolist() == sizes
    for name in ("position", "color", "confidence", "pixel", "label", "truth"):
        np.testing.assert_array_equal(scene.read(name), np.concatenate([getattr(view, name) for view in views]))


def test_a_scene_of_two_hundred_views_has_few_files(tmp_path):
    write_scene(tmp_path / "a.zarr", [fused(100)] * 200)
    assert sum(path.is_file() for path in (tmp_path / "a.zarr").rglob("*")) <= 60


def test_an_all_unlabelled_scene_stores_its_labels(tmp_path):
    view = fused(50)
    blank = FusedView(**{**vars(view), "label": np.full(50, 255, np.uint8)})
    write_scene(tmp_path / "a.zarr", [blank])
    assert (tmp_path / "a.zarr" / "points" / "label" / "c" / "0").is_file(), "a lost shard must not look like this one"


def test_leaving_without_publishing_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), SceneWriter(tmp_path / "a.zarr", with_truth=False) as writer:
        writer.append(fused(5))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_sweeping_spares_running_writers(tmp_path):
    orphan = tmp_path / "train" / "b.zarr.tmp-123"
    (orphan / "points").mkdir(parents=True)
    with SceneWriter(tmp_path / "train" / "a.zarr", with_truth=False) as writer:
        assert sweep_orphans(tmp_path) == 1
        assert writer.temporary.is_dir()
    assert list((tmp_path / "train").iterdir()) == []


def test_other_readers_read_the_same(tmp_path):
    tensorstore = pytest.importorskip("tensorstore", reason="tensorstore is in the extra dev")
    view = fused(1000)
    write_scene(tmp_path / "a.zarr", [view])
    for name in ("position", "color", "confidence", "pixel", "label", "truth"):
        expected = getattr(view, name)
        store = {"driver": "file", "path": str(tmp_path / "a.zarr" / "points" / name)}
        array = tensorstore.open({"driver": "zarr3", "kvstore": store}).result()
        np.testing.assert_array_equal(array.read().result(), expected)
        np.testing.assert_array_equal(zarr.open_group(tmp_path / "a.zarr", mode="r")["points"][name][:], expected)
