"""Training methods, a file each: what the losses are, given a student's and a teacher's view of one batch."""

from __future__ import annotations

from typing import Annotated, Protocol

from pydantic import Field
from torch import Tensor, nn

from rw3d_common.labels import ClassMap
from rw3d_train.data.collate import Batch
from rw3d_train.methods.ema import Ema, EmaConfig
from rw3d_train.methods.rewis3d import Rewis3d, Rewis3dConfig
from rw3d_train.methods.supervised import Supervised, SupervisedConfig
from rw3d_train.teacher import MeanTeacher

__all__ = ["EmaConfig", "Method", "MethodConfig", "Rewis3dConfig", "SupervisedConfig", "make_method"]

MethodConfig = Annotated[SupervisedConfig | EmaConfig | Rewis3dConfig, Field(discriminator="kind")]


class Method(Protocol):
    """What the training loop needs of a method: networks by modality ("2d", "3d"), and losses.

    `losses` gives one total per student under the student's name, to be minimised, and parts for the log under others.
    """

    students: dict[str, nn.Module]
    teachers: dict[str, MeanTeacher]

    def begin_epoch(self, epoch: int) -> None: ...

    def losses(self, student: Batch, teacher: Batch, epoch: int) -> dict[str, Tensor]: ...


def make_method(config: MethodConfig, student_2d: nn.Module, student_3d: nn.Module | None, classes: ClassMap) -> Method:
    """The method of a configuration around its students, which may be wrapped for several processes."""
    match config.kind:
        case "supervised":
            return Supervised(config, student_2d, student_3d, classes)
        case "ema":
            return Ema(config, student_2d)
        case "rewis3d":
            assert student_3d is not None, "rewis3d has a 3D student"
            return Rewis3d(config, student_2d, student_3d, classes)
