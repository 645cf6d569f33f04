"""Work in pieces: on a CPU, what a layer makes inside stays in the core's cache and never needs fresh memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CPU_ROWS = 4096
T = TypeVar("T")


def rows_at_once(x: Tensor) -> int:
    """Rows of `x` to work on at a time: all of them except on a CPU."""
    return CPU_ROWS if x.device.type == "cpu" else max(1, len(x))


def recomputed(function: Callable[..., T], recompute: bool) -> Callable[..., T]:
    """`function`, which with `recompute` keeps its arguments only and is repeated in the backward pass."""
    return partial(checkpoint, function, use_reentrant=False) if recompute and torch.is_grad_enabled() else function


def by_rows(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`function(*tensors)` for a function of single rows, piece by piece."""
    step = rows_at_once(tensors[0])
    pieces = zip(*(tensor.split(step) for tensor in tensors), strict=True)
    return joined((function(*piece) for piece in pieces), len(tensors[0]))


def joined(parts: Iterable[Tensor], rows: int) -> Tensor:
    """`parts` below one another, `rows` in all. Without gradients each is copied as it comes: never all twice."""
    if torch.is_grad_enabled():
        every = list(parts)
        return every[0] if len(every) == 1 else torch.cat(every)
    out, start = None, 0
    for part in parts:
        if len(part) == rows:
            return part
        out = part.new_empty(rows, part.shape[1]) if out is None else out
        out[start : start + len(part)] = part
        start += len(part)
    assert out is not None
    return out
