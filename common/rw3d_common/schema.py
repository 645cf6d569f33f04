"""The scene store's contract: every array's name, type, unit, chunks and codecs, declared once.

A scene is a Zarr v3 group `<first frame>-<last frame>.zarr` with the groups `points` (one row per 3D point, views one
after another), `views` (one row per view) and, once they are made, `samples` (one row per training item); `files` holds
the encoded images and labels where `reconstruct --embed-images` put them, `accumulated` the label images that
`rw3d-prep accumulate` adds, with `points/label_accumulated` beside the points' own labels. Chunk sizes and codecs are measured choices:
rows of a view lie in one or two chunks, a position compresses best when shuffled over its 12 bytes, colours do not
compress at all, and crc32c inside the shard catches what lossless codecs let through.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ZstdCodec

SCHEMA_VERSION = 1
CHUNK_ROWS = 131_072
SHARD_ROWS = 32 * CHUNK_ROWS
STORE_SUFFIX = ".zarr"


@dataclass(frozen=True)
class ArraySpec:
    """One array: `row` is the shape behind the first axis, `dims` its axes' names, `fill` what no data reads as."""

    name: str
    row: tuple[int, ...]
    dtype: str
    fill: float | int | bool
    dims: tuple[str, ...]
    unit: str
    meaning: str
    compress: tuple[Any, ...] = ()
    chunk_rows: int = 0  # 0: the array is one chunk
    shard_rows: int = 0
    added: bool = False  # since the first release: older stores lack the array, and it reads as `fill`

    @property
    def row_bytes(self) -> int:
        """Uncompressed bytes per row."""
        return int(np.dtype(self.dtype).itemsize * np.prod(self.row, dtype=int))

    def lacking(self, group: str, files: Container[str]) -> bool:
        """True where `files`, those of a finished store, are from before the array was added to this group."""
        return self.added and f"{group}/{self.name}/zarr.json" not in files

    def filled(self, rows: int) -> npt.NDArray[Any]:
        """The array with nothing but fill values."""
        return np.full((rows, *self.row), self.fill, self.dtype)


def _lz4(item_size: int) -> tuple[BloscCodec]:
    return (BloscCodec(typesize=item_size, cname="lz4", clevel=5, shuffle="shuffle"),)


_ZSTD = (ZstdCodec(level=1),)
_NAN = float("nan")

# fmt: off
_POINTS = (
    ArraySpec("position", (3,), "float32", _NAN, ("point", "xyz"), "m", "point in the scene's world; add world_offset for the dataset's world", _lz4(12)),
    ArraySpec("color", (3,), "uint8", 0, ("point", "rgb"), "", "colour of the source pixel"),
    ArraySpec("confidence", (), "float32", _NAN, ("point",), "", "reconstruction confidence, raw as the backend gave it", _lz4(4)),
    ArraySpec("pixel", (), "uint32", 2**32 - 1, ("point",), "", "row · image width + column in the source image, EXIF orientation applied", _lz4(4)),
    ArraySpec("label", (), "uint8", 255, ("point",), "", "train id of the sparse label at the source pixel; 255 = unlabelled", _ZSTD),
    ArraySpec("truth", (), "uint8", 255, ("point",), "", "train id of the dense label, for metrics only; 255 = ignored", _ZSTD),
)
_LABEL_ACCUMULATED = ArraySpec("label_accumulated", (), "uint8", 255, ("point",), "", "train id of the own sparse label, else of the label that other views give; 255 = unlabelled", _ZSTD)
_ACCUMULATED_FILES = ArraySpec("label", (), "uint8", 0, ("byte",), "", "PNG label images of all views, one after another: train ids, own labels and carried ones")
ACCUMULATED_OFFSET = ArraySpec("label_offset", (), "int64", -1, ("view_boundary",), "", "the label image of view v is bytes [offset[v], offset[v + 1]); none where they are equal")
VIEWS: tuple[ArraySpec, ...] = (
    ArraySpec("frame_id", (), "int64", -1, ("view",), "", "frame id in the dataset"),
    ArraySpec("camera", (), "uint8", 255, ("view",), "", "index into the group attribute `cameras`"),
    ArraySpec("image_size", (2,), "int32", -1, ("view", "height_width"), "px", "height and width of the source image"),
    ArraySpec("grid_size", (2,), "int32", -1, ("view", "height_width"), "px", "height and width of the reconstruction grid"),
    ArraySpec("pixel_map", (4,), "float64", _NAN, ("view", "coefficient"), "px", "column scale, column offset, row scale, row offset: grid cell to source pixel"),
    ArraySpec("point_offset", (), "int64", -1, ("view_boundary",), "", "points of view v are rows [point_offset[v], point_offset[v + 1]); rows before point_offset[0] belong to no view"),
    ArraySpec("intrinsics", (3, 3), "float64", _NAN, ("view", "row", "column"), "px", "pinhole matrix of the source image, integer coordinates at pixel centres"),
    ArraySpec("camera_to_world", (4, 4), "float64", _NAN, ("view", "row", "column"), "m", "OpenCV camera axes to the scene's world"),
    ArraySpec("has_label", (), "bool", False, ("view",), "", "the view has a sparse label image"),
    ArraySpec("confidence_threshold", (), "float32", _NAN, ("view",), "", "smallest confidence that was kept"),
    ArraySpec("covered", (), "float32", _NAN, ("view",), "", "share of the source image under the grid"),
    ArraySpec("finite_share", (), "float32", _NAN, ("view",), "", "share of grid cells with valid, finite geometry"),
    ArraySpec("depth_range", (2,), "float32", _NAN, ("view", "quantile"), "m", "1 % and 99 % quantile of the kept points' depth"),
    ArraySpec("reprojection_residual", (), "float32", _NAN, ("view",), "", "median relative depth difference of this view's points seen from the view before"),
    ArraySpec("given_camera_to_world", (4, 4), "float64", _NAN, ("view", "row", "column"), "m", "the dataset's own pose, OpenCV camera axes to its world minus world_offset; NaN where it has none", added=True),
    ArraySpec("shared", (), "bool", False, ("view",), "", "an earlier scene, which this one overlaps, has the frame too", added=True),
)
_SAMPLE_POINTS = (
    ArraySpec("position", (3,), "float32", _NAN, ("sample", "point", "xyz"), "m", "points in the scene's world, the view's own points first", _lz4(4)),
    ArraySpec("color", (3,), "uint8", 0, ("sample", "point", "rgb"), "", "colour of the source pixel"),
    ArraySpec("confidence", (), "float32", _NAN, ("sample", "point"), "", "reconstruction confidence, raw as the backend gave it", _lz4(4)),
    ArraySpec("label", (), "uint8", 255, ("sample", "point"), "", "train id of the sparse label; 255 = unlabelled", _ZSTD),
    ArraySpec("index", (), "uint32", 2**32 - 1, ("sample", "point"), "", "row of the point in points/", _lz4(4)),
    ArraySpec("truth", (), "uint8", 255, ("sample", "point"), "", "train id of the dense label, for metrics only; 255 = ignored", _ZSTD),
)
_SAMPLE_PIXEL = ArraySpec("pixel", (), "int32", -1, ("sample", "own_point"), "", "source pixel of the own points, row · image width + column; −1 where there is no own point", _lz4(4))
SAMPLE_TABLES: tuple[ArraySpec, ...] = (
    ArraySpec("view", (), "int32", -1, ("sample",), "", "index of the view in views/"),
    ArraySpec("draw", (), "int32", -1, ("sample",), "", "which of the view's samples this is, from 0"),
    ArraySpec("n_points", (), "int32", -1, ("sample",), "", "points of the sample; rows behind them hold fill values"),
    ArraySpec("n_own", (), "int32", -1, ("sample",), "", "points that come from the view itself; they are the first"),
    ArraySpec("radius", (), "float32", _NAN, ("sample",), "m", "radius of the sphere that the other points come from; infinite for the whole scene"),
    ArraySpec("center", (3,), "float32", _NAN, ("sample", "xyz"), "m", "centre of that sphere: the centroid of all own points of the view"),
)
FILE_KINDS = ("image", "label", "truth")
_FILES = tuple(ArraySpec(kind, (), "uint8", 0, ("byte",), "", f"encoded {kind} files of all views, one after another") for kind in FILE_KINDS)
FILE_OFFSETS = tuple(
    ArraySpec(f"{kind}_offset", (), "int64", -1, ("view_boundary",), "", f"the {kind} file of view v is bytes [offset[v], offset[v + 1]); none where they are equal")
    for kind in FILE_KINDS
)
# fmt: on
FILES = tuple(replace(spec, chunk_rows=CHUNK_ROWS, shard_rows=1024 * CHUNK_ROWS) for spec in _FILES)
POINTS = tuple(replace(spec, chunk_rows=CHUNK_ROWS, shard_rows=SHARD_ROWS) for spec in _POINTS)
LABEL_ACCUMULATED = replace(_LABEL_ACCUMULATED, chunk_rows=CHUNK_ROWS, shard_rows=SHARD_ROWS)
ACCUMULATED_FILES = replace(_ACCUMULATED_FILES, chunk_rows=CHUNK_ROWS, shard_rows=1024 * CHUNK_ROWS)
SAMPLES_PER_SHARD = 50


def create_array(group: zarr.Group, spec: ArraySpec, rows: int) -> zarr.Array[Any]:
    """Create one array of `rows` rows with the chunks, shards and codecs of its declaration."""
    return group.create_array(
        spec.name,
        shape=(rows, *spec.row),
        dtype=spec.dtype,
        chunks=(spec.chunk_rows or max(rows, 1), *spec.row),
        shards=(spec.shard_rows, *spec.row) if spec.shard_rows else None,
        fill_value=spec.fill,
        serializer=BytesCodec(),
        compressors=(*spec.compress, Crc32cCodec()),
        filters=(),
        dimension_names=spec.dims,
        attributes={"unit": spec.unit, "meaning": spec.meaning},
        config={"write_empty_chunks": True},
    )


def point_arrays(with_truth: bool) -> Sequence[ArraySpec]:
    """The arrays of `points/`: `truth` only where the dataset has dense labels."""
    return POINTS if with_truth else POINTS[:-1]


def sample_arrays(points: int, own: int, with_truth: bool) -> Sequence[ArraySpec]:
    """The large arrays of `samples/`: one chunk per sample, padded to `points` rows (`pixel` to `own` rows)."""
    columns = _SAMPLE_POINTS if with_truth else _SAMPLE_POINTS[:-1]
    specs = [*(replace(spec, row=(points, *spec.row)) for spec in columns), replace(_SAMPLE_PIXEL, row=(own,))]
    return [replace(spec, chunk_rows=1, shard_rows=SAMPLES_PER_SHARD) for spec in specs]
