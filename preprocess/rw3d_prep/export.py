"""`rw3d-prep export`: scenes as PLY files that any viewer opens, one by one or merged into one world."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from rw3d_common.cameras import F64
from rw3d_common.errors import disk_errors
from rw3d_common.scene import Coloring, Scene
from rw3d_prep.align import Placed, alone
from rw3d_prep.sim3 import Sim3

NO_VIEW = 2**16 - 1
BLOCK = 1_048_576  # rows that are in memory at a time
PLY_TYPES = {"<f4": "float", "|u1": "uchar", "<u2": "ushort"}
VERTEX = np.dtype(
    [(axis, "<f4") for axis in "xyz"]
    + [(channel, "u1") for channel in ("red", "green", "blue")]
    + [("confidence", "<f4"), ("label", "u1"), ("view", "<u2"), ("scene", "<u2")]
)


def export_ply(scene: Scene, path: Path, by: Coloring = "rgb") -> int:
    """Write a scene's points to a binary PLY; returns how many.

    Vertex properties: x, y, z (float32 metres, scene world), red, green, blue, confidence, label, view (65535: of no
    view), scene (0). The file appears only when it is complete.

    Raises:
        DiskFull: no space left.
    """
    return export_merged([alone(scene)], path, by)


def export_merged(chain: Sequence[Placed], path: Path, by: Coloring = "rgb") -> int:
    """Write the scenes of a chain to one binary PLY in the world of the first; returns how many points.

    A frame that several scenes have comes from the first of them. `scene` counts the scenes, `view` the views of each;
    comments give their names. In memory are a block of points and, but for photo colours, the colours of one scene.

    Raises:
        DiskFull: no space left.
    """
    rows = [_kept_rows(placed) for placed in chain]
    count = sum(stop - start for blocks in rows for start, stop in blocks)
    temporary = path.with_name(f"{path.name}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(_header(chain, count).encode("ascii", "replace"))
            for number, (placed, blocks) in enumerate(zip(chain, rows, strict=True)):
                _write_scene(file, placed, blocks, number, by)
        temporary.replace(path)
    return count


def _header(chain: Sequence[Placed], count: int) -> str:
    offset = " ".join(map(str, chain[0].scene.world_offset))
    lines = ["ply", "format binary_little_endian 1.0"]
    lines += [f"comment rw3d scene {number} {placed.scene.name}" for number, placed in enumerate(chain)]
    lines += [f"comment world_offset {offset}", f"element vertex {count}"]
    lines += [f"property {PLY_TYPES[VERTEX[name].str]} {name}" for name in VERTEX.names or ()]
    return "\n".join([*lines, "end_header", ""])


def _kept_rows(placed: Placed) -> list[tuple[int, int]]:
    """(first, behind the last) row of the blocks to write: points of no view, and of the views that are new."""
    offset = placed.scene.view_table["point_offset"]
    ranges = [(0, int(offset[0]))]
    ranges += [(int(offset[view]), int(offset[view + 1])) for view in np.flatnonzero(placed.new)]
    return [block for start, stop in _joined(ranges) for block in _blocks(start, stop)]


def _joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges that follow each other without a gap, as one."""
    joined: list[tuple[int, int]] = []
    for start, stop in ranges:
        if joined and joined[-1][1] == start:
            joined[-1] = joined[-1][0], stop
        else:
            joined.append((start, stop))
    return joined


def _blocks(start: int, stop: int) -> Iterator[tuple[int, int]]:
    return ((first, min(first + BLOCK, stop)) for first in range(start, stop, BLOCK))


def _write_scene(file: BinaryIO, placed: Placed, blocks: Sequence[tuple[int, int]], number: int, by: Coloring) -> None:
    scene, offset = placed.scene, placed.scene.view_table["point_offset"]
    colors = None if by == "rgb" else scene.colors(by)
    for start, stop in blocks:
        rows = slice(start, stop)
        vertices = np.empty(stop - start, VERTEX)
        position = _moved(scene.read("position", rows), placed.to_first)
        color = scene.read("color", rows) if colors is None else colors[rows]
        for axis, (name, channel) in enumerate(zip("xyz", ("red", "green", "blue"), strict=True)):
            vertices[name], vertices[channel] = position[:, axis], color[:, axis]
        vertices["confidence"], vertices["label"] = scene.read("confidence", rows), scene.read("label", rows)
        view = np.searchsorted(offset, np.arange(start, stop), side="right") - 1
        vertices["view"], vertices["scene"] = np.where(view < 0, NO_VIEW, view), number
        file.write(vertices.tobytes())


def _moved(position: npt.NDArray[np.float32], sim3: Sim3) -> npt.NDArray[np.float32] | F64:
    identical = sim3.scale == 1 and not sim3.translation.any() and (sim3.rotation == np.eye(3)).all()
    return position if identical else sim3.apply(position)
