"""SamplesWriter: streams training items into a temporary folder and publishes it as `samples/` of a scene store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from rw3d_common.errors import disk_errors
from rw3d_common.scene_sample import GROUP
from rw3d_common.schema import SAMPLE_TABLES, ArraySpec, create_array
from rw3d_prep.group_writer import SEAL as SEAL
from rw3d_prep.group_writer import GroupWriter, remove_from_store
from rw3d_prep.shards import ShardedColumn


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


class SamplesWriter(GroupWriter[EncodedColumn]):
    """Writes the samples of one scene; use as a context manager, then call `publish`."""

    def __init__(self, store: Path, arrays: Sequence[ArraySpec]) -> None:
        """Open a temporary folder beside `store`; `arrays` have one chunk per sample."""
        super().__init__(store, GROUP, arrays, EncodedColumn)

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
            self._finish()
            for spec in SAMPLE_TABLES:
                values = np.asarray(table[spec.name], spec.dtype)
                create_array(self.group, spec, len(values))[:] = values
            self._seal(config, counts, {})
        return self._move()


def remove_samples(store: Path) -> None:
    """Remove the samples of a store in one step."""
    remove_from_store(store, GROUP)
