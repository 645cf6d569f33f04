"""Reading what is finished: groups, their attributes and rows of their arrays, on disk or on object storage."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.storage import LocalStore, ObjectStore

from rw3d_common.cache import cached
from rw3d_common.errors import UserError
from rw3d_common.remote import RemotePath, StorePath, client, import_obstore, remote_errors
from rw3d_common.schema import SCHEMA_VERSION, STORE_SUFFIX

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype


class _Objects(ObjectStore[Any]):
    """A bucket as zarr reads it, through the cache where there is one; failures are sentences."""

    def __init__(self, place: RemotePath) -> None:
        import_obstore(place)
        super().__init__(client(place), read_only=True)
        self.bucket = place.bucket

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        path = RemotePath(self.bucket, key)
        with remote_errors(path):
            try:
                copy = await asyncio.to_thread(cached, path)
            except FileNotFoundError:
                return None
            if copy:
                return await LocalStore(copy.parent, read_only=True).get(copy.name, prototype, byte_range)
            return await super().get(key, prototype, byte_range)


def open_group(path: StorePath) -> zarr.Group:
    """The Zarr group at `path`, for reading; raises what zarr does where there is none."""
    if isinstance(path, Path):
        return zarr.open_group(path, mode="r")
    return zarr.open_group(_Objects(path), path=path.key, mode="r")


def open_array(path: StorePath) -> zarr.Array[Any]:
    """The Zarr array at `path`, for reading; raises what zarr does where there is none."""
    if isinstance(path, Path):
        return zarr.open_array(path, mode="r")
    return zarr.open_array(_Objects(path), path=path.key, mode="r")


def store_attributes(path: StorePath) -> dict[str, Any]:
    """Attributes of the finished scene store at `path`.

    Raises:
        UserError: no store there, one that was never finished, is damaged, or of another schema version.
    """
    if not (path / "zarr.json").is_file():
        if path.is_dir() and path.name.endswith(STORE_SUFFIX):
            if isinstance(path, RemotePath):
                raise UserError(
                    f"{path}: its zarr.json, which comes last, is not there; end its upload with `rw3d-prep upload`"
                )
            raise UserError(
                f"{path}: its zarr.json is missing; delete this folder and run `rw3d-prep reconstruct` again"
            )
        hint = "open_collection() opens a folder of scenes" if path.is_dir() else "see what `rw3d-prep inspect` lists"
        raise UserError(f"{path}: no scene store here; {hint}")
    try:
        attrs: dict[str, Any] = dict(open_group(path).attrs)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: its zarr.json cannot be read ({reason}); delete this folder and run `rw3d-prep reconstruct` again"
        ) from error
    if not isinstance(attrs.get("complete"), dict):
        raise UserError(
            f"{path}: it has no completion record, so it was never finished; "
            "delete this folder and run `rw3d-prep reconstruct` again"
        )
    if attrs.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{path}: written with schema version {attrs.get('schema_version')}, this rw3d reads {SCHEMA_VERSION}; "
            "install the matching rw3d or reconstruct the scene again"
        )
    return attrs


def read_array(
    store: StorePath, name: str, group: zarr.Group, rows: slice, files: Mapping[str, Mapping[str, Any]], mend: str
) -> Any:
    """Rows of the array `name` (its path in the store), which lies in `group`; `files` are the sizes to expect.

    Zarr reads a lost chunk as the fill value, so every file of the array must have its size.

    Raises:
        UserError: it cannot be read, or a file is missing or of another size; the message ends with `mend`.
    """
    try:
        _require_sizes(
            store, name, {path: facts["size"] for path, facts in files.items() if path.startswith(f"{name}/")}
        )
        return np.asarray(group[name.rpartition("/")[2]][rows])  # type: ignore[index]
    except (KeyError, ValueError, RuntimeError, OSError) as error:
        raise UserError(f"{store}: array {name} cannot be read ({error}); {mend}") from error


def _require_sizes(store: StorePath, name: str, promised: Mapping[str, int]) -> None:
    """Raise OSError where a file of the array `name` is missing or has not its promised size."""
    there = (
        {f"{name}/{file}": size for file, size in (store / name).sizes().items()}
        if isinstance(store, RemotePath)
        else {}
    )
    for path, expected in promised.items():
        if isinstance(store, Path):
            size = (store / path).stat().st_size
        elif (size := there.get(path, -1)) < 0:
            raise FileNotFoundError(f"no such object: {store / path}")
        if size != expected:
            raise OSError(f"{path} has {size:,} bytes, {expected:,} when written")


def finished_attributes(store: StorePath, group: str, what: str, command: str) -> dict[str, Any]:
    """Attributes of a finished `group` that was added to a store; `what` it holds and the `command` that makes it.

    Raises:
        UserError: it is not there, was never finished, is damaged, or of another schema version.
    """
    if not (store / group).exists():
        raise UserError(f"{store}: this scene has no {what}; `rw3d-prep {command} {store}` makes them")
    again = f"delete {store / group} and run `rw3d-prep {command}` again"
    try:
        attrs: dict[str, Any] = dict(open_group(store / group).attrs)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{store / group}: its zarr.json is missing or cannot be read ({reason}); {again}") from error
    if not isinstance(attrs.get("complete"), dict):
        raise UserError(f"{store / group}: no completion record, so these {what} were never finished; {again}")
    if attrs.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{store / group}: written with schema version {attrs.get('schema_version')}, this rw3d reads "
            f"{SCHEMA_VERSION}; install the matching rw3d, or {again}"
        )
    return attrs
