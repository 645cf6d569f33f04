"""Writes one array of `points/` or `samples/` as Zarr v3 shards, chunk by chunk, straight to its files.

zarr-python holds a whole shard in memory and spends two thirds of its time around the codecs; this is the same bytes
(sharding_indexed, index at the end, crc32c) in one pass: encode a chunk as soon as it is full, append it to the shard's
file, hash what was written. A test holds zarr-python and tensorstore to reading back exactly what went in.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
import numpy.typing as npt
import zarr
from numcodecs import blosc, zstd
from zarr.codecs import BloscCodec, ZstdCodec

from rw3d_common.schema import ArraySpec

ABSENT = 2**64 - 1  # offset and length of a chunk that was never written


class ShardedColumn:
    """Appends rows to one array; memory is one chunk, whatever the number of rows."""

    def __init__(self, spec: ArraySpec, array: zarr.Array[Any], folder: Path) -> None:
        """`array` is the empty array that was created in `folder`, its own folder in the store."""
        self.array, self.folder, self.spec = array, folder, spec
        self.encode = _encoder(spec)
        self.buffer = np.empty((spec.chunk_rows, *spec.row), spec.dtype)
        self.buffered = self.rows = 0
        self.files: dict[Path, dict[str, Any]] = {}  # of finished shards: SHA-256 and size
        self._shard: _Shard | None = None

    def append(self, rows: npt.NDArray[Any]) -> None:
        """Add rows (n, …) of the array's dtype.

        Raises:
            OSError: the disk refuses.
        """
        while len(rows):
            free = self.spec.chunk_rows - self.buffered
            part, rows = rows[:free], rows[free:]
            self.buffer[self.buffered : self.buffered + len(part)] = part
            self.buffered += len(part)
            if self.buffered == self.spec.chunk_rows:
                self._flush()

    def finish(self) -> None:
        """Write what is left, the last chunk padded with the fill value, and set the array's length."""
        total = self.rows + self.buffered
        if self.buffered:
            self.buffer[self.buffered :] = self.spec.fill
            self._flush()
        if self._shard is not None:
            self._close_shard()
        self.array.resize((total, *self.spec.row))

    def abandon(self) -> None:
        """Close what is open; the array is going to be removed."""
        if self._shard is not None:
            with contextlib.suppress(OSError):  # a full disk refuses what is still buffered
                self._shard.file.close()
            self._shard = None

    def _flush(self) -> None:
        if self._shard is None:
            path = self.folder.joinpath("c", str(self.rows // self.spec.shard_rows), *("0" for _ in self.spec.row))
            self._shard = _Shard(path, self.spec.shard_rows // self.spec.chunk_rows)
        self._shard.write(self.encode(self.buffer))
        self.rows += self.buffered
        self.buffered = 0
        if self.rows % self.spec.shard_rows == 0:
            self._close_shard()

    def _close_shard(self) -> None:
        assert self._shard is not None
        self.files[self._shard.path] = self._shard.close()
        self._shard = None


class _Shard:
    """One shard file, written front to back: encoded chunks, then the index of their places."""

    def __init__(self, path: Path, chunks: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.size, self.chunks = path, 0, 0
        self.index = np.full((chunks, 2), ABSENT, "<u8")
        self.digest = hashlib.sha256()
        self.file: BinaryIO = path.open("wb")

    def write(self, chunk: bytes) -> None:
        self.index[self.chunks] = self.size, len(chunk)
        self.chunks += 1
        self._put(chunk)

    def close(self) -> dict[str, Any]:
        self._put(_with_checksum(self.index.tobytes()))
        self.file.close()
        return {"sha256": self.digest.hexdigest(), "size": self.size}

    def _put(self, data: bytes) -> None:
        self.file.write(data)
        self.digest.update(data)
        self.size += len(data)


def _encoder(spec: ArraySpec) -> Callable[[npt.NDArray[Any]], bytes]:
    """The inner codecs of an array as one function: little-endian bytes → compression → crc32c."""
    codecs = [_numcodec(codec) for codec in spec.compress]
    blosc.use_threads = False  # its threads change the order of blocks in a chunk, and cost CPU

    def encode(rows: npt.NDArray[Any]) -> bytes:
        data: Any = rows
        for codec in codecs:
            data = codec.encode(data)
        return _with_checksum(data if codecs else rows.tobytes())

    return encode


def _numcodec(codec: BloscCodec | ZstdCodec) -> Any:
    if isinstance(codec, ZstdCodec):
        return zstd.Zstd(level=codec.level, checksum=codec.checksum)
    return blosc.Blosc(codec.cname.value, codec.clevel, blosc.SHUFFLE, codec.blocksize, codec.typesize)


def _with_checksum(data: bytes) -> bytes:
    return bytes(data) + google_crc32c.value(bytes(data)).to_bytes(4, "little")
