"""Supervised training: cross-entropy on dense labels (the reference), or on the sparse labels alone."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rw3d_common.config import Section
from rw3d_common.errors import UserError
from rw3d_common.labels import ClassMap
from rw3d_train import losses
from rw3d_train.data.collate import Batch
from rw3d_train.models.images import normalize, upsample
from rw3d_train.models.points import point_features
from rw3d_train.teacher import MeanTeacher


class SupervisedConfig(Section):
    """Fully supervised reference (methods.md §9), or plain cross-entropy on the sparse labels."""

    kind: Literal["supervised"] = "supervised"
    labels: Literal["dense", "sparse"] = "dense"
    """dense: the ceiling that weak supervision is measured against; sparse: the floor."""
    balance: float = Field(0.0, ge=0, le=1)
    """As in the other methods: 0 counts every label alike."""
    points: bool = False
    """Also train a 3D network on the points' labels of the same kind: how good the 3D branch is by itself."""


class Supervised:
    """L = mean cross-entropy over labelled pixels of the student's image, and over labelled points for a 3D student."""

    def __init__(
        self, config: SupervisedConfig, student_2d: nn.Module, student_3d: nn.Module | None, classes: ClassMap
    ) -> None:
        self.config = config
        self.students = {"2d": student_2d} if student_3d is None else {"2d": student_2d, "3d": student_3d}
        self.teachers: dict[str, MeanTeacher] = {}
        self.in_3d = torch.from_numpy(classes.in_3d)

    def begin_epoch(self, epoch: int) -> None:
        """Nothing changes from epoch to epoch."""

    def losses(self, student: Batch, teacher: Batch, epoch: int) -> dict[str, Tensor]:
        """{"2d": total}, and "3d" with a 3D student.

        Raises:
            UserError: dense labels are asked for and the scenes have none.
        """
        dense = self.config.labels == "dense"
        label, point_label = (student.truth, student.point_truth) if dense else (student.label, student.point_label)
        if label is None or (point_label is None and "3d" in self.students):
            raise UserError(
                f"{student.keys[0]}: this scene has no dense labels; train with --set method.labels=sparse, "
                "or reconstruct it where the dataset's dense labels are"
            )
        logits = upsample(self.students["2d"](normalize(student.image)), (label.shape[1], label.shape[2]))
        found = {"2d": losses.supervised(logits, label, self.config.balance)}
        if "3d" in self.students:
            surfaces = losses.surface_only(point_label, self.in_3d.to(label.device))
            points = self.students["3d"](student.position, point_features(student), student.offset)
            found["3d"] = losses.supervised(points, surfaces, self.config.balance)
        return found
