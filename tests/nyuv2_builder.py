"""A tiny NYU Depth v2 in the official byte formats, written from their documentation and not from the adapter.

The labelled file is MATLAB v7.3: HDF5 behind a 512-byte header, every array with its axes reversed, cells as object
references to UTF-16 strings. The lists and the class mapping are MATLAB v5.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
from scipy.io import savemat

HEIGHT, WIDTH, RAW = 480, 640, 894
RECORDINGS = ("kitchen_0004", "kitchen_0004", "office_0001b", "office_0001b", "kitchen_0004", "bathroom_0007")
TRAIN, TEST = (1, 2, 5), (3, 4, 6)  # counted from 1
FRAME = {"top": 8, "bottom": 15, "left": 9, "right": 12}  # pixels of white
CLASSES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor-mat", "clothes", "ceiling", "books",
    "refridgerator", "television", "paper", "towel", "shower-curtain", "box", "whiteboard", "person", "night-stand",
    "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure", "otherfurniture", "otherprop",
)  # fmt: skip


@dataclass(frozen=True)
class Content:
    """What the file shows, picture by picture: (N, H, W, 3) uint8, (N, H, W) metres and raw labels; class of raw 1, 2, ..."""

    images: npt.NDArray[np.uint8]
    depths: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint16]
    map_class: npt.NDArray[np.uint8]


def content(count: int = len(RECORDINGS), seed: int = 0) -> Content:
    """Pictures without any symmetry, so that one that is mirrored or turned shows."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[:HEIGHT, :WIDTH]
    images = np.empty((count, HEIGHT, WIDTH, 3), np.uint8)
    depths = np.empty((count, HEIGHT, WIDTH), np.float32)
    labels = np.empty((count, HEIGHT, WIDTH), np.uint16)
    for index in range(count):
        images[index] = np.stack([row * 200 // HEIGHT, column * 200 // WIDTH, (row + column) % 97 + index], axis=2)
        images[index, 200:220, 300:330] = 255  # a lamp, far from the frame
        _paint_frame(images[index])
        depths[index] = 1.2 + 0.3 * index + 0.002 * row + 0.001 * column
        depths[index, rng.random((HEIGHT, WIDTH)) < 0.1] = 0  # holes
        labels[index] = 1 + (row // 40 * 16 + column // 40 + 31 * index) % RAW
        labels[index, 100:140, 50:120] = 0
    labels[0, 60:62, 60:62] = RAW
    return Content(images, depths, labels, (np.arange(RAW) * 7 % 40 + 1).astype(np.uint8))


def nyuv2_root(root: Path, shown: Content | None = None) -> tuple[Path, Content]:
    """The three files of the default pictures, and what they show."""
    shown = shown or content()
    root.mkdir(parents=True, exist_ok=True)
    write_labelled(root / "nyu_depth_v2_labeled.mat", shown)
    write_splits(root / "splits.mat")
    write_mapping(root / "classMapping40.mat", shown.map_class)
    return root, shown


def write_splits(path: Path, train: tuple[int, ...] = TRAIN, test: tuple[int, ...] = TEST) -> None:
    """splits.mat: columns of doubles."""
    savemat(path, {"trainNdxs": np.array(train, float)[:, None], "testNdxs": np.array(test, float)[:, None]})


def write_mapping(path: Path, map_class: npt.NDArray[np.uint8], names: tuple[str, ...] = CLASSES) -> None:
    """classMapping40.mat: a row of classes 1..40 and a cell row of names."""
    savemat(path, {"mapClass": map_class[None, :], "className": np.array(names, object)[None, :]})


def write_labelled(path: Path, shown: Content) -> None:
    """nyu_depth_v2_labeled.mat."""
    with h5py.File(path, "w", userblock_size=512) as file:
        # as MATLAB has them: H × W × 3 × N and H × W × N
        _array(file, "images", shown.images.transpose(1, 2, 3, 0))
        _array(file, "depths", shown.depths.transpose(1, 2, 0) + np.float32(0.5))  # in-painted: never to be read
        _array(file, "rawDepths", shown.depths.transpose(1, 2, 0))
        _array(file, "labels", shown.labels.transpose(1, 2, 0))
        count = len(shown.images)
        _cells(
            file, "rawRgbFilenames", [f"{RECORDINGS[i]}/r-1294886360.{794623 + i}-2996770081.ppm" for i in range(count)]
        )
        _cells(file, "scenes", [RECORDINGS[i].rstrip("ab") for i in range(count)])
        _cells(file, "names", [f"thing {raw}" for raw in range(1, RAW + 1)])
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Wed Jul 11 10:00:00 2012 HDF5 schema 1.00 .".ljust(
        124
    )
    with path.open("r+b") as plain:
        plain.write(header + b"\x00\x02IM")


def _array(file: h5py.File, name: str, matlab: npt.NDArray) -> None:
    """MATLAB stores columns first, so that HDF5 sees the axes in reverse."""
    data = file.create_dataset(name, data=matlab.transpose(), chunks=(1, *matlab.shape[-2::-1]), compression=1)
    data.attrs["MATLAB_class"] = np.bytes_(
        {"uint8": "uint8", "uint16": "uint16", "float32": "single"}[str(matlab.dtype)]
    )


def _cells(file: h5py.File, name: str, texts: list[str]) -> None:
    """An N × 1 cell array: references (1, N) to (length, 1) uint16 strings in the group #refs#."""
    cells = file.create_dataset(name, (1, len(texts)), h5py.ref_dtype)
    cells.attrs["MATLAB_class"] = np.bytes_("cell")
    for index, text in enumerate(texts):
        units = np.frombuffer(text.encode("utf-16-le"), np.uint16)[:, None]
        cell = file.require_group("#refs#").create_dataset(f"{name}{index}", data=units)
        cell.attrs["MATLAB_class"] = np.bytes_("char")
        cells[0, index] = cell.ref


def _paint_frame(image: npt.NDArray[np.uint8]) -> None:
    """White, uneven: a wedge of up to 4 more pixels on the left."""
    image[: FRAME["top"]] = image[-FRAME["bottom"] :] = 255
    image[:, : FRAME["left"]] = image[:, -FRAME["right"] :] = 255
    for row in range(HEIGHT):
        image[row, : FRAME["left"] + row // 120] = 255
