"""Supervised training in 2D: cross-entropy on dense labels (the reference), or on the sparse labels alone."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from rw3d_common.config import Section
from rw3d_common.errors import UserError
from rw3d_train import losses
from rw3d_train.data.collate import Batch
from rw3d_train.models.images import normalize, upsample
from rw3d_train.teacher import MeanTeacher


class SupervisedConfig(Section):
    """Fully supervised reference (methods.md §9), or plain cross-entropy on the sparse labels."""

    kind: Literal["supervised"] = "supervised"
    labels: Literal["dense", "sparse"] = "dense"
    """dense: the ceiling that weak supervision is measured against; sparse: the floor."""


class Supervised:
    """L = mean cross-entropy over labelled pixels of the student's image."""

    def __init__(self, config: SupervisedConfig, student_2d: nn.Module) -> None:
        self.config = config
        self.students = {"2d": student_2d}
        self.teachers: dict[str, MeanTeacher] = {}

    def begin_epoch(self, epoch: int) -> None:
        """Nothing changes from epoch to epoch."""

    def losses(self, student: Batch, teacher: Batch, epoch: int) -> dict[str, Tensor]:
        """{"2d": total}.

        Raises:
            UserError: dense labels are asked for and the scenes have none.
        """
        label = student.truth if self.config.labels == "dense" else student.label
        if label is None:
            raise UserError(
                f"{student.keys[0]}: this scene has no dense labels; train with --set method.labels=sparse, "
                "or reconstruct it where the dataset's dense labels are"
            )
        logits = upsample(self.students["2d"](normalize(student.image)), (label.shape[1], label.shape[2]))
        return {"2d": losses.supervised(logits, label)}
