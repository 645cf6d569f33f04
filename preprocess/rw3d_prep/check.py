"""`rw3d-prep datasets check`: what of a dataset's layout is present, missing, or unexpected."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rw3d_common.errors import UserError
from rw3d_common.manifest import DatasetEntry, PartEntry
from rw3d_prep.datasets import DatasetConfig, read_frames
from rw3d_prep.frames import Frame
from rw3d_prep.write import sha256_of


@dataclass
class LayoutCheck:
    """`counts`: files per part, in the manifest's order; `unexpected`: files of no part; `altered`: wrong checksum."""

    counts: list[tuple[PartEntry, int]]
    unexpected: list[str] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)

    @property
    def missing(self) -> list[PartEntry]:
        return [part for part, count in self.counts if part.required and count == 0]


def check_layout(root: Path, entry: DatasetEntry) -> LayoutCheck:
    """Count the files of every part of the layout; each file counts for the first part it fits.

    Raises:
        UserError: no such root.
    """
    if not root.exists():
        raise UserError(f"{root}: no such folder; put {entry.title} there ({entry.source}), or give --root DIR")
    patterns = [_pattern(part.glob) for part in entry.layout]
    counts: Counter[int] = Counter()
    unexpected = []
    for name in _file_names(root):
        fitting = next((index for index, pattern in enumerate(patterns) if pattern.fullmatch(name)), None)
        counts[fitting if fitting is not None else -1] += 1
        if fitting is None:
            unexpected.append(name)
    altered = [
        name for name, digest in entry.checksums.items() if (root / name).is_file() and sha256_of(root / name) != digest
    ]
    return LayoutCheck([(part, counts[index]) for index, part in enumerate(entry.layout)], sorted(unexpected), altered)


def _pattern(glob: str) -> re.Pattern[str]:
    """A glob as a regular expression: `**/` is any folders or none, `*` and `?` stay within a name."""
    escaped = re.escape(glob).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
    return re.compile(escaped)


def _file_names(root: Path) -> Iterator[str]:
    if root.is_file():
        yield root.name
    for folder, _, names in os.walk(root):
        for name in names:
            yield (Path(folder) / name).relative_to(root).as_posix()


def frame_counts(root: Path, name: str, splits: tuple[str, ...]) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Frames per split and how many of them have what, and the adapter's notes.

    Raises:
        UserError: the adapter cannot read the data.
    """
    found = read_frames(root, DatasetConfig(name=name, splits=splits))
    counts = {split: _count([frame for frame in found.frames if frame.split == split]) for split in splits}
    if found.clouds:
        for split in splits:
            counts[split]["clouds"] = sum(cloud.split == split for cloud in found.clouds)
    return counts, found.notes


def _count(frames: list[Frame]) -> dict[str, int]:
    parts = {
        "pose": "camera_to_world",
        "sparse label": "label",
        "truth": "truth",
        "right": "right",
        "depth": "depth",
        "LiDAR": "lidar",
        "accumulated LiDAR": "accumulated",
    }
    counts = {title: sum(getattr(frame, name) is not None for frame in frames) for title, name in parts.items()}
    return {"frames": len(frames), **counts}
