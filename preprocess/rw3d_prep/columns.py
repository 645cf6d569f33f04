"""Reads whole arrays of `points/` straight from their shards into memory: what `shards.py` writes, backwards.

zarr-python decodes every chunk into memory of its own, copies it, and spreads its result over small pages; for a scene
of tens of millions of points that costs twice the time, and later makes every scattered look-up slower.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import blosc, zstd
from zarr.codecs import BloscCodec, ZstdCodec

from rw3d_common.errors import UserError
from rw3d_common.scene import Scene
from rw3d_common.schema import LABEL_ACCUMULATED, POINTS, ArraySpec
from rw3d_prep.shards import ABSENT

Bytes = npt.NDArray[np.uint8]
_CHECKSUM = 4  # bytes


def read_column(scene: Scene, name: str) -> npt.NDArray[Any]:
    """The array `points/<name>` of a local scene in memory, one row per point; every checksum is verified.

    Raises:
        UserError: a file of it is missing or damaged.
    """
    spec = next(spec for spec in (*POINTS, LABEL_ACCUMULATED) if spec.name == name)
    rows: npt.NDArray[Any] = np.empty((scene.n_points, *spec.row), spec.dtype)
    last = np.empty((spec.chunk_rows, *spec.row), spec.dtype)
    decode, folder = _decoder(spec), scene.folder / "points" / name
    try:
        for start, chunk in _chunks(folder, spec, scene.n_points):
            part = rows[start : start + spec.chunk_rows]
            whole = part if len(part) == len(last) else last
            decode(chunk, whole)
            if whole is last:
                part[:] = last[: len(part)]
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{scene.path}: array points/{name} cannot be read ({error}); "
            f"run `rw3d-prep verify {scene.path}`, then delete the store and reconstruct it again"
        ) from error
    return rows


def _chunks(folder: Path, spec: ArraySpec, rows: int) -> Iterator[tuple[int, Bytes]]:
    """First row and encoded bytes of every chunk, without the checksum that was verified."""
    per_shard = spec.shard_rows // spec.chunk_rows
    for start in range(0, rows, spec.shard_rows):
        path = folder.joinpath("c", str(start // spec.shard_rows), *("0" for _ in spec.row))
        with path.open("rb") as file:
            data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        yield from _chunks_of_shard(path, data, per_shard, start, rows, spec)


def _chunks_of_shard(
    path: Path, data: Bytes, per_shard: int, start: int, rows: int, spec: ArraySpec
) -> Iterator[tuple[int, Bytes]]:
    index = _checked(path, data[-16 * per_shard - _CHECKSUM :]).view("<u8").reshape(per_shard, 2)
    for number, first in enumerate(range(start, min(start + spec.shard_rows, rows), spec.chunk_rows)):
        offset, length = (int(value) for value in index[number])
        if offset == ABSENT:
            raise ValueError(f"{path} lacks a chunk")
        yield first, _checked(path, data[offset : offset + length])


def _checked(path: Path, data: Bytes) -> Bytes:
    body = data[:-_CHECKSUM]
    if google_crc32c.value(body) != int.from_bytes(data[-_CHECKSUM:].tobytes(), "little"):
        raise ValueError(f"{path} is damaged: wrong checksum")
    return body


def _decoder(spec: ArraySpec) -> Callable[[Bytes, npt.NDArray[Any]], object]:
    """A function that decodes one chunk into an array of its size."""
    match spec.compress:
        case (BloscCodec(),):
            return blosc.decompress
        case (ZstdCodec(),):
            return zstd.decompress
        case _:
            return _copy


def _copy(data: Bytes, out: npt.NDArray[Any]) -> None:
    out[:] = data.view(out.dtype).reshape(out.shape)
