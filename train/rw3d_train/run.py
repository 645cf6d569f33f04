"""A training run: its data, networks and optimisers, how far it has come, and what is saved of it."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from rw3d_common.config import difference
from rw3d_common.errors import UserError
from rw3d_common.labels import ClassMap
from rw3d_common.log import log
from rw3d_train.checkpoint import (
    BEST,
    FOLDER,
    checkpoints,
    load_networks,
    load_training,
    prune,
    read_state,
    save_checkpoint,
    step_folder,
)
from rw3d_train.config import TrainConfig, read_train_config, save_train_config
from rw3d_train.data.loader import EpochBatches, make_loader
from rw3d_train.distributed import rank, world
from rw3d_train.methods import Method, make_method
from rw3d_train.networks import compiled, describe_2d, make_2d, make_3d, parameters
from rw3d_train.optim import optimizer_2d, optimizer_3d, schedule_2d, schedule_3d
from rw3d_train.teacher import unwrapped
from rw3d_train.training_data import TrainingData, open_data

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Run:
    """Everything that changes while training. `position` counts the batches done of `epoch`, `step` those of the run."""

    config: TrainConfig
    out: Path
    device: torch.device
    data: TrainingData
    loader: DataLoader[Any]
    batches: EpochBatches
    method: Method
    optimizers: dict[str, AdamW]
    schedules: dict[str, LRScheduler]
    scaler: torch.amp.GradScaler
    epoch: int = 0
    position: int = 0
    step: int = 0
    bad_steps: int = 0
    best: float = float("-inf")

    @classmethod
    def start(cls, config: TrainConfig, out: Path, device: torch.device, resume: bool) -> Run:
        """A run at its beginning, or where its last checkpoint left it.

        Raises:
            UserError: `out` holds another run, or data, weights or configuration cannot be used.
        """
        _refuse_precision(config, device)
        _refuse_folder(config, out, resume)
        data = open_data(config)
        torch.manual_seed(config.run.seed)
        method = _method(config, data.classes, device)
        batches = EpochBatches(len(data.train), config.run.batch_size, config.run.accumulate, config.run.seed)
        voxel = config.model_3d.voxel if "3d" in method.students else None
        loader = make_loader(
            data.train, batches, config.run.workers, len(data.classes), voxel, pin=device.type == "cuda"
        )
        steps = batches.steps * config.run.epochs
        make = {"2d": (optimizer_2d, schedule_2d), "3d": (optimizer_3d, schedule_3d)}
        optimizers = {name: make[name][0](student, config.optim) for name, student in method.students.items()}
        schedules = {name: make[name][1](optimizer, steps) for name, optimizer in optimizers.items()}
        scaler = torch.amp.GradScaler(device.type, enabled=config.run.precision == "fp16")
        run = cls(config, out, device, data, loader, batches, method, optimizers, schedules, scaler)
        if resume:
            run.restore()
        if rank() == 0:
            _claim_folder(config, out)
        return run

    @property
    def dtype(self) -> torch.dtype:
        """Arithmetic of the networks."""
        return DTYPES[self.config.run.precision]

    @property
    def steps_per_epoch(self) -> int:
        return self.batches.steps

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.config.run.epochs

    def seed_of_step(self) -> int:
        """The seed of everything that torch draws in the coming step on this process."""
        key = f"step/{self.config.run.seed}/{self.step}/{rank()}".encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1

    def begin_epoch(self) -> None:
        """Set order and augmentation of this epoch, from the position that was reached."""
        self.data.train.set_epoch(self.epoch)
        self.batches.start(self.epoch, self.position)
        if self.position == 0:
            self.method.begin_epoch(self.epoch)
        for student in self.method.students.values():
            student.train()

    def end_epoch(self) -> None:
        """Count the epoch as done."""
        self.epoch, self.position = self.epoch + 1, 0

    def networks(self) -> dict[str, nn.Module]:
        """Every network by the name it is saved under, unwrapped: DDP's own call waits for the other processes."""
        found = {f"student_{name}": unwrapped(student) for name, student in self.method.students.items()}
        found |= {f"teacher_{name}": teacher.module for name, teacher in self.method.teachers.items()}
        sky = getattr(self.method, "sky_teacher", None)
        return found if sky is None else {**found, "sky_teacher": sky}

    def state(self) -> dict[str, Any]:
        """What checkpoint.json says: how far the run is, what it is of, and what made it."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "position": self.position,
            "bad_steps": self.bad_steps,
            "best": self.best if self.best > float("-inf") else None,
            "world": world(),
            "network_2d": describe_2d(self.method.students["2d"], self.data.classes),
            "classes": self.data.classes.to_json(),
            "class_map_hash": self.data.classes.hash,
            "config": self.config.model_dump(mode="json"),
            "versions": {"torch": torch.__version__},
        }

    def save(self) -> None:
        """Write a checkpoint of this moment and remove the oldest; rank 0 alone does."""
        if rank() == 0:
            training = {
                "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
                "schedules": {name: schedule.state_dict() for name, schedule in self.schedules.items()},
                "scaler": self.scaler.state_dict(),
            }
            save_checkpoint(step_folder(self.out, self.step), self.networks(), training, self.state())
            prune(self.out, self.config.run.keep)

    def keep_if_best(self, score: float | None) -> None:
        """Save a checkpoint as `best` when `score` is higher than any before; None: there is nothing to choose by."""
        if score is not None and score > self.best:
            self.best = score
            if rank() == 0:
                state = {**self.state(), "score": score}
                save_checkpoint(self.out / FOLDER / BEST, self.networks(), {}, state)

    def restore(self) -> None:
        """Go on from the newest checkpoint.

        Raises:
            UserError: there is none, or it is of other classes or damaged.
        """
        found = checkpoints(self.out)
        if not found:
            log.info(f"{self.out}: no checkpoint yet; the run starts from its beginning")
            return
        folder = found[-1]
        state = read_state(folder)
        if state["class_map_hash"] != self.data.classes.hash:
            raise UserError(
                f"{folder}: trained on another class map than that of {self.config.data.stores}; start a new run"
            )
        self.step, self.epoch, self.position = state["step"], state["epoch"], state["position"]
        self.bad_steps = state["bad_steps"]
        self.best = float("-inf") if state["best"] is None else state["best"]
        if (folder / "sky_teacher.safetensors").is_file():
            self.method.begin_epoch(self.config.method.cross_modal.start)  # type: ignore[union-attr]
        load_networks(folder, self.networks())
        training = load_training(folder)
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(training["optimizers"][name])
            self.schedules[name].load_state_dict(training["schedules"][name])
        self.scaler.load_state_dict(training["scaler"])
        log.info(f"resumed from {folder}: epoch {self.epoch}, step {self.step} of {self.total_steps}")


def _method(config: TrainConfig, classes: ClassMap, device: torch.device) -> Method:
    """The method with its students on the device, wrapped for compilation and for several processes."""
    students = [make_2d(config.model_2d, classes)]
    if config.trains_3d:
        students.append(make_3d(config.model_3d, classes))
    sizes = ", ".join(f"{parameters(student) / 1e6:.1f} M" for student in students)
    log.info(f"students of {sizes} parameters on {device}")
    students[0].to(memory_format=torch.channels_last)  # as batches of images lie in memory; a third faster on a CPU
    wrapped = [_wrapped(student.to(device), device) for student in students]
    wrapped[0] = compiled(wrapped[0], config.run.compile)
    return make_method(config.method, wrapped[0], wrapped[1] if len(wrapped) > 1 else None, classes)


def _wrapped(student: nn.Module, device: torch.device) -> nn.Module:
    if world() == 1:
        return student
    return DistributedDataParallel(student, device_ids=[device] if device.type == "cuda" else None)


def _refuse_precision(config: TrainConfig, device: torch.device) -> None:
    precision = config.run.precision
    if precision == "fp16" and device.type != "cuda":
        raise UserError(f"run.precision fp16 needs a CUDA GPU, this run is on {device}; take --set run.precision=fp32")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError("run.precision bf16: this GPU has none; take --set run.precision=fp16")


def _refuse_folder(config: TrainConfig, out: Path, resume: bool) -> None:
    """Raise UserError where `out` holds another run, or a resumed one began with another configuration."""
    saved = out / "config.yaml"
    if rank() != 0 or not saved.exists():
        return
    if not resume:
        raise UserError(f"{out}: holds a run already; continue it with --resume, or choose another --out")
    # Read as a configuration: what an older rw3d did not know yet has its default, which is what that run did.
    before, now = (json.loads(each.model_dump_json()) for each in (read_train_config(saved, []), config))
    if changed := difference(_without_freedom(before), _without_freedom(now)):
        raise UserError(
            f"{out}: began with another configuration ({changed}); resume with the old values, or start a new run"
        )


def _claim_folder(config: TrainConfig, out: Path) -> None:
    """Make the run's folder with its configuration: last, so that a mistake in the input leaves no run behind."""
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    shutil.rmtree(out / FOLDER / f"{BEST}.tmp", ignore_errors=True)
    save_train_config(config, out / "config.yaml")


def _without_freedom(tree: dict[str, Any]) -> dict[str, Any]:
    """The configuration without what may change between parts of a run: nothing of it changes a step."""
    free = {"workers", "save_steps", "keep", "overlays", "diagnose", "evaluate_every"}
    return {**tree, "run": {key: value for key, value in tree.get("run", {}).items() if key not in free}}
