"""A tiny dataset and recipe that training goes through in seconds on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from builders import kitti360_tree
from rw3d_common.collection import store_paths
from rw3d_prep.config import load_config
from rw3d_prep.pipeline import reconstruct
from rw3d_train.config import TrainConfig, load_train_config
from sample_builders import add_samples


def training_stores(folder: Path, frames: int = 4) -> Path:
    """Three drives of split train and one of val, with samples, in `folder`/stores."""
    root = kitti360_tree(
        folder / "kitti360", sequences=(0, 2, 3), val_sequences=(4,), frames=range(frames), size=(32, 64)
    )
    splits = ["dataset.splits=[train, val]"]
    reconstruct(load_config("kitti360", None, "sensor", None, splits), root, folder / "stores", workers=1)
    for store in store_paths(folder / "stores"):
        add_samples(store)
    return folder / "stores"


TINY = {
    "model_2d.name": "unet",
    "model_3d.size": "small",
    "model_3d.voxel": 0.5,
    "augment.geometry.crop": "[32, 48]",
    "augment.geometry.scale": "[1.0, 1.2]",
    "augment.photometric.cutout_size": "[8, 8]",
    "optim.lr_2d": 0.003,
    "run.epochs": 2,
    "run.batch_size": 4,
    "run.workers": 0,
    "run.precision": "fp32",
    "run.overlays": 1,
    "evaluate.window": "null",
    "evaluate.lefts": "null",
    "evaluate.scale": 1.0,
}


def tiny_config(stores: Path, method: str = "ema", preset: Any = "paper", **changes: Any) -> TrainConfig:
    """KITTI-360's recipe with small networks; `changes` by dotted key with '__' for '.'."""
    values = {**TINY, "data.stores": str(stores), **{key.replace("__", "."): value for key, value in changes.items()}}
    assignments = [f"{key}={value}" for key, value in values.items()]
    return load_train_config("kitti360", None, preset, method, assignments)
