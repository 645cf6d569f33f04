"""NYU Depth v2's 1,449 labelled pictures: `nyu_depth_v2_labeled.mat`, with `splits.mat` and `classMapping40.mat`.

A frame's id is its 1-based place in the labelled file, which is what the official lists hold, and its sequence the
folder of its raw recording. There are no poses and no sparse labels.
"""

from __future__ import annotations

import io
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rw3d_common.errors import UserError
from rw3d_common.manifest import DatasetEntry
from rw3d_prep.datasets import DatasetConfig, FrameList
from rw3d_prep.datasets.nyuv2_images import DEPTH_UNIT, MatImage
from rw3d_prep.frames import DepthMap, Frame
from rw3d_prep.label_folders import is_label_folder

LABELED, SPLITS, MAPPING = "nyu_depth_v2_labeled.mat", "splits.mat", "classMapping40.mat"
LISTS = {"train": "trainNdxs", "val": "testNdxs"}
HEIGHT, WIDTH = 480, 640
CAMERA = "color"
# Pixels; the colour camera of the official toolbox. Depth is registered to it.
INTRINSICS = np.array([[518.8579, 0, 325.5824], [0, 519.4696, 253.7362], [0, 0, 1]])


def nyuv2_frames(root: Path, config: DatasetConfig, entry: DatasetEntry) -> FrameList:
    """The pictures of the official lists, with measured depth and dense labels of 40 classes.

    Raises:
        UserError: an unknown camera or split, or a file that is missing, damaged, or not the official one.
    """
    if config.cameras not in ((), (CAMERA,)):
        raise UserError(f"unknown camera {', '.join(config.cameras)}; NYU Depth v2 has one, '{CAMERA}'")
    path = root / LABELED
    recordings, raw_ids = read_recordings(path)
    class_of = read_mapping(root / MAPPING, raw_ids, entry)
    lists = read_splits(root / SPLITS, len(recordings))
    found = FrameList()
    for split in config.splits:
        if split not in lists:
            raise UserError(f"unknown split '{split}'; NYU Depth v2 has {', '.join(lists)}")
        for index in lists[split]:
            found.frames.append(
                Frame(
                    split=split,
                    sequence=recordings[index - 1],
                    id=index,
                    camera=CAMERA,
                    image=MatImage(path, "images", index),
                    intrinsics=INTRINSICS,
                    truth=MatImage(path, "labels", index, class_of),
                    exclude=MatImage(path, "white frame", index),
                    depth=DepthMap(MatImage(path, "rawDepths", index), DEPTH_UNIT, INTRINSICS),
                )
            )
    if config.sequences:
        found.frames = [frame for frame in found.frames if frame.sequence in config.sequences]
    if config.labels and not is_label_folder(config.labels):
        found.notes.append(
            f"dataset.labels is '{config.labels}', but NYU Depth v2 has no sparse labels of its own; make some with "
            "`rw3d-prep make-labels` and name their folder"
        )
    return found


def read_recordings(path: Path) -> tuple[list[str], int]:
    """The folder of each picture's raw recording, in the file's order, and how many raw labels there are.

    Raises:
        UserError: the file is missing, damaged, lacks a part, or a part has another shape or type than the official one.
    """
    import h5py

    try:
        with h5py.File(path, "r", locking=False) as file:
            names = _references(file, "rawRgbFilenames", path)
            raw_ids = len(_references(file, "names", path))
            _check_arrays(file, len(names), path)
            folders = [_text(file[name]).rpartition("/")[0] for name in names]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; download NYU Depth v2's labelled dataset (2.8 GB) there") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read as MATLAB v7.3 ({error}); download it again") from None
    if "" in folders:
        raise UserError(
            f"{path}: 'rawRgbFilenames' names no folder for picture {folders.index('') + 1}; download it again"
        )
    return [re.sub(r"[^\w-]", "_", folder) for folder in folders], raw_ids


def _references(file: Any, name: str, path: Path) -> npt.NDArray[np.object_]:
    """A MATLAB cell array, as (n,) references to its cells."""
    import h5py

    if name not in file or h5py.check_ref_dtype(file[name].dtype) is not h5py.Reference:
        raise UserError(f"{path}: has no cell array '{name}'; use the official {LABELED}, unchanged")
    return np.asarray(file[name]).ravel()


def _check_arrays(file: Any, count: int, path: Path) -> None:
    for name, shape, kind in (
        ("images", (count, 3, WIDTH, HEIGHT), "u1"),
        ("rawDepths", (count, WIDTH, HEIGHT), "f4"),
        ("labels", (count, WIDTH, HEIGHT), "u2"),
    ):
        if name not in file:
            raise UserError(f"{path}: has no '{name}'; use the official {LABELED}, unchanged")
        if file[name].shape != shape or file[name].dtype != kind:
            raise UserError(
                f"{path}: '{name}' is {file[name].dtype} {file[name].shape} where {np.dtype(kind)} {shape} belongs; use the "
                f"official {LABELED}, unchanged (its axes are MATLAB's, reversed)"
            )


def _text(cell: Any) -> str:
    """A MATLAB string: (n, 1) uint16 UTF-16 units; an empty one is stored as its size, in another type."""
    units = np.asarray(cell)
    return units.astype("<u2").tobytes().decode("utf-16-le") if units.dtype == np.uint16 else ""


def read_splits(path: Path, count: int) -> dict[str, list[int]]:
    """1-based places of the pictures of each split, ascending; "val" is the official test list.

    Raises:
        UserError: the file is missing or damaged, or its lists are not 1-based lists of different pictures.
    """
    content = _load_mat(path)
    lists = {split: [int(index) for index in _variable(content, name, path).ravel()] for split, name in LISTS.items()}
    everything = [index for members in lists.values() for index in members]
    first, last = min(everything, default=0), max(everything, default=0)
    if first < 1 or last > count:
        raise UserError(
            f"{path}: names pictures {first} to {last} where the labelled file has 1 to {count}; use the "
            "official lists, which count from 1, with the official file"
        )
    if len(set(everything)) < len(everything):
        twice = next(index for index in everything if everything.count(index) > 1)
        raise UserError(f"{path}: names picture {twice} twice; use the official lists")
    return {split: sorted(members) for split, members in lists.items()}


def read_mapping(path: Path, raw_ids: int, entry: DatasetEntry) -> bytes:
    """The class, 1..40, of each raw label 0..`raw_ids` as uint8 bytes; 0, unlabelled, stays 0.

    Raises:
        UserError: the file is missing or damaged, or maps to other classes than those of data_manifest.yaml.
    """
    content = _load_mat(path)
    mapped = _variable(content, "mapClass", path).ravel()
    if len(mapped) != raw_ids or set(np.unique(mapped)) - set(range(1, len(entry.classes) + 1)):
        raise UserError(
            f"{path}: 'mapClass' maps {len(mapped)} raw labels to {mapped.min(initial=1)}..{mapped.max(initial=0)} where {raw_ids} to "
            f"1..{len(entry.classes)} belong; use the official {MAPPING}, not the 13-class file"
        )
    place_of = {_letters(item.name): place for place, item in enumerate(entry.classes, 1)}
    for place, cell in enumerate(content.get("className", np.empty(0)).ravel(), 1):
        name = _letters("".join(np.ravel(cell)))
        if place_of.get(name, place) != place:  # spelling may differ
            raise UserError(
                f"{path}: class {place} is '{name}', which is class {place_of[name]}; use the official {MAPPING}"
            )
    return bytes([0, *mapped.astype(np.uint8)])


def _letters(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


def _load_mat(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        return dict(loadmat(io.BytesIO(path.read_bytes())))
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; it is small and comes apart from {LABELED} (`rw3d-prep datasets` says from where)"
        ) from None
    except (OSError, ValueError, TypeError, EOFError, NotImplementedError, zlib.error, MatReadError) as error:
        raise UserError(f"{path}: cannot be read as MATLAB v5 ({error}); download it again") from None


def _variable(content: dict[str, Any], name: str, path: Path) -> npt.NDArray[Any]:
    if name not in content:
        held = ", ".join(key for key in content if not key.startswith("__")) or "nothing"
        raise UserError(f"{path}: has no '{name}' but {held}; use the official {path.name}")
    return np.asarray(content[name])
