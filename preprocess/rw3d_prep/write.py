"""SceneWriter: streams view after view into a temporary store and publishes it whole, or not at all.

Order of events: write into `<name>.zarr.tmp-<id>` under a lock that dies with the process → whole shards only, by one
process → SHA-256 of every file → completion record → fsync → rename. A store under its final name is therefore
complete; anything else is swept by the next run once its lock is free.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Set
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from rw3d_common.collection import local_stores
from rw3d_common.errors import disk_errors
from rw3d_common.images import ImageSource
from rw3d_common.labels import IGNORE
from rw3d_common.schema import SCHEMA_VERSION, STORE_SUFFIX, VIEWS, create_array, point_arrays
from rw3d_prep.embed import FilesWriter
from rw3d_prep.fuse import FusedView
from rw3d_prep.shards import ShardedColumn

TEMPORARY = f"{STORE_SUFFIX}.tmp-"
SETTLE_SECONDS = 0.5


def store_path(out: Path, name: str) -> Path:
    """Where the scene of this name (split/sequence/title) is stored."""
    return out / f"{name}{STORE_SUFFIX}"


def finished_names(out: Path) -> set[str]:
    """The names (split/sequence/title) of all scenes below `out`."""
    return {path.relative_to(out).as_posix().removesuffix(STORE_SUFFIX) for path in local_stores(out)}


class SceneWriter:
    """Writes one scene store; use as a context manager, then call `publish`.

    Leaving the block without `publish` removes the temporary store.
    """

    def __init__(self, target: Path, with_truth: bool, embed: bool = False) -> None:
        """Open a temporary store beside `target`; with `embed` it also takes encoded images and labels."""
        self.target = target
        self.temporary = target.with_name(f"{target.name}.tmp-{uuid.uuid4().hex[:12]}")
        self._columns: dict[str, ShardedColumn] = {}
        self._files: FilesWriter | None = None
        with disk_errors(self.temporary):
            target.parent.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(self.temporary)
            try:
                self._columns = self._create(with_truth)
                self._files = FilesWriter(self.group, self.temporary) if embed else None
            except BaseException as error:
                settle(type(error))
                self.discard()
                raise
        self.offsets = [0]
        self.class_counts: dict[str, npt.NDArray[np.int64]] = {
            name: np.zeros(256, np.int64) for name in ("label", "truth") if name in self._columns
        }

    def _create(self, with_truth: bool) -> dict[str, ShardedColumn]:
        self.group = zarr.create_group(self.temporary)
        points = self.group.create_group("points")
        return {
            spec.name: ShardedColumn(spec, create_array(points, spec, 0), self.temporary / "points" / spec.name)
            for spec in point_arrays(with_truth)
        }

    def append_without_view(self, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """Add points that belong to no view, as the arrays of `points/` by name; they come before those of all views.

        Raises:
            DiskFull: no space left.
        """
        assert len(self.offsets) == 1, "points of no view come first"
        with disk_errors(self.temporary):
            self._add(columns)
        self.offsets[0] += len(columns["position"])

    def append(self, view: FusedView, files: Mapping[str, ImageSource | None] = MappingProxyType({})) -> None:
        """Add the points of the next view and, in a store with `files/`, those of its images that it shall hold.

        Raises:
            DiskFull: no space left.
        """
        with disk_errors(self.temporary):
            self._add(vars(view))
            if self._files is not None:
                self._files.append(files)
        self.offsets.append(self.offsets[-1] + len(view.position))

    def _add(self, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        for name, column in self._columns.items():
            column.append(columns[name])
        for name, counts in self.class_counts.items():
            counts += np.bincount(columns[name], minlength=256)

    def publish(self, views: dict[str, Any], view_attributes: dict[str, Any], attributes: dict[str, Any]) -> None:
        """Write the view table and the completion record, and move the store under its final name.

        Args:
            views: the arrays of `views/` by name, without `point_offset`.
            view_attributes: strings that belong to views (camera names, image paths).
            attributes: the scene's attributes, without `complete`.

        Raises:
            DiskFull: no space left.
        """
        with disk_errors(self.temporary):
            for column in self._columns.values():
                column.finish()
            self._write_views({**views, "point_offset": np.asarray(self.offsets)}, view_attributes)
            self.group.update_attributes({**attributes, "schema_version": SCHEMA_VERSION, "complete": self._record()})
            sync_tree(self.temporary)
        try:
            self.temporary.rename(self.target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            self.discard()  # another process finished the same batch first; its content is the same
        else:
            sync_folder(self.target.parent)
            self._lock.release()

    def _write_views(self, views: dict[str, Any], attributes: dict[str, Any]) -> None:
        group = self.group.create_group("views", attributes=attributes)
        for spec in VIEWS:
            values = np.asarray(views[spec.name], spec.dtype)
            create_array(group, spec, len(values))[:] = values

    def _record(self) -> dict[str, Any]:
        label = self.class_counts["label"]
        known = {path: facts for column in self._columns.values() for path, facts in column.files.items()}
        embedded = {"embedded": self._files.finish()} if self._files else {}
        known |= self._files.written if self._files else {}
        return {
            **embedded,
            "points": self.offsets[-1],
            "views": len(self.offsets) - 1,
            "labelled_points": int(label[:IGNORE].sum()),
            "class_points": {
                name: {str(i): int(counts[i]) for i in np.flatnonzero(counts)}
                for name, counts in self.class_counts.items()
            },
            "files": file_table(self.temporary, known),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def discard(self) -> None:
        """Remove the temporary store; nothing was published."""
        for column in self._columns.values():
            column.abandon()
        if self._files is not None:
            self._files.abandon()
        shutil.rmtree(self.temporary, ignore_errors=True)
        self._lock.release()

    def __enter__(self) -> SceneWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock.held:
            settle(kind)
            self.discard()


def settle(kind: type[BaseException] | None) -> None:
    """After a signal, let zarr's thread end the call that was waited for: it would write into what is removed next."""
    if kind is not None and not issubclass(kind, Exception):
        time.sleep(SETTLE_SECONDS)


class Lock:
    """An exclusive advisory lock beside what it guards; the kernel frees it when its process dies."""

    def __init__(self, guarded: Path) -> None:
        """Wait for the lock `<guarded>.lock`."""
        self.path = guarded.with_name(guarded.name + ".lock")
        self.held = False
        while not self.held:  # another process may unlink the file between open and flock: then the lock is worthless
            self.file = self.path.open("w")
            fcntl.flock(self.file, fcntl.LOCK_EX)
            self.held = is_still(self.path, self.file.fileno())
            if not self.held:
                self.file.close()

    def release(self) -> None:
        self.path.unlink(missing_ok=True)
        self.file.close()
        self.held = False


def is_still(path: Path, descriptor: int) -> bool:
    """True while `path` names the file that is open as `descriptor`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def sweep_orphans(folder: Path, only: Set[str] | None = None) -> int:
    """Remove temporary stores below `folder` whose writers are dead; returns how many. Running writers keep theirs.

    With `only`, stores of other scenes than these are left to the jobs whose they are.
    """
    swept = 0
    for lock in _temporaries(folder, only, locks=True):
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            swept += _remove(lock.with_name(lock.name.removesuffix(".lock")))
            lock.unlink(missing_ok=True)
    for store in _temporaries(
        folder, only, locks=False
    ):  # a writer's lock exists before its store: these have no owner
        if not store.with_name(store.name + ".lock").exists():
            swept += _remove(store)
    return swept


def _temporaries(folder: Path, only: Set[str] | None, locks: bool) -> list[Path]:
    """Temporary stores below `folder`, or their locks; folders that vanish meanwhile are no error."""
    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        found += [Path(place, name) for name in (files if locks else folders) if TEMPORARY in name]
        folders[:] = [name for name in folders if STORE_SUFFIX not in name]
    return sorted(
        path for path in found if only is None or path.relative_to(folder).as_posix().split(TEMPORARY)[0] in only
    )


def _remove(store: Path) -> int:
    existed = store.exists()
    shutil.rmtree(store, ignore_errors=True)
    return int(existed)


def file_table(store: Path, known: Mapping[Path, dict[str, Any]] = MappingProxyType({})) -> dict[str, dict[str, Any]]:
    """SHA-256 and size of every file of a store but the root zarr.json, which holds this table.

    `known` files were hashed while they were written and are not read again.
    """
    return {
        path.relative_to(store).as_posix(): known.get(path) or {"sha256": sha256_of(path), "size": path.stat().st_size}
        for path in _files(store)
        if path != store / "zarr.json"
    }


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(store: Path) -> Iterator[Path]:
    return (path for path in sorted(store.rglob("*")) if path.is_file())


def sync_tree(store: Path) -> None:
    for path in _files(store):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
