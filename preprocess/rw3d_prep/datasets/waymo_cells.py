"""Large cells of Waymo's v2 tables, read one row at a time: images, labels, range images.

The published files hold up to 256 rows per row group, Brotli-compressed: half a gigabyte of range images each once
decoded. So a group is decoded as a stream, row by row, and what was passed is forgotten.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rw3d_common.errors import UserError
from rw3d_prep.datasets.png import encode_png
from rw3d_prep.datasets.waymo_tables import column_name, parquet_errors, refuse_missing

if TYPE_CHECKING:
    import pyarrow as pa

AT_HAND = 8  # rows: the cameras of a time do not lie in the order in which batches take them
BUFFER = 1 << 20  # bytes read from disk at once
IMAGE = column_name("camera_image", "image")
PANOPTIC = column_name("camera_segmentation", "panoptic_label")


@dataclass(frozen=True)
class CameraImage:
    """The JPEG of one camera at one time; `member` is time/camera."""

    path: Path
    member: str
    row: int

    def __str__(self) -> str:
        return f"{self.path}#{self.member}"

    def read_bytes(self) -> bytes:
        """The JPEG as it lies in the table.

        Raises:
            UserError: the file cannot be read, or the cell is empty.
        """
        return _bytes(self.path, self.row, IMAGE, str(self))


@dataclass(frozen=True)
class PanopticLabel:
    """The semantic part of one camera's panoptic label: class id = pixel // `divisor`."""

    path: Path
    member: str
    row: int
    divisor: int

    def __str__(self) -> str:
        return f"{self.path}#{self.member}"

    def read_bytes(self) -> bytes:
        """Class ids as an 8-bit PNG.

        Raises:
            UserError: the file cannot be read, the cell is empty or no 16-bit PNG, or an id does not fit the divisor.
        """
        return _semantic_png(self)


@lru_cache(maxsize=2)  # a view's label is read for its points, for its mask and for the store
def _semantic_png(label: PanopticLabel) -> bytes:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(_bytes(label.path, label.row, PANOPTIC, str(label)))) as image:
            if image.mode not in ("I;16", "I"):
                raise UserError(
                    f"{label}: panoptic label of mode {image.mode} where 16 bits belong; copy the file again"
                )
            ids = np.asarray(image).astype(np.int64) // label.divisor
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise UserError(f"{label}: cannot be decoded ({error}); copy the file again") from error
    if ids.max() > 255:
        raise UserError(f"{label}: class id {ids.max()} with divisor {label.divisor}; copy the file again")
    return encode_png(ids.astype(np.uint8))


def _bytes(path: Path, row: int, column: str, source: str) -> bytes:
    content = read_row(path, row, (column,)).column(0)[0].as_py()
    if not content:
        raise UserError(f"{source}: {column} is empty; copy the file again")
    return content


def read_row(path: Path, row: int, columns: tuple[str, ...]) -> pa.RecordBatch:
    """One row of some columns. Rows of a file asked for in rising order are decoded once; others cost their row group.

    Raises:
        UserError: the file is missing, truncated or changed, or lacks a column.
    """
    with parquet_errors(path):
        try:
            return _reader(path, path.stat().st_mtime_ns, columns).read(row)
        except BaseException:
            _reader.cache_clear()  # a stream that broke off cannot go on
            raise


class _RowReader:
    def __init__(self, path: Path, _modified: int, columns: tuple[str, ...]) -> None:
        import pyarrow.parquet as pq

        self.path, self.columns = path, columns
        self.file = pq.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False)
        refuse_missing(path, columns, self.file.schema_arrow.names)
        groups = self.file.metadata.num_row_groups
        sizes = [self.file.metadata.row_group(group).num_rows for group in range(groups)]
        self.first_rows = list(accumulate(sizes, initial=0))  # of every row group, and the number of rows
        self.batches: Iterator[pa.RecordBatch] = iter(())
        self.next = self.end = 0  # rows that `batches` goes on with and ends before
        self.at_hand: deque[tuple[int, pa.RecordBatch]] = deque(maxlen=AT_HAND)

    def read(self, row: int) -> pa.RecordBatch:
        """One row as a batch of length 1."""
        for number, batch in self.at_hand:
            if number == row:
                return batch
        if not self.next <= row < self.end:
            self._open_group_of(row)
        while self.next <= row:
            self.at_hand.append((self.next, next(self.batches)))
            self.next += 1
        return self.at_hand[-1][1]

    def _open_group_of(self, row: int) -> None:
        if row >= self.first_rows[-1]:
            raise UserError(f"{self.path}: lost rows since it was listed; do not edit the data during a run")
        group = bisect_right(self.first_rows, row) - 1
        self.next, self.end = self.first_rows[group : group + 2]
        self.batches = self.file.iter_batches(
            batch_size=1, row_groups=[group], columns=list(self.columns), use_threads=False
        )


_reader = lru_cache(maxsize=4)(_RowReader)  # images, labels, range images and their poses of one segment
