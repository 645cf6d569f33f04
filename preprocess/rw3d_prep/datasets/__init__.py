"""Dataset adapters: each reads one official on-disk layout and returns typed Frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field

from rw3d_common.config import Section
from rw3d_common.errors import UserError
from rw3d_common.manifest import DatasetEntry, dataset_entry
from rw3d_prep.frames import Cloud, Frame
from rw3d_prep.label_folders import is_label_folder, open_label_folder, with_labels, with_masks


class DatasetConfig(Section):
    name: str
    """A dataset of data_manifest.yaml."""
    splits: tuple[str, ...] = ("train",)
    """Which splits to take; a batch never mixes them."""
    cameras: tuple[str, ...] = ()
    """Which cameras to take, by the dataset's names; empty means the adapter's default."""
    sequences: tuple[str, ...] = ()
    """Only these sequences; empty means all of the split."""
    stride: int = Field(1, ge=1)
    """Take every n-th moment of a sequence, and every one with a sparse label; without any, every one with a truth."""
    labels: str = "scribble"
    """Which sparse labels to read: the name of the dataset's label folder, or the path of a folder by `make-labels`."""
    exclude_masks: str = ""
    """A folder of masks whose non-zero pixels never become points; empty: none."""


@dataclass
class FrameList:
    """What an adapter found: frames in order, clouds, and one sentence for each kind of thing it left out.

    `strided` says that the adapter has taken every n-th frame itself, where reading all of them would cost too much.
    """

    frames: list[Frame] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    clouds: list[Cloud] = field(default_factory=list)
    strided: bool = False


def read_frames(root: Path, config: DatasetConfig) -> FrameList:
    """The frames and clouds of a dataset below `root`.

    Raises:
        UserError: the root or a required file is missing or malformed, or nothing was found.
    """
    entry = dataset_entry(config.name)
    if not root.exists():
        raise UserError(
            f"{root}: no such folder; put {entry.title} there ({entry.source}), or say where it is with --root DIR"
        )
    if root.is_file() and entry.adapter != "folder":
        raise UserError(f"{root}: is a file; {entry.title} lies in a folder, name it with --root DIR")
    found = _adapter_frames(root, config, entry)
    if is_label_folder(config.labels):
        found.frames = with_labels(found.frames, open_label_folder(config.labels, config.name, entry))
    if config.exclude_masks:
        found.frames = with_masks(found.frames, Path(config.exclude_masks))
    if not found.frames and not found.clouds:
        raise UserError(
            f"{root}: no frame of {config.name} {'/'.join(config.splits)} found; run `rw3d-prep datasets check {config.name} --root {root}`"
        )
    if not found.strided:
        found.frames = _strided(found.frames, config.stride)
    return found


def _adapter_frames(root: Path, config: DatasetConfig, entry: DatasetEntry) -> FrameList:
    match entry.adapter:
        case "kitti360":
            from rw3d_prep.datasets.kitti360 import kitti360_frames

            return kitti360_frames(root, config, entry)
        case "rgbd":
            from rw3d_prep.datasets.rgbd import rgbd_frames

            return rgbd_frames(root, config, entry)
        case "scannet":
            from rw3d_prep.datasets.scannet import scannet_frames

            return scannet_frames(root, config, entry)
        case "s3dis":
            from rw3d_prep.datasets.s3dis import s3dis_clouds

            return s3dis_clouds(root, config, entry)
        case "cityscapes":
            from rw3d_prep.datasets.cityscapes import cityscapes_frames

            return cityscapes_frames(root, config, entry)
        case "nyuv2":
            from rw3d_prep.datasets.nyuv2 import nyuv2_frames

            return nyuv2_frames(root, config, entry)
        case "waymo":
            from rw3d_prep.datasets.waymo import waymo_frames

            return waymo_frames(root, config, entry)
        case "folder":
            from rw3d_prep.datasets.folder import folder_frames

            return folder_frames(root, config, entry)


def _strided(frames: Sequence[Frame], stride: int) -> list[Frame]:
    """Every `stride`-th moment of each (split, sequence), and every labelled one, each with all its cameras.

    Labelled means with a sparse label or, where the dataset has none yet, with a truth to make some from.
    """
    moment: dict[tuple[str, str], list[int]] = {}
    for frame in frames:
        ids = moment.setdefault((frame.split, frame.sequence), [])
        if not ids or ids[-1] != frame.id:
            ids.append(frame.id)
    kept = {key: set(ids[::stride]) for key, ids in moment.items()}
    by_truth = not any(frame.label for frame in frames)
    for frame in frames:
        if frame.truth if by_truth else frame.label:
            kept[frame.split, frame.sequence].add(frame.id)
    return [frame for frame in frames if frame.id in kept[frame.split, frame.sequence]]
