"""SamplesWriter: streams training items into a temporary folder and publishes it as `samples/` of a scene store.

The temporary folder lies beside the store under the name and lock of a temporary store, so that whoever sweeps those
sweeps it too. The rename comes after the completion record and fsync: what is called `samples` is complete.
"""

from __future__ import annotations

import errno
import shutil
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from rw3d_common.config import config_hash
from rw3d_common.errors import disk_errors
from rw3d_common.scene_sample import GROUP
from rw3d_common.schema import SAMPLE_TABLES, SCHEMA_VERSION, ArraySpec, create_array
from rw3d_prep.shards import ShardedColumn
from rw3d_prep.write import Lock, file_table, settle, sync_folder, sync_tree

SEAL = "attributes_sha256"  # of all other attributes: damage to the record itself must show


class EncodedColumn(ShardedColumn):
    """An array of one chunk per row whose chunks come encoded, in order, from whichever thread made them."""

    def __init__(self, spec: ArraySpec, array: zarr.Array[Any], folder: Path) -> None:
        super().__init__(spec, array, folder)
        self.encode_chunk, self.encode = self.encode, bytes

    def append_chunk(self, chunk: bytes) -> None:
        """Add one row that `encode_chunk` made of its array (1, …).

        Raises:
            OSError: the disk refuses.
        """
        self.buffer, self.buffered = chunk, 1  # type: ignore[assignment]
        self._flush()


class SamplesWriter:
    """Writes the samples of one scene; use as a context manager, then call `publish`."""

    def __init__(self, store: Path, arrays: Sequence[ArraySpec]) -> None:
        """Open a temporary folder beside `store`; `arrays` have one chunk per sample."""
        self.store = store
        self.temporary = store.with_name(f"{store.name}.tmp-{uuid.uuid4().hex[:12]}")
        self.columns: dict[str, EncodedColumn] = {}
        with disk_errors(self.temporary):
            self._lock = Lock(self.temporary)
            try:
                self.group = zarr.create_group(self.temporary)
                for spec in arrays:
                    array = create_array(self.group, spec, 0)
                    self.columns[spec.name] = EncodedColumn(spec, array, self.temporary / spec.name)
            except BaseException as error:
                settle(type(error))
                self.discard()
                raise

    def append(self, chunks: Mapping[str, bytes]) -> None:
        """Add one sample: the encoded chunk of every array by name.

        Raises:
            DiskFull: no space left.
        """
        with disk_errors(self.temporary):
            for name, chunk in chunks.items():
                self.columns[name].append_chunk(chunk)

    def publish(
        self, table: Mapping[str, npt.NDArray[Any]], config: Mapping[str, Any], counts: Mapping[str, Any]
    ) -> bool:
        """Write the tables and the completion record, and move all of it to `samples/` of the store.

        Args:
            table: the arrays with one row per sample, by name.
            config: all that decides the bytes, as saved with them.
            counts: what else goes into the completion record.

        Returns:
            False when samples are there already: nothing was moved.

        Raises:
            DiskFull: no space left.
        """
        with disk_errors(self.temporary):
            for column in self.columns.values():
                column.finish()
            for spec in SAMPLE_TABLES:
                values = np.asarray(table[spec.name], spec.dtype)
                create_array(self.group, spec, len(values))[:] = values
            attributes = {
                "schema_version": SCHEMA_VERSION,
                "config": dict(config),
                "config_hash": config_hash(config),
                "complete": self._record(counts),
            }
            self.group.update_attributes({**attributes, SEAL: config_hash(attributes)})
            sync_tree(self.temporary)
        return self._move()

    def _record(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        known = {path: facts for column in self.columns.values() for path, facts in column.files.items()}
        return {
            **counts,
            "files": {f"{GROUP}/{name}": facts for name, facts in file_table(self.temporary, known).items()},
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def _move(self) -> bool:
        try:
            self.temporary.rename(self.store / GROUP)
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

    def __enter__(self) -> SamplesWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock.held:
            settle(kind)
            self.discard()


def remove_samples(store: Path) -> None:
    """Remove the samples of a store in one step: they are renamed to an orphan first, which every run sweeps."""
    doomed = store.with_name(f"{store.name}.tmp-{uuid.uuid4().hex[:12]}")
    with disk_errors(store):
        (store / GROUP).rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
