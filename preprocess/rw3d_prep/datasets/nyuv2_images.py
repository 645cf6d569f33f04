"""The pictures of NYU Depth v2's labelled file, each handed on as a PNG.

MATLAB v7.3 is HDF5 with the axes reversed: MATLAB's H × W × 3 × N reads as (N, 3, W, H). Swapping them back is a
transposition; turning by 90° would mirror the picture.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rw3d_common.errors import UserError
from rw3d_common.labels import U8
from rw3d_prep.datasets.png import encode_png

DEPTH_UNIT = 0.001  # metres; the sensor's own steps are 3 mm at 1 m and grow with the square of the distance
WHITE = 250  # grey levels of all channels
FRAME_WIDTH = 20  # pixels; the white frame is 8 to 16 wide

Part = Literal["images", "rawDepths", "labels", "white frame"]


@dataclass(frozen=True)
class MatImage:
    """One picture of the labelled file: `index` is 1-based, `class_of` (labels only) holds the class of each raw id."""

    path: Path
    part: Part
    index: int
    class_of: bytes = field(default=b"", repr=False)

    @property
    def member(self) -> str:
        return f"{self.part}/{self.index}"

    def __str__(self) -> str:
        return f"{self.path}#{self.member}"

    def read_bytes(self) -> bytes:
        """PNG: RGB; depth in `DEPTH_UNIT` (16-bit, 0 = not measured); classes 1..40 with 0 = unlabelled; a mask.

        Raises:
            UserError: the file is missing or damaged, or a label has no class.
        """
        match self.part:
            case "images":
                return encode_png(self._rgb())
            case "white frame":
                return encode_png(white_frame(self._rgb()).astype(np.uint8) * 255)
            case "rawDepths":
                units = np.rint(np.nan_to_num(self._read("rawDepths").T, posinf=0.0) / DEPTH_UNIT)
                return encode_png(np.where((units > 0) & (units < 65535), units, 0).astype(np.uint16))
            case "labels":
                return encode_png(self._classes())

    def _rgb(self) -> U8:
        return np.ascontiguousarray(self._read("images").transpose(2, 1, 0))

    def _classes(self) -> U8:
        table, raw = np.frombuffer(self.class_of, np.uint8), self._read("labels").T
        if (largest := int(raw.max())) >= len(table):
            raise UserError(
                f"{self}: label {largest} has no class; classMapping40.mat knows {len(table) - 1}, so use the official files"
            )
        return np.ascontiguousarray(table.take(raw))

    def _read(self, name: str) -> npt.NDArray[Any]:
        try:
            return np.asarray(_opened(self.path, os.getpid())[name][self.index - 1])
        except (OSError, KeyError) as error:
            raise UserError(f"{self}: cannot be read ({error}); download it again") from error


@lru_cache(maxsize=1)
def _opened(path: Path, _process: int) -> Any:
    """The open file. A forked process opens its own; without locking, which network disks often refuse."""
    import h5py

    return h5py.File(path, "r", locking=False)


def white_frame(image: U8) -> npt.NDArray[np.bool_]:
    """(H, W) bool of (H, W, 3) uint8 RGB: white pixels with nothing but white between them and an edge of the picture.

    Undistortion left a frame of uneven width. No deeper than `FRAME_WIDTH`, so that of a white wall little is lost.
    """
    white: npt.NDArray[np.bool_] = np.asarray((image >= WHITE).all(axis=2))
    frame = np.zeros_like(white)
    for inward, marked in (
        (white, frame),
        (white[::-1], frame[::-1]),
        (white.T, frame.T),
        (white.T[::-1], frame.T[::-1]),
    ):
        marked[:FRAME_WIDTH] |= np.logical_and.accumulate(inward[:FRAME_WIDTH], axis=0)
    return frame
