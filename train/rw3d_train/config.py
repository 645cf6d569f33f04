"""The `train:` section of a pipeline YAML: everything that decides a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, PlainSerializer

from rw3d_common.config import Section, override, pipeline_file, read_yaml, validate
from rw3d_common.errors import UserError
from rw3d_common.remote import StorePath, as_store_path
from rw3d_train.data.augment import AugmentConfig
from rw3d_train.evaluate import EvaluateConfig
from rw3d_train.methods import EmaConfig, MethodConfig, Rewis3dConfig, SupervisedConfig
from rw3d_train.models.ptv3.sizes import Size
from rw3d_train.optim import OptimConfig

Preset = Literal["paper", "official"]
METHODS: dict[str, type[Section]] = {"supervised": SupervisedConfig, "ema": EmaConfig, "rewis3d": Rewis3dConfig}
SECTIONS = {"paper": "train", "official": "train_official"}
Positive = Annotated[float, Field(gt=0)]


def _place(value: Any) -> Any:
    return as_store_path(value) if isinstance(value, str) else value


Stores = Annotated[StorePath, BeforeValidator(_place), PlainSerializer(str, return_type=str)]


class DataConfig(Section):
    """What is trained on."""

    dataset: str
    """A dataset of data_manifest.yaml: the scenes must be of it."""
    stores: Stores
    """A folder of scenes with samples (`rw3d-prep reconstruct`, `rw3d-prep sample-views`), or where on object storage
    they were uploaded to: s3://bucket/stores/kitti360."""
    split: str = "train"
    """The split to train on."""
    labels: Literal["own", "accumulated"] = "own"
    """Sparse labels as annotated, or with those that `rw3d-prep accumulate` carried in from other views."""
    select: Literal["held_out", "val"] = "held_out"
    """What the best checkpoint is chosen by: `held_out`, the sparse labels of scenes kept out of training, so that
    nothing dense and nothing of the split to report on is touched; `val` (official), the dense labels of split val."""
    held_out: float = Field(0.05, ge=0, lt=1)
    """Share of the training scenes kept out for `held_out`, at least one; 0: train on all, keep the last checkpoint."""


class Model2DConfig(Section):
    """The 2D student, and with it its teacher."""

    name: str = "nvidia/mit-b4"
    """A SegFormer or EoMT by hub id or local folder; with random weights `random:b0` … `random:b5` (SegFormer),
    `random:eomt-tiny` (64 × 64 pixels, for tests) or `unet` (0.4 M parameters, for CPU demos)."""


class Model3DConfig(Section):
    """The 3D student, Point Transformer V3; only method rewis3d has one."""

    size: Size = "base"
    """base: the published configuration, 46 M parameters; small: 0.9 M, for CPU demos and tests; sonata and concerto:
    the pretrained encoders of Sonata (Concerto-base has the same shape) and Concerto-large, with a decoder."""
    voxel: Positive = 0.05
    """Edge of a voxel, metres. Points of one voxel share their prediction."""
    weights: Path | None = None
    """A published checkpoint of this size to start from; null: random. A head for other classes starts random, and so
    does the decoder of sonata and concerto where the file is an encoder alone."""
    conv: Literal["torch", "spconv"] = "torch"
    """What computes the sparse convolutions: torch, or the package spconv, on a GPU. The parameters are the same."""


class RunConfig(Section):
    """How long, how large, how exact."""

    epochs: int = Field(50, ge=1)
    """Passes over the training items."""
    batch_size: int = Field(12, ge=1)
    """Items per step, over all processes and accumulated parts together."""
    accumulate: int = Field(1, ge=1)
    """Parts that a batch is worked through in, one after another, where memory is short."""
    workers: int = Field(4, ge=0)
    """Reading processes per training process."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Arithmetic of the networks; weights and losses stay float32. The paper's code uses fp16, with a GPU only."""
    clip: Positive | None = None
    """Largest norm of the gradients of one network; null: no clipping, as in the paper's code."""
    compile: bool = False
    """torch.compile the 2D networks: slower to start, faster per step."""
    max_bad_steps: int = Field(20, ge=0)
    """Steps with a loss or gradient that is not finite are skipped and counted; more than this many end the run."""
    seed: int = 0
    """Of everything random: order, augmentation, initial weights, dropout."""
    keep: int = Field(2, ge=1)
    """Checkpoints kept beside the best one."""
    save_steps: int = Field(1000, ge=1)
    """A checkpoint is written after every epoch and, within long ones, whenever this many steps are done."""
    evaluate_every: int = Field(1, ge=1)
    """Epochs between evaluations."""
    overlays: int = Field(4, ge=0)
    """Pictures of training items (image, sparse label, teacher, student, cross-modal target) written per evaluation."""
    diagnose: int = Field(16, ge=0)
    """Training items on which each evaluation measures what the teachers of rewis3d tell the students."""


class TrainConfig(Section):
    data: DataConfig
    method: MethodConfig
    model_2d: Model2DConfig = Model2DConfig()
    model_3d: Model3DConfig = Model3DConfig()
    augment: AugmentConfig = AugmentConfig()
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @property
    def trains_3d(self) -> bool:
        """The method has a 3D student, which needs points."""
        return self.method.kind == "rewis3d" or (self.method.kind == "supervised" and self.method.points)


def load_train_config(
    dataset: str | None, file: Path | None, preset: Preset, method: str | None, assignments: list[str]
) -> TrainConfig:
    """The configuration of a run: recipe file, then named options, then `--set`.

    Without `file` the recipe is `pipelines/<dataset>.yaml`; preset `official` takes its section `train_official:`.
    Another `method` than the recipe's keeps the values that both have.

    Raises:
        UserError: no dataset and no file, an unknown key, or a value that does not fit.
    """
    if dataset is None and file is None:
        raise UserError("which dataset? give --dataset NAME or --config FILE")
    path = file or pipeline_file(str(dataset))
    section = SECTIONS[preset]
    tree = read_yaml(path).get(section)
    if not isinstance(tree, dict):
        raise UserError(f"{path}: has no {section}: section; see pipelines/kitti360.yaml for a complete one")
    if method is not None and isinstance(tree.get("method"), dict):
        known = METHODS[method].model_fields
        tree = {
            **tree,
            "method": {key: value for key, value in tree["method"].items() if key in known} | {"kind": method},
        }
    return validate(TrainConfig, override(tree, assignments), f"{path} ({section})")


def read_train_config(path: Path, assignments: list[str]) -> TrainConfig:
    """The configuration that a run saved.

    Raises:
        UserError: the file is missing or damaged.
    """
    return validate(TrainConfig, override(read_yaml(path).get("train", {}), assignments), str(path))


def save_train_config(config: TrainConfig, path: Path) -> None:
    """Write the resolved configuration as a recipe that `--config` takes again."""
    text = yaml.safe_dump({"train": config.model_dump(mode="json")}, sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")
