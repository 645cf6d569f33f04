"""Reads arrays of scene stores straight from their shards, several times faster than a general Zarr reader.

    array = open_array(store / "samples" / "position", Shards())
    array.rows(3, 4)       # numpy (1, 120000, 3), one chunk read, its checksum verified

What it understands is what rw3d-prep writes: Zarr v3, chunked along the first axis only, little-endian `bytes`, then
blosc, zstd or nothing, then crc32c, in shards with their index at the end or in files of one chunk. Any other array is
read through zarr-python. A chunk that is missing or damaged is an error here, never the fill value.

On object storage, chunks are byte ranges of objects, or of their local copies with RW3D_CACHE.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import blosc, zstd

from rw3d_common.cache import cached
from rw3d_common.errors import UserError
from rw3d_common.remote import RemotePath, StorePath
from rw3d_common.schema import STORE_SUFFIX

Bytes = npt.NDArray[np.uint8]
CHECKSUM = 4  # bytes of a crc32c
ABSENT = 2**64 - 1  # offset and length of a chunk that was never written
OPEN_FILES = 256
blosc.use_threads = False  # a chunk is decoded in well under a millisecond: threads would only cost CPU


class Array(Protocol):
    """An array of a store: `shape` and `dtype` as declared, rows by number."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows [start, stop) in memory, writable, (stop − start, …).

        Raises:
            UserError: a file or chunk of these rows is missing, cut short or damaged.
        """
        ...


class Shards:
    """Open files and parsed shard indices of one process; at most `limit` files stay open.

    A forked or unpickled copy starts empty, so that no process uses another's handles. Threads may share it: a file
    closes when nobody reads it any more.
    """

    def __init__(self, limit: int = OPEN_FILES, verify: bool = True) -> None:
        """`verify`: compare every chunk with its crc32c."""
        self.limit, self.verify = limit, verify
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._files: OrderedDict[StorePath, _File] = OrderedDict()
        self._indices: dict[StorePath, npt.NDArray[np.uint64]] = {}

    def __getstate__(self) -> tuple[int, bool]:
        return self.limit, self.verify

    def __setstate__(self, state: tuple[int, bool]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def __len__(self) -> int:
        """How many files are open."""
        return len(self._files)

    def file(self, path: StorePath) -> _File:
        """The open file at `path`; UserError where there is none."""
        if self._pid != os.getpid():
            self._forget()
        file = self._files.pop(path, None) or (_File(path) if isinstance(path, Path) else _object(path))
        self._files[path] = file
        while len(self._files) > self.limit:
            self._files.popitem(last=False)
        return file

    def index(self, file: _File, chunks: int) -> npt.NDArray[np.uint64]:
        """Offset and length (chunks, 2) of every chunk of a shard, parsed once; UserError where it is damaged."""
        if (index := self._indices.get(file.path)) is None:
            index = self._indices[file.path] = file.shard_index(chunks)
        return index


class _File:
    """One open file, read by position."""

    def __init__(self, path: StorePath, content: Path | None = None) -> None:
        """Open the file `content`, by default `path`; errors name `path`."""
        self.path, self.descriptor = path, -1
        try:
            self.descriptor = os.open(content or str(path), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise self.fault("is missing") from None
        except OSError as error:
            raise self.fault(f"cannot be opened ({error.strerror})") from error
        self.size = os.fstat(self.descriptor).st_size

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def read(self, offset: int, length: int, verify: bool) -> Bytes:
        """`length` bytes from `offset`, without the crc32c that ends them."""
        data = np.empty(length, np.uint8)
        read = self.read_into(data, offset) if length >= CHECKSUM else 0
        if read != length or length < CHECKSUM:
            raise self.fault(f"is cut short ({read:,} of {length:,} bytes from {offset:,})")
        body = data[:-CHECKSUM]
        if verify and google_crc32c.value(body) != int(data[-CHECKSUM:].view("<u4")[0]):
            raise self.fault(f"is damaged (wrong checksum of the {length:,} bytes from {offset:,})")
        return body

    def read_into(self, data: Bytes, offset: int) -> int:
        """Fill `data` from `offset`; returns how many bytes there were."""
        return os.preadv(self.descriptor, [data.data], offset)

    def shard_index(self, chunks: int) -> npt.NDArray[np.uint64]:
        length = 16 * chunks + CHECKSUM
        if self.size < length:
            raise self.fault(f"is cut short ({self.size:,} bytes, its index alone has {length:,})")
        index = self.read(self.size - length, length, verify=True).view("<u8").reshape(chunks, 2)
        there = index[index[:, 0] != ABSENT]
        if (there > self.size).any() or (there.sum(axis=1) > self.size - length).any():
            raise self.fault("is damaged (its index points outside the file)")
        return index

    def fault(self, what: str) -> UserError:
        return UserError(f"{self.path}: {what}; {_mend(self.path)}")


class _Object(_File):
    """One object, read by ranges."""

    def __init__(self, path: RemotePath) -> None:
        self.path, self.descriptor = path, -1  # no file is open
        self.place, self.size = path, path.size()

    def read_into(self, data: Bytes, offset: int) -> int:
        try:
            content = self.place.read_range(offset, len(data))
        except FileNotFoundError:
            raise self.fault("is missing") from None
        data[: len(content)] = np.frombuffer(content, np.uint8)
        return len(content)


def _object(path: RemotePath) -> _File:
    """The local copy of an object where RW3D_CACHE says so, else the object itself."""
    try:
        copy = cached(path)
        return _Object(path) if copy is None else _File(path, copy)
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; {_mend(path)}") from None


@dataclass(frozen=True)
class _Layout:
    """Where the chunks of an array lie and how they are coded."""

    folder: StorePath
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk_rows: int
    file_rows: int  # rows of a shard, or of a file that is one chunk
    sharded: bool
    codec: str  # "blosc", "zstd" or ""


class DirectArray:
    """An array read from its files; see `open_array`."""

    def __init__(self, layout: _Layout, shards: Shards) -> None:
        self.layout, self.shards = layout, shards
        self.shape, self.dtype = layout.shape, layout.dtype
        self._files: dict[int, StorePath] = {}

    def rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows [start, stop) in memory, writable; see `Array.rows`."""
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        step = self.layout.chunk_rows
        parts = [
            self.chunk(number)[max(start - number * step, 0) : stop - number * step]
            for number in range(start // step, -(-stop // step) if stop > start else start // step)
        ]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty((0, *self.shape[1:]), self.dtype)

    def chunk(self, number: int) -> npt.NDArray[Any]:
        """One whole chunk (chunk rows, …); rows behind the array's end hold fill values.

        Raises:
            UserError: it is missing, cut short or damaged.
        """
        layout = self.layout
        in_file, place = divmod(number, layout.file_rows // layout.chunk_rows)
        file = self.shards.file(self._path(in_file))
        offset, length = 0, file.size
        if layout.sharded:
            index = self.shards.index(file, layout.file_rows // layout.chunk_rows)
            offset, length = int(index[place, 0]), int(index[place, 1])
            if offset == ABSENT:
                raise file.fault(f"lacks chunk {number} of the array")
        body = file.read(offset, length, self.shards.verify)
        return self._decoded(body, file)

    def _path(self, number: int) -> StorePath:
        if number not in self._files:
            self._files[number] = self.layout.folder.joinpath("c", str(number), *"0" * (len(self.shape) - 1))
        return self._files[number]

    def _decoded(self, body: Bytes, file: _File) -> npt.NDArray[Any]:
        shape = (self.layout.chunk_rows, *self.shape[1:])
        if not self.layout.codec:
            if body.nbytes != int(np.prod(shape)) * self.dtype.itemsize:
                raise file.fault(f"is damaged (a chunk of {body.nbytes:,} bytes has another size than its array's)")
            return body.view(self.dtype).reshape(shape)
        rows = np.empty(shape, self.dtype)
        try:
            if self.layout.codec == "blosc":
                size = int.from_bytes(body[4:8].tobytes(), "little")  # as its header says
                if size == rows.nbytes:
                    blosc.decompress(body, rows)
            else:
                plain = zstd.decompress(body)
                size = len(plain)
                if size == rows.nbytes:
                    rows[...] = np.frombuffer(plain, self.dtype).reshape(shape)
        except (RuntimeError, ValueError) as error:
            raise file.fault(f"is damaged ({error})") from error
        if size != rows.nbytes:
            raise file.fault(f"is damaged (a chunk of {size:,} bytes where {rows.nbytes:,} belong)")
        return rows


class ZarrArray:
    """An array in any other layout, read by zarr-python; opened only when all its chunks are there."""

    def __init__(self, folder: StorePath) -> None:
        from rw3d_common import scene_files

        try:
            self.array: Any = scene_files.open_array(folder)
            complete = self.array.nchunks_initialized >= self.array.nchunks
        except (KeyError, ValueError, RuntimeError, OSError) as error:
            raise UserError(f"{folder}: cannot be read ({error}); {_mend(folder)}") from error
        if not complete:
            raise UserError(f"{folder}: chunks are missing; {_mend(folder)}")
        self.folder, self.shape, self.dtype = folder, self.array.shape, self.array.dtype

    def rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows [start, stop) in memory; see `Array.rows`."""
        try:
            return np.asarray(self.array[start:stop])
        except (KeyError, ValueError, RuntimeError, OSError) as error:
            raise UserError(f"{self.folder}: cannot be read ({error}); {_mend(self.folder)}") from error


def open_array(folder: StorePath, shards: Shards) -> Array:
    """The array stored in `folder`, read directly where its layout is rw3d-prep's and by zarr-python elsewhere.

    Raises:
        UserError: no array there, or metadata that cannot be read.
    """
    try:
        layout = _layout(folder, json.loads((folder / "zarr.json").read_bytes()))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'zarr.json'}: cannot be read ({error}); {_mend(folder)}") from error
    return ZarrArray(folder) if layout is None else DirectArray(layout, shards)


def _layout(folder: StorePath, meta: dict[str, Any]) -> _Layout | None:
    """The layout that an array's zarr.json describes, or None where it is not one that is read directly."""
    try:
        if meta["zarr_format"] != 3 or meta["node_type"] != "array" or meta.get("storage_transformers"):
            return None
        if meta["chunk_key_encoding"] != {"name": "default", "configuration": {"separator": "/"}}:
            return None
        shape, dtype = tuple(meta["shape"]), np.dtype(meta["data_type"])
        outer = tuple(meta["chunk_grid"]["configuration"]["chunk_shape"])
        inner, codecs, sharded = _inside_shards(outer, meta["codecs"])
        codec = _codec(codecs)
    except (KeyError, TypeError, ValueError):
        return None
    along_rows = shape and outer[1:] == inner[1:] == shape[1:] and outer[0] % inner[0] == 0
    if meta["chunk_grid"]["name"] != "regular" or codec is None or not along_rows:
        return None
    return _Layout(folder, shape, dtype, inner[0], outer[0], sharded, codec)


def _inside_shards(
    outer: tuple[int, ...], codecs: list[dict[str, Any]]
) -> tuple[tuple[int, ...], list[dict[str, Any]], bool]:
    """Chunk shape and codecs inside the shards; those of the array itself where it has no shards."""
    if [codec["name"] for codec in codecs] != ["sharding_indexed"]:
        return outer, codecs, False
    sharding = codecs[0]["configuration"]
    index = [(codec["name"], codec.get("configuration", {})) for codec in sharding["index_codecs"]]
    if sharding.get("index_location", "end") != "end" or index != [("bytes", {"endian": "little"}), ("crc32c", {})]:
        raise ValueError("an index that is not read directly")
    return tuple(sharding["chunk_shape"]), sharding["codecs"], True


def _codec(codecs: list[dict[str, Any]]) -> str | None:
    """ "blosc", "zstd" or "" for bytes → that codec → crc32c; None for anything else."""
    names = [codec["name"] for codec in codecs]
    if names[0] != "bytes" or names[-1] != "crc32c" or names[1:-1] not in ([], ["blosc"], ["zstd"]):
        return None
    if codecs[0].get("configuration", {}).get("endian", "little") != "little":
        return None
    return "".join(names[1:-1])


def _mend(path: StorePath) -> str:
    if isinstance(path, RemotePath):
        return "upload the store again with `rw3d-prep upload`"
    store = next((folder for folder in path.parents if folder.name.endswith(STORE_SUFFIX)), path.parent)
    return f"`rw3d-prep verify {store}` lists all faults; copy the store again, or delete and remake it"
