"""GroupWriter: adds a group, such as `samples/`, to a finished store: whole, or not at all.

The temporary folder lies beside the store under the name and lock of a temporary store, so that whoever sweeps those
sweeps it too. The rename comes after the completion record and fsync: what has its final name is complete.
"""

from __future__ import annotations

import errno
import shutil
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import zarr

from rw3d_common.config import config_hash
from rw3d_common.errors import disk_errors
from rw3d_common.schema import SCHEMA_VERSION, ArraySpec, create_array
from rw3d_prep.shards import ShardedColumn
from rw3d_prep.write import Lock, file_table, settle, sync_folder, sync_tree

SEAL = "attributes_sha256"  # of all other attributes: damage to the record itself must show
Column = TypeVar("Column", bound=ShardedColumn)


class GroupWriter(Generic[Column]):
    """Streams arrays into a temporary folder and moves it into a store; use as a context manager."""

    def __init__(self, store: Path, name: str, arrays: Sequence[ArraySpec], column: type[Column]) -> None:
        """Open a temporary folder beside `store` for its group `name`, with a writer of type `column` per array."""
        self.store, self.name = store, name
        self.temporary = temporary_beside(store)
        self.columns: dict[str, Column] = {}
        with disk_errors(self.temporary):
            self._lock = Lock(self.temporary)
            try:
                self.group = zarr.create_group(self.temporary)
                for spec in arrays:
                    array = create_array(self.group, spec, 0)
                    self.columns[spec.name] = column(spec, array, self.temporary / spec.name)
            except BaseException as error:
                settle(type(error))
                self.discard()
                raise

    def _finish(self) -> None:
        for column in self.columns.values():
            column.finish()

    def _seal(
        self, config: Mapping[str, Any], counts: Mapping[str, Any], elsewhere: Mapping[str, str], **more: Any
    ) -> None:
        """Write attributes and completion record, and make all of it durable.

        `elsewhere` holds the final folder in the store of arrays that do not stay in the group, by name.
        """
        known = {path: facts for column in self.columns.values() for path, facts in column.files.items()}
        files = {}
        for name, facts in file_table(self.temporary, known).items():
            array, _, rest = name.partition("/")
            files[f"{elsewhere[array]}/{rest}" if array in elsewhere else f"{self.name}/{name}"] = facts
        attributes = {
            "schema_version": SCHEMA_VERSION,
            "config": dict(config),
            "config_hash": config_hash(config),
            **more,
            "complete": {
                **counts,
                "files": files,
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            },
        }
        self.group.update_attributes({**attributes, SEAL: config_hash(attributes)})
        sync_tree(self.temporary)

    def _move(self) -> bool:
        """Give the group its final name; False when there is one already."""
        try:
            self.temporary.rename(self.store / self.name)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                with disk_errors(self.store):
                    raise
            return False
        sync_folder(self.store)
        self._lock.release()
        return True

    def discard(self) -> None:
        """Remove the temporary folder; nothing was published."""
        for column in self.columns.values():
            column.abandon()
        shutil.rmtree(self.temporary, ignore_errors=True)
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock.held:
            settle(kind)
            self.discard()


def temporary_beside(store: Path) -> Path:
    """A new name for what is not, or no more, a part of a store; every run sweeps such folders."""
    return store.with_name(f"{store.name}.tmp-{uuid.uuid4().hex[:12]}")


def remove_from_store(store: Path, name: str) -> None:
    """Remove a folder of a store in one step, if it is there: it is renamed to an orphan first, which every run sweeps."""
    doomed = temporary_beside(store)
    with disk_errors(store):
        try:
            (store / name).rename(doomed)
        except FileNotFoundError:
            return
    shutil.rmtree(doomed, ignore_errors=True)
