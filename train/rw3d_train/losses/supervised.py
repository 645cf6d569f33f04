"""Cross-entropy on what is labelled."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rw3d_common.labels import IGNORE
from rw3d_train.distributed import share_of
from rw3d_train.losses.balance import class_balance


def supervised(logits: Tensor, label: Tensor, balance: float = 0.0) -> Tensor:
    """Mean cross-entropy over the labelled points or pixels of the batch; 0 where there are none.

    Args:
        logits: (M, C) or (B, C, H, W).
        label: (M,) or (B, H, W) train ids below C, or 255.
        balance: exponent of `class_balance`; 0 counts every pixel alike, as the paper does.
    """
    count = share_of((label != IGNORE).sum())
    loss = cross_entropy(logits, label)
    if balance:
        loss = loss * class_balance(label, balance, loss.dtype)
    return loss.sum() / count


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """−log softmax(logits) at the label, of the label's shape; 0 where the label is 255."""
    # Summed by the caller: the built-in sum over images adds in an order that varies on a GPU.
    return F.cross_entropy(at_least_float32(logits), label.long(), ignore_index=IGNORE, reduction="none")


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision as float32, anything wider as it is: sums over a million pixels need the digits."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
