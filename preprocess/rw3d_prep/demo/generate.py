"""Write the built-in street drive as a KITTI-360 tree: images, labels, scribbles, laser scans, poses, calibration.

The drive needs no download and comes with exact depth, so that every stage can be tried and tested on any machine.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from rw3d_common.errors import UserError, disk_errors

VERSION = 2  # raise it when the same config gives another drive
DONE, BEGUN = "demo.json", "demo.unfinished.json"
BLOCK = 10  # frames that a worker renders of one world
WORLD_ORIGIN = (3639.2, 1708.2, 122.1)  # far from 0, as in KITTI-360: float32 must not be trusted with it
F64 = npt.NDArray[np.float64]


class DemoConfig(BaseModel):
    """What the drive consists of. Sequences 0 … are for training, the following ones for validation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=0, ge=0)
    train_sequences: int = Field(default=6, ge=1, le=5000)
    val_sequences: int = Field(default=2, ge=0, le=4000)
    train_frames: int = Field(default=20, ge=1)  # frames per sequence
    val_frames: int = Field(default=10, ge=1)
    width: int = Field(default=704, ge=64)  # pixels
    height: int = Field(default=188, ge=32)
    step: float = Field(default=1.0, gt=0, le=10)  # metres between two frames
    label_every: int = Field(default=2, ge=1)  # every n-th train frame has scribbles
    pose_noise: float = Field(default=0.02, ge=0, le=1)  # metres, standard deviation of the written positions

    def sequences(self) -> Iterator[tuple[int, Literal["train", "val"], int]]:
        """Sequence number, split and frame count of every sequence."""
        for sequence in range(self.train_sequences):
            yield sequence, "train", self.train_frames
        for sequence in range(self.train_sequences, self.train_sequences + self.val_sequences):
            yield sequence, "val", self.val_frames


def generate(
    root: Path, config: DemoConfig, *, workers: int = 1, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write the drive under `root`; the same config gives the same bytes whatever the number of worker processes.

    A finished tree is left alone, an interrupted one is continued. `progress(done, total)` counts stereo frames.

    Raises:
        UserError: `root` holds a drive made with another config, or data that are not of this generator.
    """
    total = sum(frames for _, _, frames in config.sequences())
    with disk_errors(root):
        if not _begin(root, config):
            _write_shared(root, config)
            done = 0
            for frames in _rendered(root, config, workers):
                done += frames
                if progress:
                    progress(done, total)
            for leftover in root.rglob("*.tmp-*"):  # of a process that was killed while it wrote
                leftover.unlink()
            write_file(root / DONE, _record(config))
            (root / BEGUN).unlink()
        elif progress:
            progress(total, total)


def _record(config: DemoConfig) -> bytes:
    return (json.dumps({"version": VERSION, "config": config.model_dump()}, indent=2) + "\n").encode()


def _begin(root: Path, config: DemoConfig) -> bool:
    """Whether the tree is finished already; leaves the mark of an unfinished one otherwise."""
    for name in (DONE, BEGUN):
        path = root / name
        if not path.exists():
            continue
        if path.read_bytes() != _record(config):
            raise UserError(
                f"{path}: this drive was made with another config or version; choose another folder, or delete {root}"
            )
        return name == DONE
    if root.is_dir() and any(root.iterdir()):
        raise UserError(f"{root}: holds files that are not of the built-in drive; choose an empty or a new folder")
    write_file(root / BEGUN, _record(config))
    return False


def _write_shared(root: Path, config: DemoConfig) -> None:
    """Calibration, poses and frame lists."""
    from .drive import drive_of

    lists: dict[str, list[str]] = {"train": [], "val": []}
    for sequence, split, _ in config.sequences():
        drive = drive_of(config, sequence)
        folder = root / "data_poses" / sequence_name(sequence)
        write_file(folder / "poses.txt", drive.pose_lines(drive.written_poses, 3).encode())
        write_file(folder / "cam0_to_world.txt", drive.pose_lines(drive.written_cameras(), 4).encode())
        for frame in drive.frames:
            image, semantic = (path.relative_to(root).as_posix() for path in _pair(root, sequence, frame))
            lists[split].append(f"{image} {semantic}\n")
    for name, text in drive.rig.files().items():
        write_file(root / "calibration" / name, text.encode())
    for name, lines in lists.items():
        path = root / "data_2d_semantics" / "train" / f"2013_05_28_drive_{name}_frames.txt"
        write_file(path, "".join(lines).encode())


def _rendered(root: Path, config: DemoConfig, workers: int) -> Iterator[int]:
    """Render block after block and yield the number of frames of each."""
    blocks = [
        (sequence, range(first, min(first + BLOCK, frames)))
        for sequence, _, frames in config.sequences()
        for first in range(0, frames, BLOCK)
    ]
    work = partial(_render_block, root, config)
    if workers <= 1:
        yield from (work(*block) for block in blocks)
        return
    # Forked children would inherit Open3D's and numba's threads in an unknown state.
    with ProcessPoolExecutor(min(workers, len(blocks)), multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(work, *block) for block in blocks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _render_block(root: Path, config: DemoConfig, sequence: int, indices: range) -> int:
    from .drive import Recorder

    recorder: Recorder | None = None
    for index in indices:
        frame = frame_ids(config, sequence)[index]
        image, semantic = _pair(root, sequence, frame)
        if image.exists():  # written last of its frame
            continue
        recorder = recorder or Recorder(config, sequence)
        shot = recorder.record(index)
        raw = root / "data_3d_raw" / sequence_name(sequence) / "velodyne_points" / "data"
        write_file(raw / f"{frame:010}.bin", shot.scan.tobytes())
        write_file(root / "demo_truth" / sequence_name(sequence) / "depth" / f"{frame:010}.npy", _npy(shot.depth))
        write_file(semantic, png(shot.labels))
        if shot.scribble is not None:
            write_file(semantic.parents[1] / "scribble" / semantic.name, png(np.dstack([shot.scribble] * 3)))
        write_file(image.parents[2] / "image_01" / "data_rect" / image.name, png(shot.right))
        write_file(image, png(shot.left))
    return len(indices)


def sequence_name(sequence: int) -> str:
    """Folder name of a sequence."""
    return f"2013_05_28_drive_{sequence:04}_sync"


def frame_ids(config: DemoConfig, sequence: int) -> list[int]:
    """Frame numbers of a sequence; the first one has a gap, as KITTI-360 has wherever the car stood still."""
    frames = {number: frames for number, _, frames in config.sequences()}[sequence]
    first = 100 + 37 * sequence
    return [first + i + (4 if sequence == 0 and i >= (frames + 1) // 2 else 0) for i in range(frames)]


def _pair(root: Path, sequence: int, frame: int) -> tuple[Path, Path]:
    """Left image and its labels."""
    name, file = sequence_name(sequence), f"{frame:010}.png"
    return (
        root / "data_2d_raw" / name / "image_00" / "data_rect" / file,
        root / "data_2d_semantics" / "train" / name / "image_00" / "semantic" / file,
    )


def png(image: npt.NDArray[np.uint8]) -> bytes:
    """PNG of a grey (H, W) or RGB (H, W, 3) picture."""
    import cv2

    data = image[..., ::-1] if image.ndim == 3 else image
    return bytes(cv2.imencode(".png", data, [cv2.IMWRITE_PNG_COMPRESSION, 2])[1])


def _npy(array: npt.NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def write_file(path: Path, data: bytes) -> None:
    """Write a file that is either whole or absent, whenever the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)
