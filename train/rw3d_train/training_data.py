"""What a run reads: training items, the scenes kept out to choose the best checkpoint by, and the split to report on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from rw3d_common.collection import store_paths
from rw3d_common.errors import UserError
from rw3d_common.labels import ClassMap
from rw3d_common.log import log
from rw3d_common.manifest import dataset_entry
from rw3d_common.remote import StorePath
from rw3d_common.scene import Scene, open_scene
from rw3d_train.config import TrainConfig
from rw3d_train.data.augment import augment
from rw3d_train.data.dataset import SceneDataset
from rw3d_train.data.views import ViewDataset


@dataclass(frozen=True)
class TrainingData:
    """`select` is what the best checkpoint is chosen by, None where nothing was kept out."""

    train: SceneDataset
    select: ViewDataset | None
    classes: ClassMap
    val_stores: tuple[StorePath, ...]


def open_data(config: TrainConfig) -> TrainingData:
    """The data of a configuration.

    Raises:
        UserError: no scenes, scenes of another dataset, classes or split, none with samples, or without the geometry that
            the method needs.
    """
    scenes = _scenes(config)
    _refuse_without_geometry(scenes, config)
    train = [scene for scene in scenes if scene.attrs["split"] == config.data.split]
    val = [scene for scene in scenes if scene.attrs["split"] == "val" and config.data.split != "val"]
    if not train:
        splits = ", ".join(sorted({str(scene.attrs["split"]) for scene in scenes}))
        raise UserError(f"{config.data.stores}: no scene of split '{config.data.split}', only of {splits}")
    kept_out = _kept_out(train, config.data.held_out if config.data.select == "held_out" else 0)
    rest = [scene.path for scene in train if scene not in kept_out]
    method = config.method
    dense = method.kind == "supervised" and method.labels == "dense"
    dataset = SceneDataset(
        rest,
        augment=partial(augment, config=config.augment),
        seed=config.run.seed,
        truth=dense,
        labels=config.data.labels,
    )
    return TrainingData(dataset, _selection(config, kept_out, val), dataset.classes, tuple(scene.path for scene in val))


def _scenes(config: TrainConfig) -> list[Scene]:
    """Every scene of the run's folder, all of the configured dataset and with today's class map."""
    paths = store_paths(config.data.stores)
    if not paths:
        raise UserError(
            f"{config.data.stores}: no finished scene there; run `rw3d-prep reconstruct --dataset {config.data.dataset}`, "
            f"then `rw3d-prep sample-views {config.data.stores}`"
        )
    scenes = [open_scene(path) for path in paths]
    expected = dataset_entry(config.data.dataset).class_map().hash
    for scene in scenes:
        if scene.attrs["dataset"] != config.data.dataset:
            raise UserError(
                f"{scene.path}: a scene of '{scene.attrs['dataset']}', the run is for '{config.data.dataset}'; "
                f"give --stores stores/{config.data.dataset}"
            )
        if scene.attrs["class_map_hash"] != expected:
            raise UserError(
                f"{scene.path}: made with another class map than data_manifest.yaml has now; reconstruct the scenes again, "
                "or set RW3D_MANIFEST to the manifest they were made with"
            )
    return scenes


def _refuse_without_geometry(scenes: Sequence[Scene], config: TrainConfig) -> None:
    """Raise UserError where a 3D student would get scenes that were made without points."""
    bare = sum(not scene.has_geometry for scene in scenes)
    if bare and config.trains_3d:
        option = "" if config.method.kind == "rewis3d" else " with method.points=true"
        raise UserError(
            f"{config.data.stores}: {bare} of {len(scenes)} scenes have no geometry (--backend images), and method "
            f"{config.method.kind}{option} trains on points; take --method ema or supervised without points, or "
            "reconstruct into another folder with --backend mapanything, stereo or sensor"
        )


def _kept_out(train: Sequence[Scene], share: float) -> list[Scene]:
    """Scenes evenly spread over those of the split, at least one where `share` is above 0 and two are there."""
    if share == 0 or len(train) < 2:
        return []
    count = min(max(round(share * len(train)), 1), len(train) - 1)
    return [train[int((index + 0.5) * len(train) / count)] for index in range(count)]


def _selection(config: TrainConfig, kept_out: Sequence[Scene], val: Sequence[Scene]) -> ViewDataset | None:
    if config.data.select == "val":
        if not val:
            raise UserError(
                f"{config.data.stores}: no scene of split 'val' to choose the best checkpoint by; reconstruct it with "
                "--set dataset.splits='[train, val]', or take --set data.select=held_out"
            )
        log.warning("the best checkpoint is chosen on split val (official): the score to be reported there is biased")
        return ViewDataset([scene.path for scene in val], "truth")
    labelled = [scene.path for scene in kept_out if scene.view_table["has_label"].any()]
    if not labelled:
        log.info("nothing is kept out of training, so the last checkpoint counts as the best")
        return None
    return ViewDataset(labelled, "label")
