"""`files/` of a scene store: encoded images and labels themselves, so that training needs nothing but the store.

With `reconstruct --embed-images` all of them; else those that are no files of their own (a table's cells, for example),
which only preparation could read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from rw3d_common.images import ImageSource
from rw3d_common.schema import FILE_KINDS, FILE_OFFSETS, FILES, create_array
from rw3d_prep.shards import ShardedColumn

GROUP = "files"


class FilesWriter:
    """Appends the files of view after view; memory is one chunk per kind."""

    def __init__(self, scene: zarr.Group, store: Path) -> None:
        """Create the group in the scene that is being written in `store`."""
        self.group = scene.create_group(GROUP)
        self.columns = {
            spec.name: ShardedColumn(spec, create_array(self.group, spec, 0), store / GROUP / spec.name)
            for spec in FILES
        }
        self.offsets = {kind: [0] for kind in FILE_KINDS}

    def append(self, files: Mapping[str, ImageSource | None]) -> None:
        """Add the files of the next view, by kind; None where it has none.

        Raises:
            OSError: a file cannot be read, or the disk refuses.
        """
        for kind, offset in self.offsets.items():
            source = files[kind]
            content = source.read_bytes() if source else b""
            self.columns[kind].append(np.frombuffer(content, np.uint8))
            offset.append(offset[-1] + len(content))

    def finish(self) -> dict[str, int]:
        """Write what is left and the offsets; returns how many files there are of each kind."""
        for column in self.columns.values():
            column.finish()
        for kind, spec in zip(FILE_KINDS, FILE_OFFSETS, strict=True):
            create_array(self.group, spec, len(self.offsets[kind]))[:] = np.asarray(self.offsets[kind], spec.dtype)
        return {kind: int(np.count_nonzero(np.diff(offset))) for kind, offset in self.offsets.items()}

    @property
    def written(self) -> dict[Path, dict[str, Any]]:
        """SHA-256 and size of the finished shards."""
        return {path: facts for column in self.columns.values() for path, facts in column.files.items()}

    def abandon(self) -> None:
        """Close what is open; the store is going to be removed."""
        for column in self.columns.values():
            column.abandon()
