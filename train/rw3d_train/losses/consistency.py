"""Agreement of student and teacher where nothing is labelled (Rewis3d, Eq. 2–4)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rw3d_common.labels import IGNORE
from rw3d_train.distributed import share_of, sum_over_ranks
from rw3d_train.losses.supervised import at_least_float32


def consistency(
    student_logits: Tensor,
    teacher_logits: Tensor,
    label: Tensor,
    normalization: Literal["points", "elements"] = "points",
) -> Tensor:
    """KL(softmax teacher ‖ softmax student) over the unlabelled set U (Eq. 2); 0 where U is empty.

    The teacher is a constant.

    Args:
        student_logits: (M, C) or (B, C, H, W).
        teacher_logits: of the same shape.
        label: (M,) or (B, H, W); 255 = unlabelled.
        normalization: "points" divides the sum by |U|: the paper, and the released code in 3D. "elements" divides it by
            |U|·C: the released code in 2D, C times weaker.
    """
    student = at_least_float32(student_logits).log_softmax(1)
    teacher = at_least_float32(teacher_logits.detach()).log_softmax(1)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
    unlabelled = label == IGNORE
    count = share_of(unlabelled.sum())
    if normalization == "elements":
        count = count * student_logits.shape[1]
    return torch.where(unlabelled, divergence, 0).sum() / count


def confident_share(
    teacher_logits: Tensor,
    label: Tensor,
    threshold: float = 0.95,
    over: Literal["unlabelled", "all"] = "unlabelled",
) -> Tensor:
    """w_t: the share of points or pixels where the teacher's largest probability is at least `threshold` (Eq. 3).

    Args:
        teacher_logits: (M, C) or (B, C, H, W).
        label: (M,) or (B, H, W); 255 = unlabelled.
        threshold: τ in [0, 1].
        over: "unlabelled" counts the unlabelled ones only: the paper. "all" counts the labelled ones too: the released
            code. 0 where nothing counts.
    """
    confident = at_least_float32(teacher_logits.detach()).softmax(1).amax(1) >= threshold
    counted = label == IGNORE if over == "unlabelled" else torch.ones_like(confident)
    return sum_over_ranks((confident & counted).sum()) / sum_over_ranks(counted.sum()).clamp(min=1)


def base_objective(
    supervised_loss: Tensor, consistency_loss: Tensor, confident_share: Tensor, beta: float = 0.5
) -> Tensor:
    """(1 − β) L_S + β w_t L_U, the objective of one modality without the other (Eq. 4); all 0-dim."""
    return (1 - beta) * supervised_loss + beta * confident_share * consistency_loss
