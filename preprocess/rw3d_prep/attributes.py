"""The attributes of a scene: what it is, and all that made it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rw3d_common.cameras import F64
from rw3d_common.manifest import dataset_entry
from rw3d_prep.config import PrepConfig
from rw3d_prep.label_folders import label_encoding


def scene_attributes(
    config: PrepConfig, split: str, sequence: str, root: Path, backend: Mapping[str, str], world_offset: F64
) -> dict[str, Any]:
    """The attributes of a scene, without its schema version and completion record.

    `root` is where the paths of images and labels start; `world_offset` (3,) float64 metres was subtracted from the
    dataset's world.
    """
    entry = dataset_entry(config.dataset.name)
    unit = "a unit of length of the model's own" if backend.get("metric") == "false" else "metres"
    return {
        "dataset": config.dataset.name,
        "split": split,
        "sequence": sequence,
        "root": str(root),
        "backend": dict(backend),
        "config": config.identity(),
        "config_hash": config.hash(),
        "classes": entry.class_map().to_json(),
        "class_map_hash": entry.class_map().hash,
        "ignored_ids": entry.ignored_ids,
        "ignored_in_truth": entry.ignored_in_truth,
        "label_encoding": label_encoding(config.dataset.labels, entry),
        "truth_encoding": entry.truth_encoding,
        "world_offset": world_offset.tolist(),
        "axes": f"OpenCV camera axes: x right, y down, z forward; {unit}",
        "tools": tool_versions(),
    }


def tool_versions() -> dict[str, str]:
    """Versions of what made a scene."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("rw3d", "numpy", "zarr", "numcodecs")},
    }
