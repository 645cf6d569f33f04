"""The direct reader gives what zarr-python gives, and refuses what zarr-python would fill."""

import copy
import os
import resource
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ZstdCodec

from rw3d_common import UserError
from rw3d_common.collection import store_paths
from rw3d_common.schema import ArraySpec, create_array
from rw3d_prep.shards import ShardedColumn
from rw3d_train.data.reader import DirectArray, Shards, ZarrArray, open_array
from sample_builders import sampled_stores


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Path:
    """Two scenes with samples and embedded files; read only."""
    return sampled_stores(tmp_path_factory.mktemp("reader"), settings=("embed_images=true",))


@pytest.fixture
def store(stores, tmp_path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(store_paths(stores)[0], tmp_path / "scene.zarr"))


def array_folders(store: Path) -> list[Path]:
    return sorted(path.parent for path in store.rglob("zarr.json") if '"array"' in path.read_text())


def error_of(action) -> str:
    with pytest.raises(UserError) as raised:
        action()
    assert "\n" not in str(raised.value)
    return str(raised.value)


# Equal to zarr-python


def test_every_array_of_a_store_is_read_directly_and_equal(store):
    folders = array_folders(store)
    assert {path.parent.name for path in folders} == {"points", "views", "samples", "files"}
    for folder in folders:
        ours, theirs = open_array(folder, Shards()), zarr.open_array(folder, mode="r")
        assert isinstance(ours, DirectArray), folder
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        rows = ours.rows(0, ours.shape[0])
        np.testing.assert_array_equal(rows, theirs[:])
        assert rows.dtype == theirs.dtype
        assert rows.flags.writeable


CODECS = {"none": (), "blosc": (BloscCodec(typesize=4, cname="lz4"),), "zstd": (ZstdCodec(level=1),)}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("row", [(), (3,), (5, 2)])
@pytest.mark.parametrize("dtype", ["float32", "uint8", "int64", "bool"])
def test_random_rows_across_chunks_and_shards(codec, row, dtype, tmp_path):
    spec = ArraySpec("a", row, dtype, 0, ("row", *"xy"[: len(row)]), "", "", CODECS[codec], 7, 21)
    array = create_array(zarr.create_group(tmp_path), spec, 0)
    values = np.random.default_rng(1).integers(0, 2, (100, *row)).astype(dtype)
    column = ShardedColumn(spec, array, tmp_path / "a")
    column.append(values)
    column.finish()
    ours, theirs = open_array(tmp_path / "a", Shards()), zarr.open_array(tmp_path / "a", mode="r")
    assert isinstance(ours, DirectArray)
    for start, stop in np.random.default_rng(2).integers(0, 110, (40, 2)):
        np.testing.assert_array_equal(ours.rows(int(start), int(stop)), theirs[start:stop])


def test_shards_that_zarr_python_wrote(tmp_path):
    spec = ArraySpec("a", (3,), "float32", 0, ("row", "xyz"), "", "", CODECS["blosc"], 8, 32)
    create_array(zarr.create_group(tmp_path), spec, 50)[:] = np.arange(150, dtype=np.float32).reshape(50, 3)
    ours = open_array(tmp_path / "a", Shards())
    assert isinstance(ours, DirectArray)
    np.testing.assert_array_equal(ours.rows(5, 49), np.arange(150).reshape(50, 3)[5:49])


FOREIGN = {
    "gzip": {"compressors": (GzipCodec(), Crc32cCodec())},
    "no checksum": {"compressors": ()},
    "big endian": {"serializer": BytesCodec(endian="big"), "compressors": (Crc32cCodec(),)},
    "chunks across rows": {"chunks": (4, 1), "compressors": (Crc32cCodec(),)},
    "scalar": {"shape": (), "chunks": ()},
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_layouts_go_through_zarr_python(kind, tmp_path):
    options = {"shape": (10, 3), "chunks": (4, 3), "dtype": "float32", **FOREIGN[kind]}
    theirs = zarr.create_array(tmp_path / "a", filters=(), **options)
    theirs[...] = np.random.default_rng(0).random(options["shape"]).astype(np.float32)
    ours = open_array(tmp_path / "a", Shards())
    assert isinstance(ours, ZarrArray)
    if options["shape"]:
        np.testing.assert_array_equal(ours.rows(2, 9), theirs[2:9])
        (tmp_path / "a" / "c" / "1" / "0").unlink()
        assert "chunks are missing" in error_of(lambda: open_array(tmp_path / "a", Shards()))


# Faults


def shard_of(store: Path, name: str = "samples/position") -> Path:
    return next(path for path in sorted((store / name / "c").rglob("*")) if path.is_file())


def read_all(store: Path, name: str = "samples/position", verify: bool = True):
    array = open_array(store / name, Shards(verify=verify))
    return array.rows(0, array.shape[0])


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("keep", [0, 3, 0.3, 0.99])
@pytest.mark.parametrize("name", ["samples/position", "samples/color", "points/label"])
def test_a_truncated_shard(store, name, keep, verify):
    path = shard_of(store, name)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep >= 1 else len(content) * keep)])
    message = error_of(lambda: read_all(store, name, verify))
    assert str(path) in message
    assert f"`rw3d-prep verify {store}`" in message


def test_a_shard_that_shrinks_while_it_is_open(store):
    array = open_array(store / "samples" / "color", Shards())
    array.rows(0, 1)
    os.truncate(shard_of(store, "samples/color"), 100)
    assert "is cut short" in error_of(lambda: array.rows(1, 2))


@pytest.mark.parametrize("name", ["samples/position", "samples/color", "samples/label", "points/pixel", "views/camera"])
def test_a_flipped_bit_anywhere(store, name):
    path = shard_of(store, name)
    content = path.read_bytes()
    used = np.frombuffer(content[: len(content)], np.uint8)
    for place in np.random.default_rng(3).integers(0, len(used), 30):
        broken = bytearray(content)
        broken[place] ^= 1 << int(place % 8)
        path.write_bytes(broken)
        message = error_of(lambda: read_all(store, name))
        assert str(path) in message
        assert "is damaged" in message


def test_a_missing_shard(store):
    path = shard_of(store)
    path.unlink()
    assert f"{path}: is missing" in error_of(lambda: read_all(store))


def test_a_missing_chunk_is_never_filled(store):
    path = shard_of(store)
    content = bytearray(path.read_bytes())
    index = np.frombuffer(content[-(50 * 16 + 4) : -4], "<u8").copy()
    index[2:4] = 2**64 - 1
    content[-(50 * 16 + 4) : -4] = index.tobytes()
    content[-4:] = google_crc32c.value(index.tobytes()).to_bytes(4, "little")
    path.write_bytes(content)
    array = open_array(store / "samples" / "position", Shards())
    assert array.rows(0, 1).shape[0] == 1
    assert "lacks chunk 1" in error_of(lambda: array.rows(1, 2))
    assert np.isnan(zarr.open_array(store / "samples" / "position", mode="r")[1]).all()  # what others would train on


def test_a_chunk_of_another_size(tmp_path):
    """Metadata and chunks that do not belong together."""
    for codec in CODECS.values():
        group = zarr.create_group(tmp_path, overwrite=True)
        create_array(group, ArraySpec("a", (), "uint8", 0, ("row",), "", "", codec, 8, 16), 16)[:] = 1
        create_array(group, ArraySpec("b", (), "uint8", 0, ("row",), "", "", codec, 9, 18), 18)
        shutil.copytree(tmp_path / "a" / "c", tmp_path / "b" / "c", dirs_exist_ok=True)
        assert "is damaged" in error_of(lambda: read_all(tmp_path, "b"))


def test_no_array_and_broken_metadata(store):
    assert "cannot be read" in error_of(lambda: open_array(store / "samples" / "nothing", Shards()))
    (store / "samples" / "color" / "zarr.json").write_text("{")
    assert "cannot be read" in error_of(lambda: open_array(store / "samples" / "color", Shards()))


def test_verification_can_be_switched_off(store):
    path = shard_of(store, "samples/color")
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    assert read_all(store, "samples/color", verify=False).shape


# Handles


def open_files(store: Path) -> int:
    """How many files of `store` this process holds open."""
    return sum(str(store) in os.path.realpath(link) for link in Path("/proc/self/fd").iterdir())


def test_open_files_are_bounded_and_closed(store):
    shards = Shards(limit=3)
    for folder in array_folders(store):
        array = open_array(folder, shards)
        array.rows(0, array.shape[0])
        assert len(shards) <= 3
        assert 0 < open_files(store) <= 3
    del shards, array
    assert open_files(store) == 0


def test_threads_may_share_files_beyond_the_limit(store):
    folders = array_folders(store / "points") * 4
    shards = Shards(limit=1)
    expected = {folder: zarr.open_array(folder, mode="r")[:] for folder in set(folders)}

    def same(folder: Path) -> bool:
        array = open_array(folder, shards)
        return all(np.array_equal(array.rows(0, array.shape[0]), expected[folder], equal_nan=True) for _ in range(5))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(same, folders))


def test_a_fork_opens_its_own_files(store):
    shards = Shards()
    array = open_array(store / "samples" / "position", shards)
    expected = array.rows(0, 1)
    assert len(shards) == 1
    shards._pid = -1  # what a forked copy sees
    np.testing.assert_array_equal(array.rows(0, 1), expected)
    assert shards._pid == os.getpid()


def test_a_pickle_holds_no_handle(store):
    shards = Shards(limit=5, verify=False)
    array = open_array(store / "samples" / "position", shards)
    expected = array.rows(1, 2)
    other = copy.deepcopy(array)  # goes through the state that a pickle holds
    assert len(other.shards) == 0
    assert (other.shards.limit, other.shards.verify) == (5, False)
    np.testing.assert_array_equal(other.rows(1, 2), expected)


def test_file_limit_of_the_system_is_far(store):
    assert Shards().limit < resource.getrlimit(resource.RLIMIT_NOFILE)[0]
