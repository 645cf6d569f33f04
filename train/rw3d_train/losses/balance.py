"""Weights that make up for how often classes occur: an option of ours, in neither the paper nor its code."""

from __future__ import annotations

import torch
from torch import Tensor

from rw3d_common.labels import IGNORE
from rw3d_train.distributed import sum_over_ranks


def class_balance(label: Tensor, exponent: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weights of the shape of `label`: n_c^(−exponent), scaled so that their mean over what is labelled is 1.

    Large surfaces drown thin things in a mean over pixels: with exponent 1 every class counts as much as any other, with
    0.5 a class that occurs a hundred times as often counts ten times as much, with 0 nothing changes.

    Args:
        label: train ids or 255, any shape; n_c is how often class c occurs in it, over all processes.
        exponent: from 0 to 1.
        dtype: of the result.
    """
    flat = label.flatten().long()
    counts = flat.new_zeros(IGNORE + 1).scatter_add(
        0, flat, torch.ones_like(flat)
    )  # bincount would wait for the device
    counts = sum_over_ranks(counts).to(dtype)
    counts[IGNORE] = 0
    weight = torch.where(counts > 0, counts.clamp(min=1) ** -exponent, 0)
    weight = weight * counts.sum() / (weight * counts).sum().clamp(min=1e-12)
    return weight[flat].view(label.shape)
