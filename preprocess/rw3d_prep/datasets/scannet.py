"""ScanNetV2: exported frames with dense labels, and the labelled meshes as point clouds.

Below the root: `scans/<scene>/{color,depth,pose,intrinsic}` as ScanNet's SensReader exports them, beside them
`label-filt/` or `label/` (16-bit PNGs of raw ScanNet ids) and the two meshes `<scene>_vh_clean_2.ply` (colours) and
`<scene>_vh_clean_2.labels.ply` (NYU40 ids; its colours are those of the labels). The root holds the official scene lists
and `scannetv2-labels.combined.tsv`, which leads from raw ids to NYU40. Frames and meshes share one world, +z up: the
axis alignment of `<scene>.txt` is applied to neither.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rw3d_common.errors import UserError
from rw3d_common.images import read_uint16
from rw3d_common.manifest import DatasetEntry
from rw3d_prep.datasets import DatasetConfig, FrameList
from rw3d_prep.datasets.rgbd import color_images, read_matrix, read_pose
from rw3d_prep.frames import Cloud, CloudPoints, DepthMap, Frame
from rw3d_prep.label_folders import LabelFolder, is_label_folder, open_label_folder

LABEL_TABLE = "scannetv2-labels.combined.tsv"
MESH, LABELLED_MESH = "_vh_clean_2.ply", "_vh_clean_2.labels.ply"
_UNKNOWN = -1


def scannet_frames(root: Path, config: DatasetConfig, entry: DatasetEntry) -> FrameList:
    """Every `stride`-th frame of the official scenes that are there, frames with a made label, and the meshes.

    A frame that the tracker lost (a pose of −inf) has no pose. Scenes have some 1,600 frames, so the files of those
    that the stride leaves out are never read.

    Raises:
        UserError: a missing scene list or label table, missing or malformed intrinsics or poses, or an unknown split.
    """
    found = FrameList(strided=True)
    labels = open_label_folder(config.labels, config.name, entry) if is_label_folder(config.labels) else None
    unit = float(entry.depth_unit or 0.001)
    for split in config.splits:
        scenes = [scene for scene in _scenes(root, split, entry) if not config.sequences or scene in config.sequences]
        folders = [root / "scans" / scene for scene in scenes]
        for folder in folders:
            found.frames += _scene_frames(folder, split, config.stride, labels, unit)
            found.clouds += _meshes(folder, split)
        found.notes += _lacking(found, folders, split)
    _note_lost(found)
    if any(frame.truth for frame in found.frames):
        nyu40_of_raw(root / LABEL_TABLE)  # a missing table is told before work starts
    return found


def _scenes(root: Path, split: str, entry: DatasetEntry) -> list[str]:
    if split not in entry.splits:
        raise UserError(f"unknown split '{split}'; data_manifest.yaml has {', '.join(entry.splits)}")
    listing = root / str(entry.splits[split].list)
    if not listing.is_file():
        raise UserError(
            f"{listing}: no such file; it names the scenes of split '{split}', copy it from Tasks/Benchmark of "
            "github.com/ScanNet/ScanNet"
        )
    return listing.read_text().split()


def _scene_frames(folder: Path, split: str, stride: int, labels: LabelFolder | None, unit: float) -> list[Frame]:
    images = color_images(folder)
    if not images:
        return []
    bare = [Frame(split, folder.name, frame_id, "color", image) for frame_id, image in images.items()]
    kept = [frame for index, frame in enumerate(bare) if index % stride == 0 or (labels and labels.file(frame))]
    color, depth = (read_matrix(folder / "intrinsic" / f"intrinsic_{name}.txt")[:3, :3] for name in ("color", "depth"))
    frames = []
    for frame in kept:
        stem = images[frame.id].stem
        pose, measured = folder / "pose" / f"{stem}.txt", folder / "depth" / f"{stem}.png"
        truths = (folder / name / f"{stem}.png" for name in ("label-filt", "label"))
        truth = next((path for path in truths if path.is_file()), None)
        frames.append(
            replace(
                frame,
                camera_to_world=read_pose(pose) if pose.is_file() else None,
                intrinsics=color,
                truth=RawLabel(truth, folder.parents[1] / LABEL_TABLE) if truth else None,
                depth=DepthMap(measured, unit, depth) if measured.is_file() else None,
            )
        )
    return frames


def _lacking(found: FrameList, folders: Sequence[Path], split: str) -> list[str]:
    """One sentence for each kind of thing that scenes of a split lack."""
    exported = {frame.sequence for frame in found.frames if frame.split == split}
    meshed = {cloud.sequence for cloud in found.clouds if cloud.split == split}
    there = [folder for folder in folders if folder.is_dir()]
    kinds = {
        "are not there": [folder for folder in folders if not folder.is_dir()],
        "have no color/ with exported frames (ScanNet's SensReader writes them)": [
            folder for folder in there if folder.name not in exported
        ],
        f"have no labelled mesh (<scene>{MESH} and <scene>{LABELLED_MESH})": [
            folder for folder in there if folder.name not in meshed
        ],
    }
    return [
        f"{lacking[0]}: {len(lacking):,} of {len(folders):,} scenes of split '{split}' {what}"
        for what, lacking in kinds.items()
        if lacking
    ]


def _note_lost(found: FrameList) -> None:
    lost = [frame for frame in found.frames if frame.camera_to_world is None]
    if lost:
        found.notes.append(f"{lost[0].image}: {len(lost):,} of {len(found.frames):,} frames have no usable pose")


@dataclass(frozen=True)
class RawLabel:
    """A label image of raw ScanNet ids (16-bit PNG), read as an 8-bit PNG of NYU40 ids by way of the label table."""

    path: Path
    table: Path
    member: str = "nyu40"

    def __str__(self) -> str:
        return str(self.path)

    def read_bytes(self) -> bytes:
        """The label image as an 8-bit PNG of NYU40 ids.

        Raises:
            UserError: the file is missing, damaged or not 16-bit, or holds an id that the table does not.
        """
        from PIL import Image

        raw = read_uint16(self.path, "label image")
        nyu40 = nyu40_of_raw(self.table)[raw]
        if (nyu40 == _UNKNOWN).any():
            unknown = ", ".join(map(str, np.unique(raw[nyu40 == _UNKNOWN])[:5]))
            raise UserError(
                f"{self.path}: label id {unknown} is not in {self.table}; take label images and table of one release"
            )
        file = io.BytesIO()
        Image.fromarray(nyu40.astype(np.uint8)).save(file, "PNG")
        return file.getvalue()


@lru_cache(maxsize=1)
def nyu40_of_raw(table: Path) -> npt.NDArray[np.int16]:
    """(65536,) int16: raw ScanNet id → NYU40 id, −1 where the table `scannetv2-labels.combined.tsv` has no such id.

    Raises:
        UserError: the table is missing, or lacks a column or a number.
    """
    ids = np.full(2**16, _UNKNOWN, np.int16)
    ids[0] = 0  # unannotated
    try:
        with table.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t")
            for row in rows:
                raw, nyu40 = int(row["id"]), int(row["nyu40id"])
                if not (0 < raw < 2**16 and 0 <= nyu40 <= 40):
                    raise ValueError(f"id {raw} with nyu40id {nyu40}")
                ids[raw] = nyu40
    except FileNotFoundError:
        raise UserError(f"{table}: no such file; it comes with ScanNet (download-scannet.py --label_map)") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{table}: line {rows.line_num} cannot be used ({error}); it needs the columns id and nyu40id, so copy the "
            "official file again"
        ) from error
    return ids


@dataclass(frozen=True)
class Mesh:
    """The vertices of `<scene>_vh_clean_2.ply`, with the labels of its twin."""

    path: Path

    def read(self) -> CloudPoints:
        """Positions, photo colours and NYU40 ids of all vertices.

        Raises:
            UserError: a file that is missing or damaged, vertices that differ between the two, or an id above 255.
        """
        from numpy.lib.recfunctions import structured_to_unstructured

        from rw3d_prep.datasets.ply import read_vertices

        labelled = self.path.with_name(self.path.name.replace(MESH, LABELLED_MESH))
        axes, channels = ["x", "y", "z"], ["red", "green", "blue"]
        photo, labels = read_vertices(self.path, [*axes, *channels]), read_vertices(labelled, [*axes, "label"])
        position = structured_to_unstructured(photo[axes], np.float64)
        if len(photo) != len(labels) or not np.allclose(position, structured_to_unstructured(labels[axes], np.float64)):
            raise UserError(
                f"{labelled}: its vertices ({len(labels):,}) are not those of {self.path.name} ({len(photo):,}); "
                "download both again"
            )
        if (largest := labels["label"].max(initial=0)) > 255:
            raise UserError(f"{labelled}: holds the label {largest}, where NYU40 ids belong; download it again")
        return CloudPoints(
            np.asarray(position),
            np.asarray(structured_to_unstructured(photo[channels], np.uint8)),
            np.asarray(labels["label"], np.uint8),
        )


def _meshes(folder: Path, split: str) -> list[Cloud]:
    """The labelled mesh of a scene, if both its files are there."""
    if not all((folder / f"{folder.name}{suffix}").is_file() for suffix in (MESH, LABELLED_MESH)):
        return []
    return [Cloud(split, folder.name, "mesh", Mesh(folder / f"{folder.name}{MESH}"))]
