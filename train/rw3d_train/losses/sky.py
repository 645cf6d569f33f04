"""The sky teacher: sky has no points, so a frozen 2D teacher says where it is (Rewis3d's released code)."""

from __future__ import annotations

import torch
from torch import Tensor

from rw3d_train.losses.confidence import pseudo_labels


def add_sky(
    pseudo_label: Tensor, weight: Tensor, sky_teacher_logits: Tensor, has_point: Tensor, sky: int
) -> tuple[Tensor, Tensor]:
    """Pseudo-labels and weights of the 3D → 2D loss with sky added; everything else stays as it is.

    A pixel without point that the sky teacher takes for sky gets the label sky, with the weight p_sky·ρ, where ρ is the
    share of the batch's pixels that show a point.

    Args:
        pseudo_label: (B, H, W) integers.
        weight: (B, H, W).
        sky_teacher_logits: (B, C, H, W) of the frozen teacher.
        has_point: (B, H, W) bool.
        sky: train id of sky.
    """
    found, probability = pseudo_labels(sky_teacher_logits)
    is_sky = ~has_point & (found == sky)
    share = has_point.sum() / has_point.numel()
    return torch.where(is_sky, sky, pseudo_label), torch.where(is_sky, probability * share, weight)
