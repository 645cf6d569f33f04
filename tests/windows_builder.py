"""KITTI-360's accumulated LiDAR, written from its documentation: binary records of 28 (train) or 16 bytes (test)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from builders import kitti_sequence
from ply_builder import vertex_table, write_ply


def static_window(
    root: Path, sequence: int, first: int, last: int, points: npt.NDArray[np.floating], part: str = "train"
) -> Path:
    """The static points (N, 3), metres in the dataset's world, of a window of frames."""
    count = np.arange(len(points))
    columns = [(name, "f4", points[:, axis]) for axis, name in enumerate("xyz")]
    columns += [(name, "u1", count % 256) for name in ("red", "green", "blue")]
    if part == "train":
        columns += [("semantic", "i4", np.full(len(points), 11)), ("instance", "i4", np.full(len(points), 11000))]
    columns += [("visible", "u1", np.ones(len(points)))]
    columns += [("confidence", "f4", np.ones(len(points)))] if part == "train" else []
    table = vertex_table(columns)
    assert table.dtype.itemsize == {"train": 28, "test": 16}[part]
    folder = root / "data_3d_semantics" / part / kitti_sequence(sequence) / "static"
    return write_ply(folder / f"{first:010d}_{last:010d}.ply", table)
