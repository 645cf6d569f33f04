"""Attention in windows of serialized points, through PyTorch's `scaled_dot_product_attention`.

Points in the order of a space-filling curve are cut into windows of K. An element of n > K points is padded to a
multiple of K: its last window is its last K points, and the results of those borrowed a second time are dropped. An
element of n ≤ K points is one window. These are the semantics of the official flash-attention path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from rw3d_train.models.ptv3.chunks import joined, rows_at_once


class Run(NamedTuple):
    """Neighbouring windows of one length."""

    windows: int
    length: int


class Windows(NamedTuple):
    """Slots of all windows. `pad` (T,): the serialized point in each slot; `slot` (N,): where each point's result is;
    `borrowed` (T − N,): the slots of points that another window holds too."""

    pad: Tensor
    slot: Tensor
    borrowed: Tensor
    runs: list[Run]


class WindowRows(NamedTuple):
    """Windows in one order. `rows` (T,): the voxel in each slot; `slot` (N,): where each voxel's result is;
    `borrowed` as in Windows."""

    rows: Tensor
    slot: Tensor
    borrowed: Tensor
    runs: list[Run]


def make_windows(counts: Sequence[int], patch_size: int, device: torch.device) -> Windows:
    """Windows of `patch_size` over elements of `counts` serialized points each."""
    pads, slots, borrowed, first, start = [], [], [], 0, 0
    runs: list[Run] = []
    for n in counts:
        length = min(n, patch_size)
        windows = -(-n // length)
        pad = torch.arange(first, first + windows * length)
        pad[n:] -= length  # the slots after an element's last point repeat the end of the window before
        pads.append(pad)
        slots.append(torch.arange(start, start + n))
        borrowed.append(torch.arange(start + n, start + len(pad)))
        if runs and runs[-1].length == length:
            runs[-1] = runs[-1]._replace(windows=runs[-1].windows + windows)
        else:
            runs.append(Run(windows, length))
        first, start = first + n, start + len(pad)
    return Windows(torch.cat(pads).to(device), torch.cat(slots).to(device), torch.cat(borrowed).to(device), runs)


class _ToWindows(torch.autograd.Function):  # type: ignore[misc]
    """`x[rows]`, with a backward that gathers instead of adding up: nearly every row lies in one slot only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, at: WindowRows) -> Tensor:
        ctx.at = at
        return x.index_select(0, at.rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        at = ctx.at
        out = grad.index_select(0, at.slot)
        return out.index_add_(0, at.rows[at.borrowed], grad.index_select(0, at.borrowed)), None


class _FromWindows(torch.autograd.Function):  # type: ignore[misc]
    """`x[slot]`; borrowed slots get no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, at: WindowRows) -> Tensor:
        ctx.at = at
        return x.index_select(0, at.slot)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.index_select(0, ctx.at.rows).index_fill_(0, ctx.at.borrowed, 0), None


def by_windows(function: Callable[[Tensor, int], Tensor], x: Tensor, at: WindowRows) -> Tensor:
    """`x` (N, C) → (N, D): `function(part, length)` for a few windows of `length` rows at a time, below one another."""
    sizes, lengths = [], []
    for run in at.runs:
        step = max(1, rows_at_once(x) // run.length)
        for first in range(0, run.windows, step):
            sizes.append(min(step, run.windows - first) * run.length)
            lengths.append(run.length)
    parts = _ToWindows.apply(x, at).split(sizes)
    results = (function(part, length) for part, length in zip(parts, lengths, strict=True))
    return _FromWindows.apply(joined(results, len(at.rows)), at)


def attend(qkv: Tensor, length: int, heads: int, scale: float | None, dropout: float) -> Tensor:
    """Attention inside windows of `length` rows: `qkv` (T, 3·C) → (T, C), split as (3, heads, C / heads)."""
    split = qkv.view(-1, length, 3, heads, qkv.shape[1] // (3 * heads))
    q, k, v = split.permute(2, 0, 3, 1, 4)  # each (windows, heads, length, D)
    out = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scale)
    return out.transpose(1, 2).reshape(len(qkv), -1)


class SerializedAttention(nn.Module):  # type: ignore[misc]
    """Parameters of one attention layer: `qkv` before the windows and `proj` after them, by rows."""

    def __init__(self, channels: int, heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)
