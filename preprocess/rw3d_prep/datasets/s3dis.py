"""S3DIS rooms (Stanford3dDataset_v1.2_Aligned_Version) as labelled point clouds; this release has no images.

`Area_<1..6>/<room>/Annotations/<class>_<n>.txt` holds one object per file, one point per line: x y z r g b. Area 5 is
the official test area. The release has known faults: a NUL byte inside a number (Area_5/hallway_6, ceiling_1.txt), a
number with a space inside, and a copied file (Area_5/office_36, "wall_3 (1).txt").
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rw3d_common.cameras import F64
from rw3d_common.errors import UserError
from rw3d_common.manifest import DatasetEntry
from rw3d_prep.datasets import DatasetConfig, FrameList
from rw3d_prep.frames import Cloud, CloudPoints

RELEASE = "Stanford3dDataset_v1.2_Aligned_Version"
OTHER = "clutter"  # what the release calls objects of no class of its own, and what its "stairs" count as
MOST_DROPPED = 10  # lines per file; the release has one at most
_COPY = re.compile(r"(.*) \(\d+\)")


def s3dis_clouds(root: Path, config: DatasetConfig, entry: DatasetEntry) -> FrameList:
    """One cloud per room of the split's areas.

    Raises:
        UserError: the release is not there, or an unknown split.
    """
    release = root / RELEASE
    if not release.is_dir():
        raise UserError(f"{release}: no such folder; unpack {RELEASE}.zip of S3DIS in {root}")
    ids = tuple((item.name, item.ids[0]) for item in entry.classes)
    found = FrameList()
    for split in config.splits:
        if split not in entry.splits:
            raise UserError(f"unknown split '{split}'; data_manifest.yaml has {', '.join(entry.splits)}")
        areas = [area for area in entry.splits[split].sequences if not config.sequences or area in config.sequences]
        for area in areas:
            if not (release / area).is_dir():
                found.notes.append(f"{release / area}: not there; this area of split '{split}' is left out")
                continue
            rooms = sorted(path for path in (release / area).iterdir() if path.is_dir())
            found.clouds += [Cloud(split, area, room.name, Room(room, ids)) for room in rooms]
    return found


@dataclass(frozen=True)
class Room:
    """The annotated objects of one room; `ids` gives the raw label id of every class name."""

    path: Path
    ids: tuple[tuple[str, int], ...]

    def read(self) -> CloudPoints:
        """All points of all objects, in the order of their file names.

        Raises:
            UserError: no annotations, or a file with a line that is none of the release's known faults.
        """
        files = sorted((self.path / "Annotations").glob("*.txt"))
        if not files:
            raise UserError(f"{self.path / 'Annotations'}: holds no <class>_<n>.txt; unpack {RELEASE}.zip again")
        ids, others = dict(self.ids), Counter[str]()
        rows, truth, notes = [], [], []
        for path in files:
            if _is_copy(path):
                notes.append(f"{path}: a copy of the file without number in brackets, left out")
                continue
            name = path.stem.rpartition("_")[0]
            others[name] += name not in ids
            points, dropped = read_points(path)
            rows.append(points)
            truth.append(np.full(len(points), ids.get(name, ids[OTHER]), np.uint8))
            notes += [f"{path}: line {line} is damaged, as in the official release, and left out" for line in dropped]
        for name, count in (+others).items():
            objects = "1 object" if count == 1 else f"{count} objects"
            notes.append(f"{self.path}: '{name}' ({objects}) is no class of S3DIS and counts as {OTHER}")
        points = np.concatenate(rows)
        return CloudPoints(points[:, :3], points[:, 3:].astype(np.uint8), np.concatenate(truth), tuple(notes))


def _is_copy(path: Path) -> bool:
    name = _COPY.fullmatch(path.stem)
    return name is not None and path.with_name(f"{name[1]}{path.suffix}").is_file()


def read_points(path: Path) -> tuple[F64, list[int]]:
    """The lines x y z r g b of one file, (N, 6) float64 with metres and 0..255, and the numbers of lines left out.

    Lines with a NUL byte, or with a seventh number from a space inside another, are left out: the official release has
    such. Nobody can tell what they were.

    Raises:
        UserError: the file is missing or empty, or another line is malformed.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of an empty file, which is told below
            values = np.loadtxt(str(path), np.float64, comments=None, ndmin=2, encoding="latin-1")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; unpack {RELEASE}.zip again") from None
    except ValueError:
        return _read_line_by_line(path)
    if values.shape[1:] != (6,) or not _is_valid(values).all():
        return _read_line_by_line(path)
    return values, []


def _is_valid(values: F64) -> npt.NDArray[np.bool_]:
    """(N,) bool: finite positions, colours that are whole numbers of 0 to 255."""
    color = values[:, 3:]
    return np.isfinite(values[:, :3]).all(axis=1) & ((color >= 0) & (color <= 255) & (color % 1 == 0)).all(axis=1)


def _read_line_by_line(path: Path) -> tuple[F64, list[int]]:
    lines = path.read_bytes().split(b"\n")
    rows, numbers, dropped = [], [], []
    for number, line in enumerate(lines, 1):
        words = line.split()
        values = _numbers(words)
        if values is not None and len(values) == 6:
            rows.append(values)
            numbers.append(number)
        elif b"\0" in line or (values is not None and len(values) == 7):
            dropped.append(number)
        elif words:
            raise _malformed(path, number, line)
    if len(dropped) > MOST_DROPPED:
        raise UserError(
            f"{path}: {len(dropped):,} lines are damaged, the first is line {dropped[0]}; unpack {RELEASE}.zip again"
        )
    if not rows:
        raise UserError(f"{path}: holds no point; unpack {RELEASE}.zip again")
    points = np.array(rows)
    for index in np.flatnonzero(~_is_valid(points))[:1]:
        raise _malformed(path, numbers[index], lines[numbers[index] - 1])
    return points, dropped


def _malformed(path: Path, number: int, line: bytes) -> UserError:
    return UserError(
        f"{path}: line {number} is '{line.decode('latin-1').strip()[:80]}', not x y z in metres and r g b from 0 to 255; "
        f"unpack {RELEASE}.zip again"
    )


def _numbers(words: list[bytes]) -> list[float] | None:
    try:
        return [float(word) for word in words]
    except ValueError:
        return None
