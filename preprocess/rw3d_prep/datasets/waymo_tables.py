"""Keys and small columns of Waymo's v2 tables: one Parquet file per component and segment.

Column names and types are those of waymo-research/waymo-open-dataset, `v2/`. Published files differ from the code in
two ways that are read as well: camera names can be strings, and transforms float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rw3d_common.cameras import F64
from rw3d_common.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

SEGMENT, TIME, CAMERA, LASER = (
    "key.segment_context_name",
    "key.frame_timestamp_micros",
    "key.camera_name",
    "key.laser_name",
)
NAMES = {  # by number from 1; 0 is "unknown"
    CAMERA: ("FRONT", "FRONT_LEFT", "FRONT_RIGHT", "SIDE_LEFT", "SIDE_RIGHT"),
    LASER: ("TOP", "FRONT", "SIDE_LEFT", "SIDE_RIGHT", "REAR"),
}
COMPONENTS = {  # folder: prefix of its columns, and the keys of its rows
    "camera_image": ("CameraImageComponent", (TIME, CAMERA)),
    "camera_calibration": ("CameraCalibrationComponent", (CAMERA,)),
    "camera_segmentation": ("CameraSegmentationLabelComponent", (TIME, CAMERA)),
    "vehicle_pose": ("VehiclePoseComponent", (TIME,)),
    "lidar": ("LiDARComponent", (TIME, LASER)),
    "lidar_calibration": ("LiDARCalibrationComponent", (LASER,)),
    "lidar_pose": ("LiDARPoseComponent", (TIME, LASER)),
}
Key = tuple[Any, ...]  # (time,), (name,) or (time, name)


def column_name(component: str, field: str) -> str:
    """The name of a component's column, such as `[VehiclePoseComponent].world_from_vehicle.transform`."""
    return f"[{COMPONENTS[component][0]}].{field}"


@dataclass(frozen=True)
class Component:
    """Some columns of one segment's component; `rows` leads from a key to its row in the file."""

    path: Path
    name: str
    rows: dict[Key, int]
    table: pa.Table | None

    def has(self, field: str) -> bool:
        """Whether the column was read."""
        return self.table is not None and column_name(self.name, field) in self.table.column_names

    def values(self, field: str) -> dict[Key, Any]:
        """The column as Python values by key; empty where the column was not read."""
        if self.table is None or not self.has(field):
            return {}
        column = self.table[column_name(self.name, field)].to_pylist()
        return {key: column[row] for key, row in self.rows.items()}

    def transforms(self, field: str) -> dict[Key, F64]:
        """Row-major 4×4 transforms by key, made exactly rigid; those that are not finite and rigid are left out.

        Raises:
            UserError: a row that does not hold 16 numbers.
        """
        if self.table is None or not self.has(field):
            return {}
        name = column_name(self.name, field)
        column = self.table[name].combine_chunks()
        numbers = column.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
        if column.null_count or len(numbers) != 16 * len(self.rows):
            raise UserError(f"{self.path}: a row of {name} does not hold 16 numbers; copy the file again")
        matrices, usable = _rigid(numbers.reshape(-1, 4, 4))
        return {key: matrices[row] for key, row in self.rows.items() if usable[row]}


def read_component(
    folder: Path, component: str, segment: str, fields: Sequence[str] = (), optional: Sequence[str] = ()
) -> Component:
    """Keys and `fields` of a segment's component below the split's `folder`; no other column's bytes are read.

    Without the file there are no rows. `optional` fields are read where the file has them.

    Raises:
        UserError: a truncated file, a missing column, an unknown name in a key, a repeated key, another segment's rows.
    """
    import pyarrow.parquet as pq

    path = folder / component / f"{segment}.parquet"
    if not path.is_file():
        return Component(path, component, {}, None)
    keys = COMPONENTS[component][1]
    with parquet_errors(path), pq.ParquetFile(path) as file:
        known = file.schema_arrow.names
        wanted = [SEGMENT, *keys, *(column_name(component, field) for field in fields)]
        refuse_missing(path, wanted, known)
        wanted += [name for field in optional if (name := column_name(component, field)) in known]
        table = file.read(columns=wanted, use_threads=False)
    _refuse_other_segments(path, table, segment)
    columns = [_key_column(path, table, key) for key in keys]
    rows: dict[Key, int] = {}
    for row, key in enumerate(zip(*columns, strict=True)):
        if key in rows:
            raise UserError(f"{path}: two rows of {'/'.join(map(str, key))}; copy the official file again")
        rows[key] = row
    return Component(path, component, rows, table)


@contextmanager
def parquet_errors(path: Path) -> Iterator[None]:
    """Turn what pyarrow says of a broken or missing file into one sentence.

    Raises:
        UserError: the file cannot be read.
    """
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read as Parquet ({said}); copy the file again") from error


def refuse_missing(path: Path, wanted: Sequence[str], known: Sequence[str]) -> None:
    """Raise UserError for a column that the file lacks."""
    if missing := [name for name in wanted if name not in known]:
        raise UserError(f"{path}: has no column {missing[0]}; get this file of Waymo's v2 Parquet release again")


def _refuse_other_segments(path: Path, table: pa.Table, segment: str) -> None:
    """Calibration has no time in its key, so a renamed file would be joined with the wrong segment unseen."""
    import pyarrow.compute as pc

    if others := {name for name in pc.unique(table[SEGMENT]).to_pylist() if name != segment}:
        raise UserError(f"{path}: holds rows of segment {min(map(str, others))}; name files after their segment")


def _key_column(path: Path, table: pa.Table, key: str) -> list[int | str]:
    values = table[key].to_pylist()
    if key == TIME:
        if None in values:
            raise UserError(f"{path}: a row without {key}; copy the file again")
        return values
    names = NAMES[key]
    known: dict[int | str, str] = {**dict(enumerate(names, 1)), **{name: name for name in names}}
    if unknown := {value for value in values if value not in known}:
        numbers = ", ".join(f"{number} {name}" for number, name in enumerate(names, 1))
        raise UserError(f"{path}: unknown {key} {min(map(str, unknown))}; Waymo's are {numbers}")
    return [known[value] for value in values]


def _rigid(matrices: F64) -> tuple[F64, npt.NDArray[np.bool_]]:
    """Transforms (N, 4, 4) with the nearest rotations, and (N,) bool: those that were finite and rigid to 1e-3."""
    usable: npt.NDArray[np.bool_] = np.all(np.isfinite(matrices), axis=(1, 2))
    matrices = np.where(usable[:, None, None], matrices, np.eye(4))
    rotation = matrices[:, :3, :3]
    square = rotation @ rotation.transpose(0, 2, 1)
    usable &= (np.abs(square - np.eye(3)) < 1e-3).all(axis=(1, 2)) & (np.linalg.det(rotation) > 0)
    usable &= np.all(matrices[:, 3] == np.array([0, 0, 0, 1]), axis=1)
    u, _, vt = np.linalg.svd(rotation)
    matrices[:, :3, :3] = u @ vt
    return matrices, usable
