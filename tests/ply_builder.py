"""PLY files byte by byte, so that readers are tested against the format and not against a library's writer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

TYPES = {"f4": "float", "u1": "uchar", "u2": "ushort", "i4": "int"}


def write_ply(path: Path, vertices: npt.NDArray[np.void], triangles: Sequence[tuple[int, int, int]] = ()) -> Path:
    """A binary little-endian PLY of a structured array and, where there are any, of faces."""
    fields = vertices.dtype.fields or {}
    header = ["ply", "format binary_little_endian 1.0", "comment written for a test", f"element vertex {len(vertices)}"]
    header += [f"property {TYPES[field[0].str[1:]]} {name}" for name, field in fields.items()]
    if triangles:
        header += [f"element face {len(triangles)}", "property list uchar int vertex_indices"]
    faces = np.zeros(len(triangles), [("count", "u1"), ("corners", "<i4", (3,))])
    if triangles:
        faces["count"], faces["corners"] = 3, triangles
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\n".join([*header, "end_header", ""]).encode("ascii") + vertices.tobytes() + faces.tobytes())
    return path


def vertex_table(columns: Sequence[tuple[str, str, npt.ArrayLike]]) -> npt.NDArray[np.void]:
    """A packed structured array from (name, type, values)."""
    rows = len(np.asarray(columns[0][2]))
    table = np.zeros(rows, [(name, f"<{kind}" if kind[1:] != "1" else kind) for name, kind, _ in columns])
    for name, _, values in columns:
        table[name] = values
    return table
