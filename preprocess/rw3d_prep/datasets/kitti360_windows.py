"""KITTI-360's accumulated LiDAR: the static points of `data_3d_semantics`, in windows of about 200 m of a drive.

A window is a PLY file named after its first and last frame. Its points are in the dataset's world; neighbouring windows
overlap by about 10 m.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from rw3d_common.cameras import F32
from rw3d_common.errors import UserError

_NAME = re.compile(r"(\d{10})_(\d{10})")
_AXES = ("x", "y", "z")


@dataclass(frozen=True)
class Window:
    """The static points around the frames `first` to `last`."""

    path: Path
    first: int
    last: int

    def read_points(self) -> F32:
        """(N, 3) float32 metres in the dataset's world, finite; read-only.

        Raises:
            UserError: the file is missing, truncated or no PLY file.
        """
        return _read_points(self.path)


@lru_cache(maxsize=1)  # the frames of a window follow one another; one of them takes about 60 MB
def _read_points(path: Path) -> F32:
    from numpy.lib.recfunctions import structured_to_unstructured

    from rw3d_prep.datasets.ply import read_vertices

    points: F32 = np.asarray(structured_to_unstructured(read_vertices(path, _AXES), np.float32))
    points = points[np.isfinite(points).all(axis=1)]
    points.flags.writeable = False
    return points


def find_windows(root: Path, sequence: str) -> list[Window]:
    """The windows of a drive, of KITTI-360's own train and test part; empty where there are none.

    Raises:
        UserError: a PLY file that is not named after two frames.
    """
    windows = []
    for path in sorted((root / "data_3d_semantics").glob(f"*/{sequence}/static/*.ply")):
        name = _NAME.fullmatch(path.stem)
        if not name:
            raise UserError(
                f"{path}: not named <first frame>_<last frame>.ply with ten digits each; restore its official name"
            )
        windows.append(Window(path, int(name[1]), int(name[2])))
    return windows


def window_of(windows: Sequence[Window], frame_id: int) -> Window | None:
    """Of the windows that hold a frame, the one whose middle is nearest to it; None where there is none."""
    holding = (window for window in windows if window.first <= frame_id <= window.last)
    return min(holding, key=lambda window: abs(window.first + window.last - 2 * frame_id), default=None)
