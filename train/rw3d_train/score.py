"""`rw3d-train evaluate`: the scores of a run on a split, in 2D and, where there are samples, in 3D."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from rw3d_common.collection import store_paths
from rw3d_common.config import override
from rw3d_common.errors import UserError
from rw3d_common.log import log, progress
from rw3d_common.remote import StorePath
from rw3d_common.scene import Scene, open_scene
from rw3d_common.scene_sample import has_samples
from rw3d_train.checkpoint import read_state
from rw3d_train.config import TrainConfig
from rw3d_train.data.collate import collate
from rw3d_train.data.dataset import SceneDataset
from rw3d_train.data.views import ViewDataset
from rw3d_train.distributed import rank, world
from rw3d_train.evaluate import EvaluateConfig, evaluate_2d, evaluate_3d
from rw3d_train.metrics import Scores, write_scores
from rw3d_train.networks import n_classes_3d
from rw3d_train.trained import Segmenter, Who, config_of, load, load_3d
from rw3d_train.validate import views_of_rank


def evaluate_run(
    run: Path,
    device: torch.device,
    split: str = "val",
    stores: str | StorePath | None = None,
    workers: int = 2,
    assignments: Sequence[str] = (),
) -> dict[str, Scores]:
    """Scores of a run's best checkpoint, student and teacher, by column name ("2D student", "3D teacher", …).

    They are written beside the checkpoints as `evaluation-<split>.json` and `.csv`. Within
    `distributed.process_group`, the processes share the images.

    Args:
        run: a run folder or one checkpoint.
        device: where the networks run.
        split: the split to score, by its dense labels.
        stores: where the scenes lie now; None: where they were trained from.
        workers: processes that decode images.
        assignments: changes to how the run's configuration evaluates, such as "evaluate.combine=sum".

    Raises:
        UserError: no checkpoint, no scenes of the split, or scenes of other classes.
    """
    trained = load(run, "student", str(device))
    config = config_of(trained.checkpoint, {"config": override(trained.state["config"], assignments)})
    scenes = _scenes(stores or config.data.stores, split, trained)
    found = _scores_2d(run, trained, scenes, config.evaluate, device, workers)
    if (trained.checkpoint / "student_3d.safetensors").is_file():
        found |= _scores_3d(run, trained, scenes, config, device, workers)
    if rank() == 0:
        folder = trained.checkpoint if run == trained.checkpoint else run
        facts = {"checkpoint": str(trained.checkpoint), "split": split, "step": trained.state["step"]}
        write_scores(found, folder, f"evaluation-{split}", **facts)
    return found


def has_split(checkpoint: Path, split: str) -> bool:
    """Whether the scenes that a checkpoint was trained from have this split, with dense labels."""
    stores = config_of(checkpoint, read_state(checkpoint)).data.stores
    scenes = [open_scene(path) for path in store_paths(stores)]
    return any(scene.attrs["split"] == split and scene.has_truth for scene in scenes)


def _scenes(stores: str | StorePath, split: str, trained: Segmenter) -> list[Scene]:
    scenes = [open_scene(path) for path in store_paths(stores)]
    chosen = [scene for scene in scenes if scene.attrs["split"] == split]
    if not chosen:
        raise UserError(f"{stores}: no scene of split '{split}'; reconstruct it with --set dataset.splits='[{split}]'")
    for scene in chosen:
        if scene.attrs["class_map_hash"] != trained.state["class_map_hash"]:
            raise UserError(
                f"{scene.path}: has other classes than {trained.checkpoint}; evaluate on scenes of its dataset"
            )
    return chosen


def _scores_2d(
    run: Path, trained: Segmenter, scenes: list[Scene], config: EvaluateConfig, device: torch.device, workers: int
) -> dict[str, Scores]:
    networks = {"2D student": trained.model}
    if (trained.checkpoint / "teacher_2d.safetensors").is_file():
        networks["2D teacher"] = load(run, "teacher", str(device)).model
    views = ViewDataset([scene.path for scene in scenes], "truth")
    with progress("evaluate 2D", -(-len(views) // world()), "images") as advance:
        found = evaluate_2d(networks, views_of_rank(views, workers), len(trained.classes), config, device, advance)
    return {name: confusion.scores(trained.classes, config.absent) for name, confusion in found.items()}


def _scores_3d(
    run: Path, trained: Segmenter, scenes: list[Scene], config: TrainConfig, device: torch.device, workers: int
) -> dict[str, Scores]:
    sampled = [scene.path for scene in scenes if has_samples(scene.path) and scene.has_geometry]
    if not sampled:
        lack = "samples; `rw3d-prep sample-views --views all` makes them"
        lack = lack if any(scene.has_geometry for scene in scenes) else "geometry (--backend images)"
        log.info(f"no 3D scores: these scenes have no {lack}")
        return {}
    both: tuple[Who, Who] = ("student", "teacher")
    there = [who for who in both if (trained.checkpoint / f"{who}_3d.safetensors").is_file()]
    networks: dict[str, nn.Module] = {f"3D {who}": load_3d(run, who, str(device)) for who in there}
    items = SceneDataset(sampled)
    share = Subset(items, range(rank(), len(items), world()))
    batches = DataLoader(
        share,
        collate_fn=partial(collate, n_classes=len(trained.classes), voxel_size=config.model_3d.voxel),
        num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,
    )
    with progress("evaluate 3D", len(share), "samples") as advance:
        found = evaluate_3d(networks, batches, n_classes_3d(trained.classes), device, advance)
    return {name: confusion.scores(trained.classes, config.evaluate.absent) for name, confusion in found.items()}
