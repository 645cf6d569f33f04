"""Cross-modal consistency: the teacher of one modality teaches the student of the other (Rewis3d, Eq. 5–6)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rw3d_common.labels import IGNORE
from rw3d_train.distributed import max_over_ranks, share_of, world
from rw3d_train.losses.balance import class_balance
from rw3d_train.losses.supervised import cross_entropy


def cross_modal(
    student_logits: Tensor,
    pseudo_label: Tensor,
    weight: Tensor,
    normalization: Literal["sum_of_weights", "pairs", "sum"] = "sum_of_weights",
    balance: float = 0.0,
) -> Tensor:
    """Weighted cross-entropy against the other modality's pseudo-labels; 0 where no label or weight is left.

    Args:
        student_logits: (M, C) or (B, C, H, W).
        pseudo_label: (M,) or (B, H, W) train ids; 255 where there is no counterpart.
        weight: of the same shape, finite and not negative; a constant. What it holds under 255 does not matter.
        normalization: how the Σ w·CE over the P entries with a label is scaled. "sum_of_weights" divides by Σ w: the
            released code; the scale of the weights cancels. "sum" leaves it: Eq. 5 as printed, about P times a mean, so
            that λ has to be of the order 1/P. "pairs" divides by P: confidences ten times as large are a λ ten times
            as large.
        balance: exponent of `class_balance` over the pseudo-labels; 0 leaves the weights alone, as the paper does.
    """
    loss = cross_entropy(student_logits, pseudo_label)
    has_label = pseudo_label != IGNORE
    weight = torch.where(has_label, weight.detach().to(loss.dtype), 0)
    if balance:
        weight = weight * class_balance(pseudo_label, balance, loss.dtype)
    if normalization == "sum":
        return (weight * loss).sum() * world()
    if normalization == "pairs":
        return (weight * loss).sum() / share_of(has_label.sum())
    # Confidences of MapAnything reach 1e38. Relative to the largest, their sum cannot overflow; it is 0 or at least 1.
    largest = max_over_ranks(weight.amax() if weight.numel() else weight.sum())
    weight = weight / torch.where(largest > 0, largest, 1)
    return (weight * loss).sum() / share_of(weight.sum())
