"""The 2D mean-teacher baseline: Rewis3d without its 3D branch (Scribbles4All's EMA baseline, methods.md §2)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from rw3d_common.config import Section
from rw3d_train import losses
from rw3d_train.data.collate import Batch
from rw3d_train.models.images import normalize, upsample
from rw3d_train.teacher import MeanTeacher, TeacherConfig


class BaseConfig(Section):
    """Supervision on the sparse labels and consistency with a mean teacher, the same in both modalities (Eq. 1–4)."""

    beta: float = Field(0.5, ge=0, le=1)
    """β of Eq. 4: share of the consistency term."""
    threshold: float = Field(0.95, ge=0, le=1)
    """τ of Eq. 3: the teacher is confident above this probability."""
    confident_over: Literal["unlabelled", "all"] = "unlabelled"
    """What w_t of Eq. 3 is a share of; official: all."""
    consistency_2d: Literal["points", "elements"] = "points"
    """What the 2D divergence of Eq. 2 is divided by: unlabelled pixels, or (official) these times the classes."""
    balance: float = Field(0.0, ge=0, le=1)
    """Supervision counts a class of n_c labels n_c^(−balance) times each: 0 as in the paper; towards 1, thin things weigh
    as much as large surfaces. An option of ours."""
    teacher: TeacherConfig = TeacherConfig()
    """Eq. 1."""


class EmaConfig(BaseConfig):
    kind: Literal["ema"] = "ema"


class Ema:
    """L = (1 − β) L_S + β w_t L_U on images."""

    def __init__(self, config: EmaConfig, student_2d: nn.Module) -> None:
        self.config = config
        self.students = {"2d": student_2d}
        self.teachers = {"2d": MeanTeacher(student_2d, config.teacher)}

    def begin_epoch(self, epoch: int) -> None:
        """Nothing changes from epoch to epoch."""

    def losses(self, student: Batch, teacher: Batch, epoch: int) -> dict[str, Tensor]:
        """{"2d": total} and its parts."""
        size = (student.label.shape[1], student.label.shape[2])
        logits = upsample(self.students["2d"](normalize(student.image)), size)
        taught = upsample(self.teachers["2d"](normalize(teacher.image)), size)
        total, parts = base_losses(logits, taught, student.label, self.config, self.config.consistency_2d)
        return {"2d": total, **{f"{name}_2d": value for name, value in parts.items()}}


def base_losses(
    logits: Tensor, taught: Tensor, label: Tensor, config: BaseConfig, normalization: Literal["points", "elements"]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 4 of one modality, and its parts for the log.

    Args:
        logits, taught: of student and teacher, (B, C, H, W) or (N, C).
        label: (B, H, W) or (N,) train ids, 255 = unlabelled.
        config: β, τ and what w_t is averaged over.
        normalization: of the divergence.
    """
    supervised = losses.supervised(logits, label, config.balance)
    consistency = losses.consistency(logits, taught, label, normalization)
    share = losses.confident_share(taught, label, config.threshold, config.confident_over)
    total = losses.base_objective(supervised, consistency, share, config.beta)
    return total, {"supervised": supervised, "consistency": consistency, "confident_share": share}
