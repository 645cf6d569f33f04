"""`rw3d-prep sample-views`: what lies in `samples/`, made in any way, killed, damaged, and read back."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from builders import kitti360_tree, kitti_files
from rw3d_common import UserError, open_collection, open_scene
from rw3d_common.collection import store_paths
from rw3d_common.config import config_hash
from rw3d_common.labels import IGNORE
from rw3d_common.schema import SAMPLE_TABLES, sample_arrays
from rw3d_prep import cli, samples
from rw3d_prep.attach import attach_labels
from rw3d_prep.config import load_config
from rw3d_prep.pipeline import reconstruct
from rw3d_prep.sample_views import FAILURES, sample_views
from rw3d_prep.sample_writer import SEAL
from rw3d_prep.samples import make_samples, sample_widths
from rw3d_prep.sampling import SampleConfig
from rw3d_prep.verify import verify, verify_store
from rw3d_prep.write import file_table

FRAMES, POINTS = 6, 500
UNLABELLED = (1, 4)  # frames of drive 0
KILLS = 20
CONFIG = SampleConfig(points=POINTS)
COPIED = ("position", "color", "confidence", "label", "truth")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two drives of six frames; two frames have no scribble."""
    root = kitti360_tree(tmp_path_factory.mktemp("data"), sequences=(0, 2), frames=range(FRAMES), size=(32, 64))
    for frame in UNLABELLED:
        kitti_files(root, 0, frame)["scribble"].unlink()
    return root


@pytest.fixture(scope="module")
def scenes(root, tmp_path_factory) -> Path:
    """A collection of one scene per drive, without samples; read only."""
    out = tmp_path_factory.mktemp("scenes") / "stores"
    reconstruct(load_config("kitti360", None, "sensor", None, []), root, out, workers=1)
    return out


@pytest.fixture
def stores(scenes, tmp_path) -> Path:
    """A copy of that collection."""
    return Path(shutil.copytree(scenes, tmp_path / "stores"))


@pytest.fixture
def store(stores) -> Path:
    """The scene with unlabelled frames."""
    return store_paths(stores)[0]


def hash_of(store: Path, config: SampleConfig = CONFIG, workers: int = 1) -> str:
    """`samples_hash` of samples made anew."""
    shutil.rmtree(store / "samples", ignore_errors=True)
    make_samples(store, config, workers)
    return open_scene(store).samples_hash()


def change(**values: object) -> SampleConfig:
    return SampleConfig(**{**CONFIG.model_dump(), **values})


def all_samples(store: Path) -> list:
    scene = open_scene(store)
    return [scene.sample(index) for index in range(len(scene.samples))]


# What they hold


@pytest.mark.parametrize("values", [{}, {"strategy": "random"}, {"draws": 2, "views": "all"}, {"radius": 4.0}])
def test_every_row_is_the_point_it_indexes(store, values):
    config = change(**values)
    make_samples(store, config)
    scene = open_scene(store)
    offset = scene.view_table["point_offset"]
    points = {name: scene.read(name) for name in (*COPIED, "pixel")}
    views = range(FRAMES) if config.views == "all" else [view for view in range(FRAMES) if view not in UNLABELLED]
    expected = [(view, draw) for view in views for draw in range(config.draws)]
    assert [(sample.view, sample.draw) for sample in all_samples(store)] == expected
    for sample in all_samples(store):
        for name in COPIED:
            np.testing.assert_array_equal(getattr(sample, name), points[name][sample.index])
        own = sample.index[: sample.n_own]
        np.testing.assert_array_equal(sample.pixel, points["pixel"][own])
        assert sample.n_own == np.count_nonzero(np.searchsorted(offset, sample.index, side="right") - 1 == sample.view)
        assert ((own >= offset[sample.view]) & (own < offset[sample.view + 1])).all()
        assert len(np.unique(sample.index)) == len(sample.index) == POINTS
        if config.strategy == "view-aware":
            assert sample.n_own == 0.6 * POINTS
    assert verify_store(store) == []


def test_plain_zarr_and_tensorstore_read_the_same(store):
    make_samples(store, CONFIG)
    scene = open_scene(store)
    group = zarr.open_group(store, mode="r")["samples"]
    specs = [*sample_arrays(POINTS, 300, with_truth=True), *SAMPLE_TABLES]
    assert set(group.array_keys()) == {spec.name for spec in specs}
    for number, sample in enumerate(all_samples(store)):
        for spec in specs:
            there = group[spec.name][number]
            assert dict(group[spec.name].attrs) == {"unit": spec.unit, "meaning": spec.meaning}
            np.testing.assert_array_equal(there, getattr(sample, spec.name, len(sample.index)))
    tensorstore = pytest.importorskip("tensorstore", reason="tensorstore is in the extra dev")
    for spec in specs:
        driver = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{store / 'samples' / spec.name}/"}}
        values = tensorstore.open(driver, read=True, open=True).result().read().result()
        np.testing.assert_array_equal(values, scene.samples.read(spec.name))


def test_the_scene_itself_stays_as_it_was(stores):
    before = {scene.name: scene.content_hash() for scene in open_collection(stores)}
    roots = {path: (path / "zarr.json").read_bytes() for path in store_paths(stores)}
    sample_views(stores, CONFIG, workers=1)
    assert {scene.name: scene.content_hash() for scene in open_collection(stores)} == before
    assert all((path / "zarr.json").read_bytes() == content for path, content in roots.items())
    assert verify(stores) == []
    assert not list(stores.rglob("*.tmp*")) + list(stores.rglob("*.lock"))


def test_the_record_counts_what_is_there(store):
    record, items = make_samples(store, change(keep_labelled=True)), all_samples(store)
    own = [sample.n_own for sample in items]
    assert record["samples"] == record["views"] == len(items) == FRAMES - len(UNLABELLED)
    assert record["points"] == POINTS * len(items)
    assert record["own_points"] == sum(own)
    assert record["correspondences"] == {"mean": np.mean(own), "quantile_05": np.quantile(own, 0.05)}
    assert record["labelled_points"] == sum(np.count_nonzero(sample.label != IGNORE) for sample in items)
    scene = open_scene(store)
    given = [np.count_nonzero(sample.label != scene.read("label")[sample.index]) for sample in items]
    assert record["attached_labels"] == sum(given) > 0
    assert {f"samples/{name}" for name in file_table(store / "samples")} == set(record["files"])


def test_a_scene_says_what_samples_it_has(store):
    assert "none; `rw3d-prep sample-views` makes them" in repr(open_scene(store))
    make_samples(store, CONFIG)
    scene = open_scene(store)
    for text in (repr(scene), scene._repr_html_()):
        assert "4 (500 points each, 300 of the view" in text
    assert repr(scene.sample(0)).startswith("SceneSample(view 0, draw 0, 500 points, 300 of the view's own, ")
    (store / "samples" / "zarr.json").unlink()
    assert "damaged or unfinished" in repr(open_scene(store))


@pytest.mark.parametrize("index", [-1, 4])
def test_a_sample_that_is_not_there(store, index):
    make_samples(store, CONFIG)
    with pytest.raises(UserError, match=f"no sample {index}; this scene has samples 0 to 3"):
        open_scene(store).sample(index)


# The same bytes, however they are made


def test_threads_and_order_do_not_matter(store, monkeypatch):
    expected = hash_of(store)
    files = {name: facts for name, facts in open_scene(store).samples.record["files"].items() if "/c/" in name}
    assert hash_of(store, workers=3) == expected
    assert {name: open_scene(store).samples.record["files"][name] for name in files} == files
    monkeypatch.setattr(samples, "in_order", lambda make, items, _: [make(item) for item in items[::-1]][::-1])
    assert hash_of(store) == expected


def test_processes_do_not_matter(stores, tmp_path):
    other = Path(shutil.copytree(stores, tmp_path / "other"))
    sample_views(stores, CONFIG, workers=1)
    sample_views(other, CONFIG, workers=2)
    for one, two in zip(open_collection(stores), open_collection(other), strict=True):
        assert one.samples_hash() == two.samples_hash()


def content(sample) -> tuple:
    names = (*COPIED, "index", "pixel", "center", "radius", "view", "draw")
    return tuple(np.asarray(getattr(sample, name)).tobytes() for name in names)


def test_views_are_drawn_alike_whichever_are_asked_for(store):
    hash_of(store)
    labelled = {sample.view: content(sample) for sample in all_samples(store)}
    hash_of(store, change(views="all"))
    every = {sample.view: content(sample) for sample in all_samples(store)}
    assert set(every) == set(range(FRAMES))
    assert {view: every[view] for view in labelled} == labelled


def test_draws_and_seeds_differ(store):
    hash_of(store)
    single = [content(sample) for sample in all_samples(store)]
    hash_of(store, change(draws=3))
    triple = all_samples(store)
    assert [content(sample) for sample in triple if sample.draw == 0] == single
    assert len({sample.index.tobytes() for sample in triple}) == len(triple)
    hash_of(store, change(seed=1))
    assert not {sample.index.tobytes() for sample in triple} & {s.index.tobytes() for s in all_samples(store)}


# Labels


def slow_attach(image, attachable, pixel, index) -> dict[int, int]:
    """Position of a point → its label, pixel by pixel and point by point."""
    width, best = image.shape[1], {}
    for flat, train_id in enumerate(image.ravel()):
        if train_id == IGNORE or not attachable[train_id]:
            continue
        near = []
        for place, other in enumerate(pixel):
            squared = (flat // width - other // width) ** 2 + (flat % width - other % width) ** 2
            if squared <= 4:
                near.append((squared, index[place], place))
        if near:
            squared, _, place = min(near)
            best.setdefault(place, []).append((squared, flat, train_id))
    return {place: int(min(candidates)[2]) for place, candidates in best.items()}


@pytest.mark.parametrize("seed", range(12))
def test_attaching_equals_the_slow_loop(seed):
    generator = np.random.default_rng(seed)
    shape, points = (9, 13), int(generator.integers(0, 60))
    image = generator.choice(np.array([0, 1, 2, 255], np.uint8), shape, p=(0.1, 0.1, 0.1, 0.7))
    pixel = generator.integers(0, image.size, points).astype(np.int32)  # several points may share a pixel
    index = generator.permutation(1000)[:points].astype(np.uint32)
    attachable = np.ones(256, bool)
    attachable[1] = False
    place, label = attach_labels(image, attachable, pixel, index)
    assert dict(zip(place.tolist(), label.tolist(), strict=True)) == slow_attach(image, attachable, pixel, index)
    assert (np.diff(place) > 0).all()


def test_labelled_points_are_kept_and_labelled_pixels_attached(store):
    make_samples(store, change(keep_labelled=True))
    scene, attached = open_scene(store), 0
    offset, label = scene.view_table["point_offset"], scene.read("label")
    for sample in all_samples(store):
        first, last = offset[sample.view : sample.view + 2]
        kept = sample.index[: sample.n_own]
        assert set(first + np.flatnonzero(label[first:last] != IGNORE)) <= set(kept.tolist())
        expected = label[sample.index].copy()
        given = slow_attach(
            scene.view(sample.view).read_label(), scene.classes.in_3d, sample.pixel.tolist(), kept.tolist()
        )
        for place, train_id in given.items():
            if expected[place] == IGNORE:
                expected[place] = train_id
                attached += 1
        np.testing.assert_array_equal(sample.label, expected)
    assert attached == scene.samples.record["attached_labels"] > 0
    assert verify_store(store) == []


def test_labels_are_attached_from_embedded_files_too(store, root, tmp_path):
    expected = hash_of(store, change(keep_labelled=True))
    data = Path(shutil.copytree(root, tmp_path / "data"))
    config = load_config("kitti360", None, "sensor", None, ["embed_images=true"])
    reconstruct(config, data, tmp_path / "embedded", workers=1)
    shutil.rmtree(data)
    embedded = store_paths(tmp_path / "embedded")[0]
    assert hash_of(embedded, change(keep_labelled=True)) == expected
    assert verify_store(embedded) == []


def test_a_sample_has_room_for_every_labelled_point(store):
    make_samples(store, change(points=40, own_share=0.1, keep_labelled=True))
    assert any(sample.n_own > 4 for sample in all_samples(store))
    assert verify_store(store) == []


def test_widths():
    offset, none = np.array([0, 100, 150, 400]), np.zeros(3, np.int64)
    assert sample_widths(change(points=50, own_share=0.6), offset, none) == (50, 30)
    assert sample_widths(change(points=50, own_share=0.6), offset, np.array([0, 45, 0])) == (50, 45)
    assert sample_widths(change(points=50, own_share=0.6, strategy="random"), offset, none) == (50, 50)
    assert sample_widths(change(points=1000, own_share=0.1), offset, none) == (400, 250)


# Small scenes, other scenes


def test_a_scene_smaller_than_the_request_gives_all_and_says_so_once(stores, caplog):
    with caplog.at_level("WARNING", logger="rw3d"):
        sample_views(stores, change(points=50_000), workers=1)
    told = [message for message in caplog.messages if "fewer than the 50,000 points" in message]
    assert len(told) == 1
    assert told[0].startswith("2 scenes have fewer")
    for scene in open_collection(stores):
        for index in range(len(scene.samples)):
            assert np.array_equal(np.sort(scene.sample(index).index), np.arange(scene.n_points))
    assert verify(stores) == []


def test_scenes_without_labels(root, store, stores, caplog, tmp_path):
    bare = kitti360_tree(tmp_path / "bare", sequences=(0,), frames=range(2), size=(32, 64))
    for frame in range(2):
        kitti_files(bare, 0, frame)["scribble"].unlink()
    out = tmp_path / "unlabelled"
    reconstruct(load_config("kitti360", None, "sensor", None, []), bare, out, workers=1)
    with pytest.raises(UserError, match="no view has a sparse label; --views all"):
        sample_views(out, CONFIG, workers=1)
    with pytest.raises(UserError, match="no view has a sparse label; --views all"):
        make_samples(store_paths(out)[0], CONFIG)
    shutil.copytree(out, stores / "unlabelled")
    with caplog.at_level("WARNING", logger="rw3d"):
        assert len(sample_views(stores, CONFIG, workers=1).written) == 2
    assert "1 of 3 scenes have no labelled view and get no samples" in caplog.text
    assert len(sample_views(out, change(views="all"), workers=1).written) == 1


# Another configuration


def test_another_configuration_is_refused_or_overwrites(stores, store):
    sample_views(stores, CONFIG, workers=1)
    before = open_scene(store).samples_hash()
    again = sample_views(stores, CONFIG, workers=1)
    assert (len(again.skipped), again.written) == (2, [])
    with pytest.raises(UserError, match=r"points: 500 → 400.*--overwrite"):
        sample_views(stores, change(points=400), workers=1)
    with pytest.raises(UserError, match=r"seed: 0 → 7"):
        make_samples(store, change(seed=7))
    assert open_scene(store).samples_hash() == before
    assert len(sample_views(stores, change(points=400), 1, overwrite=True).written) == 2
    assert len(open_scene(store).sample(0).index) == 400
    assert len(sample_views(stores, change(points=400), 1, overwrite=True).skipped) == 2
    assert verify(stores) == []


def test_two_makers_of_one_scene(store, monkeypatch):
    """The second to finish keeps the first one's samples, or says that they are of another configuration."""
    expected = hash_of(store)
    rival = Path(shutil.copytree(store / "samples", store.parent / "rival"))
    for config in (CONFIG, change(seed=3)):
        shutil.rmtree(store / "samples")
        monkeypatch.setattr(samples, "step", lambda: shutil.copytree(rival, store / "samples", dirs_exist_ok=True))
        if config is CONFIG:
            make_samples(store, config)
        else:
            with pytest.raises(UserError, match="another configuration"):
                make_samples(store, config)
        assert open_scene(store).samples_hash() == expected
    assert not list(store.parent.glob("*.tmp*"))


# Unfinished


def test_unfinished_samples_are_never_read(store):
    make_samples(store, CONFIG)
    edit_attributes(store, lambda attributes: attributes.pop("complete"))
    for read in (lambda scene: scene.sample(0), lambda scene: scene.samples_hash()):
        with pytest.raises(UserError, match="never finished; delete"):
            read(open_scene(store))
    with pytest.raises(UserError, match="never finished; delete"):
        make_samples(store, CONFIG)
    assert any("never finished" in fault for fault in verify_store(store))
    make_samples(store, CONFIG, overwrite=True)
    assert verify_store(store) == []


def test_what_a_dead_writer_left_is_swept(stores, store):
    make_samples(store, CONFIG)
    orphan = store.with_name(f"{store.name}.tmp-0123456789ab")
    (store / "samples").rename(orphan)
    with pytest.raises(UserError, match="has no samples"):
        open_scene(store).sample(0)
    assert verify_store(store) == []
    sample_views(stores, CONFIG, workers=1)
    assert not orphan.exists()


def test_leaving_on_an_error_leaves_nothing(store, monkeypatch):
    def full() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(samples, "step", full)
    with pytest.raises(KeyboardInterrupt):
        make_samples(store, CONFIG, workers=2)
    assert sorted(path.name for path in store.parent.iterdir()) == [store.name]
    assert not (store / "samples").exists()


# Damaged


def edit_attributes(store: Path, edit) -> None:
    path = store / "samples" / "zarr.json"
    document = json.loads(path.read_text())
    edit(document["attributes"])
    path.write_text(json.dumps(document))


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 5] ^= 0x10
    path.write_bytes(data)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("position/c/0/0/0", halve),
        ("position/c/0/0/0", flip_a_bit),
        ("position/c/0/0/0", Path.unlink),
        ("color/c/0/0/0", flip_a_bit),
        ("label/c/0/0", Path.unlink),
        ("index/c/0/0", flip_a_bit),
        ("n_own/c/0", Path.unlink),
        ("pixel", shutil.rmtree),
        ("zarr.json", Path.unlink),
        ("zarr.json", halve),
        ("zarr.json", lambda path: path.write_text(path.read_text().replace('"samples": 4', '"samples": 3'))),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", "damage").strip("<>"),
)
def test_damage_is_named(store, name, damage):
    make_samples(store, CONFIG)
    damage(store / "samples" / name)
    faults = verify_store(store)
    assert any(f"samples/{name}" in fault or f"samples: its {name}" in fault for fault in faults), faults
    open_scene(store).content_hash()  # the cloud can still be read


@pytest.mark.parametrize("damage", [halve, flip_a_bit, Path.unlink])
def test_damaged_samples_are_not_read_as_data(store, damage):
    make_samples(store, CONFIG)
    damage(store / "samples" / "position" / "c" / "0" / "0" / "0")
    with pytest.raises(UserError, match=r"array samples/position cannot be read .*sample-views` again") as error:
        all_samples(store)
    assert "\n" not in str(error.value)


def test_a_foreign_file_is_named(store):
    make_samples(store, CONFIG)
    (store / "samples" / ".DS_Store").write_text("x")
    assert verify_store(store) == ["samples/.DS_Store does not belong to the store"]


def reseal(store: Path) -> None:
    """Make the record promise what is there now, so that only the values can be at fault."""

    def edit(attributes) -> None:
        del attributes[SEAL]
        table = file_table(store / "samples")
        attributes["complete"]["files"] = {f"samples/{name}": facts for name, facts in table.items()}
        attributes[SEAL] = config_hash(attributes)

    edit_attributes(store, edit)


def swap_own_and_other(array) -> None:
    array[0, [0, POINTS - 1]] = array[0, [POINTS - 1, 0]]


@pytest.mark.parametrize(
    ("name", "edit", "fault"),
    [
        ("position", lambda array: array.__setitem__((1, 7), 1e3), "differs from points/position"),
        ("position", lambda array: array.__setitem__((1, 7), np.nan), "not finite"),
        ("radius", lambda array: array.__setitem__(2, 0.01), "outside the sphere of 0.01 m"),
        ("color", lambda array: array.__setitem__((2, 0, 0), 255 - array[2, 0, 0]), "differs from points/color"),
        ("truth", lambda array: array.__setitem__((0, 3), 14), "differs from points/truth"),
        ("label", lambda array: array.__setitem__((0, POINTS - 1), 3), "differs from points/label"),
        ("pixel", lambda array: array.__setitem__((0, 3), 0), "differs from points/pixel"),
        ("index", lambda array: array.__setitem__((0, 3), 10**9), "points that do not exist"),
        ("index", lambda array: array.__setitem__((0, 3), array[0, 4]), "the same point twice"),
        ("index", swap_own_and_other, "not exactly those of view 0"),
        ("n_own", lambda array: array.__setitem__(0, 301), "more than there is room for"),
        ("n_own", lambda array: array.__setitem__(0, 299), "contradict the counts"),
        ("n_points", lambda array: array.__setitem__(0, 499), "contradict the counts"),
        ("view", lambda array: array.__setitem__(0, 1), "in order"),
        ("draw", lambda array: array.__setitem__(0, 1), "in order"),
    ],
)
def test_verify_knows_what_must_hold(store, name, edit, fault):
    make_samples(store, CONFIG)
    group = zarr.open_group(store / "samples", mode="r+")
    values = group[name][:]
    edit(values)
    group[name][:] = values
    reseal(store)
    faults = verify_store(store)
    assert any(fault in one for one in faults), faults


def test_verify_knows_the_padding(store):
    config = SampleConfig(points=50_000)
    make_samples(store, config)
    group = zarr.open_group(store / "samples", mode="r+")
    group["n_points"][:] = group["n_points"][:] - 1
    reseal(store)
    assert any("contradict" in fault for fault in verify_store(store))
    edit_attributes(
        store, lambda attributes: attributes["complete"].update(points=attributes["complete"]["points"] - 4)
    )
    reseal(store)
    assert any("samples/index is not filled behind its points" in fault for fault in verify_store(store))


# Killed and stopped


@pytest.fixture(scope="module")
def many(root, tmp_path_factory) -> Path:
    """Six scenes of two frames, without samples."""
    out = tmp_path_factory.mktemp("many") / "stores"
    reconstruct(load_config("kitti360", None, "sensor", 2, []), root, out, workers=1)
    return out


def start(stores: Path, workers: int = 1) -> subprocess.Popen[str]:
    """The command in a process, past its imports."""
    options = ["--points", str(POINTS), "--views", "all", "--draws", "4", "--workers", str(workers)]
    command = [sys.executable, "-c", "from rw3d_prep.cli import main; main()", "sample-views", str(stores), *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith("sample all views of 6 scenes"), line
    return process


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def hashes(stores: Path) -> dict[str, str]:
    return {scene.name: scene.samples_hash() for scene in open_collection(stores)}


@pytest.fixture(scope="module")
def expected(many, tmp_path_factory) -> tuple[dict[str, str], float]:
    """Hashes of an uninterrupted run, and the seconds that it takes after its imports."""
    out = Path(shutil.copytree(many, tmp_path_factory.mktemp("whole") / "stores"))
    process = start(out)
    started = time.monotonic()
    assert finish(process)[0] == 0
    return hashes(out), time.monotonic() - started


def test_killed_at_random_moments_then_completed(many, expected, tmp_path):
    out = Path(shutil.copytree(many, tmp_path / "stores"))
    generator, interrupted = random.Random(5), 0
    for part in range(KILLS):
        process = start(out)
        time.sleep((part + generator.random()) / KILLS * expected[1])
        process.kill()
        finish(process)
        sampled = [path for path in store_paths(out) if (path / "samples").exists()]
        interrupted += len(sampled) < 6
        for path in sampled:
            scene = open_scene(path)
            assert scene.samples_hash() == expected[0][scene.name]
        for path in sampled[::2]:  # so that the next kill meets work, too
            shutil.rmtree(path / "samples")
    assert interrupted >= KILLS // 3, "kills must meet runs that are not through"
    assert finish(start(out))[0] == 0
    assert hashes(out) == expected[0]
    assert verify(out) == []
    assert not list(out.rglob("*.tmp*")) + list(out.rglob("*.lock"))


@pytest.mark.parametrize("workers", [1, 2])
def test_stopped_by_a_signal_and_completed(many, expected, tmp_path, workers):
    out = Path(shutil.copytree(many, tmp_path / "stores"))
    process = start(out, workers)
    while process.poll() is None and not any((store / "samples").is_dir() for store in store_paths(out)):
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    code, err = finish(process)
    assert (code, "same command" in err, "Traceback" in err) == (75, True, False), err
    assert not list(out.rglob("*.tmp*")) + list(out.rglob("*.lock"))
    assert finish(start(out, workers))[0] == 0
    assert hashes(out) == expected[0]


# The command


def run(monkeypatch, *arguments: object) -> int:
    """Exit code of one command in this process."""
    monkeypatch.setattr(sys, "argv", ["rw3d-prep", *map(str, arguments)])
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    monkeypatch.setattr(cli, "configure", lambda: None)
    monkeypatch.setenv("COLUMNS", "220")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_bare_command_takes_every_scene_and_says_so_first(stores, monkeypatch, caplog, capsys):
    monkeypatch.chdir(stores.parent)
    with caplog.at_level("INFO", logger="rw3d"):
        assert run(monkeypatch, "sample-views") == 0
    first = caplog.messages[0]
    assert first.startswith(
        "sample labelled views of 2 scenes in stores: 120,000 points each, 60% of them the view's own"
    )
    names = [scene.name for scene in open_collection(stores)]
    shown = capsys.readouterr().out
    assert all(word in shown for word in (*names, "correspondences", "share of own", "labelled"))
    scene = open_scene(store_paths(stores)[0])
    assert scene.samples.attrs["config"] == samples.identity(scene, SampleConfig())
    assert run(monkeypatch, "verify", "stores") == 0
    capsys.readouterr()
    assert run(monkeypatch, "inspect", "stores") == 0
    assert "correspondences" in capsys.readouterr().out


def test_options_reach_the_configuration(stores, store, monkeypatch):
    options = ["--points", 300, "--own-share", 0.5, "--radius", 3.5, "--draws", 2, "--seed", 9, "--views", "all"]
    assert run(monkeypatch, "sample-views", stores, *options, "--keep-labelled", "--workers", 1) == 0
    wanted = SampleConfig(points=300, own_share=0.5, radius=3.5, draws=2, seed=9, views="all", keep_labelled=True)
    scene = open_scene(store)
    assert scene.samples.attrs["config"] == samples.identity(scene, wanted)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("nowhere",), "no such folder"),
        (("--points", "0"), "points"),
        (("--own-share", "1.5"), "own_share"),
        (("--radius", "wide"), "robust, official or a number of metres"),
        (("--draws", "0"), "draws"),
    ],
)
def test_bad_input_is_one_sentence(stores, monkeypatch, caplog, options, told):
    monkeypatch.chdir(stores.parent)
    with caplog.at_level("INFO", logger="rw3d"):
        assert run(monkeypatch, "sample-views", *options) == 2
    assert told in caplog.messages[-1]
    assert not list(stores.rglob("samples"))


def test_a_scene_that_fails_leaves_the_others(root, stores, monkeypatch, tmp_path):
    """With --keep-labelled the label images are read: one that is gone fails its scene alone."""
    gone = kitti_files(root, 2, 3)["scribble"]
    gone.rename(tmp_path / "aside.png")
    try:
        options = ["--points", POINTS, "--keep-labelled", "--workers", 1]
        assert run(monkeypatch, "sample-views", stores, *options) == 3
    finally:
        (tmp_path / "aside.png").rename(gone)
    (failure,) = [json.loads(line) for line in (stores / FAILURES).read_text().splitlines()]
    assert "drive_0002" in failure["scene"]
    assert gone.name in failure["error"]
    assert [bool(list(path.glob("samples"))) for path in store_paths(stores)] == [True, False]
    assert run(monkeypatch, "sample-views", stores, *options) == 0
    assert not (stores / FAILURES).exists()
    assert verify(stores) == []
