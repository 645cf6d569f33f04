"""A tiny dataset and recipe that training goes through in seconds on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from builders import kitti360_tree
from rw3d_common.collection import store_paths
from rw3d_common.labels import ClassMap
from rw3d_common.manifest import dataset_entry
from rw3d_prep.config import load_config
from rw3d_prep.pipeline import reconstruct
from rw3d_train.checkpoint import save_checkpoint, step_folder
from rw3d_train.config import TrainConfig, load_train_config, save_train_config
from rw3d_train.networks import describe_2d
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


# The smallest SegFormer that has every part of a large one.
SEGFORMER = {
    "depths": (1, 1, 1, 1),
    "hidden_sizes": (8, 8, 16, 16),
    "num_attention_heads": (1, 1, 2, 2),
    "decoder_hidden_size": 16,
}


def kitti_classes() -> ClassMap:
    """KITTI-360's classes."""
    return dataset_entry("kitti360").class_map()


def saved_run(
    folder: Path, networks: Mapping[str, nn.Module], config: TrainConfig, classes: ClassMap, step: int = 1
) -> Path:
    """A run in `folder` with one checkpoint of `networks`, as training leaves it, without training."""
    folder.mkdir(parents=True, exist_ok=True)
    save_train_config(config, folder / "config.yaml")
    state = {
        "step": step,
        "epoch": 1,
        "position": 0,
        "bad_steps": 0,
        "best": None,
        "network_2d": describe_2d(networks["student_2d"], classes),
        "classes": classes.to_json(),
        "class_map_hash": classes.hash,
        "config": config.model_dump(mode="json"),
    }
    save_checkpoint(step_folder(folder, step), networks, {}, state)
    return folder
