"""Mean teacher (Tarvainen & Valpola, NeurIPS 2017): a copy of the student that follows it as a moving average."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn

from rw3d_common.config import Section
from rw3d_train.distributed import world


class TeacherConfig(Section):
    """How a teacher follows its student: teacher ← α·teacher + (1 − α)·student after every step."""

    alpha: float = Field(0.99, ge=0, le=1)
    """Largest α. Released code: 0.999."""
    warmup: Literal["global", "epoch"] | None = "global"
    """α = min(1 − 1/(n + 1), alpha) at step n, so that the teacher starts as the plain mean of its students. `global`
    counts the steps of the run; `epoch` (official) those of the epoch, so that the teacher becomes a copy of the student
    at the start of every epoch; null: α is `alpha` from the first step on."""
    mode: Literal["eval", "train"] = "eval"
    """`train` (official): with dropout, drop-path and the statistics of its own batch also when it teaches."""
    buffers: Literal["copy", "average"] = "copy"
    """Running statistics are a copy of the student's, or their moving average; integers are copied."""


class MeanTeacher:
    """The teacher `module` of a student, moved only by `update` (Rewis3d, Eq. 1).

    Args:
        student: any module, also one wrapped by DDP or torch.compile; it is copied, unwrapped, where it lies.
        config: see there.
    """

    def __init__(self, student: nn.Module, config: TeacherConfig) -> None:
        self.student = unwrapped(student)
        self.module = frozen_copy(self.student)
        self.module.train(config.mode == "train")
        self.config = config

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the teacher predicts, without gradient."""
        with torch.no_grad():
            return self.module(*args, **kwargs)

    def decay(self, step: int, step_in_epoch: int) -> float:
        """α of an update; both steps count from 0."""
        if self.config.warmup is None:
            return self.config.alpha
        counted = step if self.config.warmup == "global" else step_in_epoch
        return min(1 - 1 / (counted + 1), self.config.alpha)

    def update(self, step: int, step_in_epoch: int) -> None:
        """Follow the student by one step. All processes of a run hold the same teacher afterwards.

        The students of all processes have equal parameters, but running statistics of their own batches: here those of
        process 0 count.
        """
        weight = 1 - self.decay(step, step_in_epoch)
        _move(list(self.module.parameters()), list(self.student.parameters()), weight)
        buffers = list(self.module.buffers())
        _move(buffers, list(self.student.buffers()), weight if self.config.buffers == "average" else 1.0)
        if world() > 1:
            for buffer in buffers:
                dist.broadcast(buffer, src=0)


def frozen_copy(module: nn.Module) -> nn.Module:
    """A copy of `module`, unwrapped, in eval mode, that nothing trains: a teacher, or the sky teacher."""
    frozen = copy.deepcopy(unwrapped(module))
    for parameter in frozen.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    return frozen.eval()


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside DDP and torch.compile, in whatever order they wrap it; the module itself without them."""
    while True:
        if isinstance(module, nn.parallel.DistributedDataParallel):
            module = module.module
        elif hasattr(module, "_orig_mod"):
            module = module._orig_mod
        else:
            return module


def _move(teacher: list[Tensor], student: list[Tensor], weight: float) -> None:
    """teacher ← teacher + weight·(student − teacher); integers, and all with weight 1, become exact copies."""
    pairs = list(zip(teacher, student, strict=True))
    moving = [pair for pair in pairs if weight != 1 and pair[0].is_floating_point()]
    copied = [pair for pair in pairs if weight == 1 or not pair[0].is_floating_point()]
    with torch.no_grad():
        if moving:
            torch._foreach_lerp_([old for old, _ in moving], [new for _, new in moving], weight)
        if copied:
            torch._foreach_copy_([old for old, _ in copied], [new for _, new in copied])
