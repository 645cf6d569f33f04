"""A tiny S3DIS, written from its documentation: one object per text file, one point per line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

RELEASE = "Stanford3dDataset_v1.2_Aligned_Version"
OBJECTS = ("ceiling_1", "floor_1", "wall_1", "wall_2", "chair_1", "stairs_1")
ROOMS = (("Area_1", "office_1"), ("Area_1", "hallway_2"), ("Area_5", "hallway_6"))


def s3dis_root(root: Path, rooms: tuple[tuple[str, str], ...] = ROOMS, points: int = 40, seed: int = 0) -> Path:
    """Rooms with the objects of `OBJECTS`, each of `points` points, and the file of the whole room beside them."""
    rng = np.random.default_rng(seed)
    for area, room in rooms:
        folder = room_folder(root, area, room)
        objects = [lines_of(rng, points) for _ in OBJECTS]
        for name, lines in zip(OBJECTS, objects, strict=True):
            _write(folder / "Annotations" / f"{name}.txt", lines)
        _write(folder / f"{room}.txt", [line for lines in objects for line in lines])
        _write(folder.parent / f"{area}_alignmentAngle.txt", ["## Global alignment angle per room", f"{room} 180"])
    return root


def room_folder(root: Path, area: str, room: str) -> Path:
    """Where a room lies."""
    return root / RELEASE / area / room


def lines_of(rng: np.random.Generator, points: int) -> list[str]:
    """Lines of points on a millimetre grid, up to 30 m from the origin."""
    xyz, rgb = rng.uniform(-30, 30, (points, 3)), rng.integers(0, 256, (points, 3))
    return [f"{x:.3f} {y:.3f} {z:.3f} {r} {g} {b}" for (x, y, z), (r, g, b) in zip(xyz, rgb, strict=True)]


def slow_points(path: Path) -> npt.NDArray[np.float64]:
    """The numbers of a file, (N, 6), word by word."""
    return np.array([[float(word) for word in line.split()] for line in path.read_text().splitlines()])


def _write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
