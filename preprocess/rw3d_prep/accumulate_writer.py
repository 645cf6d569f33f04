"""AccumulatedWriter: adds `points/label_accumulated` and the group `accumulated` to a finished store.

The array is moved into `points/` first and the group last. Whoever finds the group finds all of it; an array without
the group was left by a run that was stopped between the two, and the next run replaces it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rw3d_common.errors import disk_errors
from rw3d_common.labels import U8
from rw3d_common.scene_accumulated import GROUP, POINT_ARRAY, has_accumulated
from rw3d_common.schema import ACCUMULATED_FILES, ACCUMULATED_OFFSET, LABEL_ACCUMULATED, create_array
from rw3d_prep.group_writer import GroupWriter, remove_from_store
from rw3d_prep.shards import ShardedColumn
from rw3d_prep.write import Lock


class AccumulatedWriter(GroupWriter[ShardedColumn]):
    """Writes the accumulated labels of one scene; use as a context manager, then call `publish`."""

    def __init__(self, store: Path) -> None:
        """Open a temporary folder beside `store`."""
        super().__init__(store, GROUP, (LABEL_ACCUMULATED, ACCUMULATED_FILES), ShardedColumn)
        self.offsets = [0]

    def append(self, image: bytes) -> None:
        """Add the label image of the next view, an empty one where it has no label.

        Raises:
            DiskFull: no space left.
        """
        with disk_errors(self.temporary):
            self.columns["label"].append(np.frombuffer(image, np.uint8))
        self.offsets.append(self.offsets[-1] + len(image))

    def publish(self, points: U8, config: dict[str, Any], verdict: dict[str, Any], overwrite: bool) -> bool:
        """Write the points' labels and the completion record, and move all of it into the store.

        Args:
            points: (N,) train ids, 255 = unlabelled.
            config: all that decides the bytes, beside the scene itself.
            verdict: the attributes `usable` and `report`.
            overwrite: replace labels that are there.

        Returns:
            False when labels are there already: nothing was moved.

        Raises:
            DiskFull: no space left.
        """
        with disk_errors(self.temporary):
            self.columns[POINT_ARRAY].append(points)
            self._finish()
            create_array(self.group, ACCUMULATED_OFFSET, len(self.offsets))[:] = np.asarray(self.offsets)
            counts = {"views": len(self.offsets) - 1, "points": len(points)}
            self._seal(config, counts, {POINT_ARRAY: f"points/{POINT_ARRAY}"}, **verdict)
        turn = Lock(self.store.with_name(f"{self.store.name}.tmp-accumulate"))  # two runs must not mix their halves
        try:
            if has_accumulated(self.store) and not overwrite:
                return False
            remove_from_store(self.store, GROUP)
            remove_from_store(self.store, f"points/{POINT_ARRAY}")
            with disk_errors(self.store):
                (self.temporary / POINT_ARRAY).rename(self.store / "points" / POINT_ARRAY)
            return self._move()
        finally:
            turn.release()
