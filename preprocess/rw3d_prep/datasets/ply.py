"""Vertex columns of PLY files, by the names in their headers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from rw3d_common.errors import UserError

TRIANGLES = {"face": dict.fromkeys(("vertex_indices", "vertex_index"), 3)}  # spares plyfile a loop over faces


def read_vertices(path: Path, names: Sequence[str], mend: str = "copy the official file again") -> npt.NDArray[Any]:
    """The vertices of a PLY file as a structured array (N,) with the fields `names`, mapped from disk where binary.

    Raises:
        UserError: the file is missing, truncated, no PLY file, or lacks a vertex property.
    """
    from plyfile import PlyData, PlyParseError

    try:
        vertices = PlyData.read(str(path), mmap="r", known_list_len=TRIANGLES)["vertex"]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {mend}") from None
    except (PlyParseError, KeyError, ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read as a PLY file with vertices ({error}); {mend}") from error
    there = vertices.data.dtype.names or ()
    if missing := [name for name in names if name not in there]:
        raise UserError(f"{path}: its vertices have no property {', '.join(missing)}, only {', '.join(there)}; {mend}")
    columns: npt.NDArray[Any] = vertices.data[list(names)]
    return columns
