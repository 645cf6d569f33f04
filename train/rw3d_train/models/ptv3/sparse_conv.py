"""Submanifold sparse convolution: outputs at the input voxels only, out[p] = b + Σₖ W[:, k] · in[p + k − r].

Weights are (out, k, k, k, in) with axes x, y, z, without a flip: spconv's layout, so published weights load. The
neighbour table is found once per set of voxels and shared by all layers on it.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rw3d_train.models.ptv3.spconv_backend import convolve, load_spconv

Backend = Literal["torch", "spconv"]

AXIS_BITS = 17  # 16 bits of coordinate and room for a kernel's reach on both sides
MOST_ELEMENTS = 2 ** (63 - 3 * AXIS_BITS)
CPU_PAIRS = 2048  # at a time, so that what is gathered stays in a core's cache
GATHERED = 2**26  # values gathered at a time on a device with large matrix products: 128 to 256 MB


class Neighbours:
    """Which voxels lie under the kernel of which others, found when first asked for. `sparse`: spconv's own record of it.

    Args:
        grid: (N, 3) integer coordinates, 0 ≤ c < 2^16, each voxel once per element.
        batch: (N,) element of each voxel, below 4,096.
        kernel_size: odd k.
    """

    def __init__(self, grid: Tensor, batch: Tensor, kernel_size: int) -> None:
        self.grid, self.batch, self.kernel_size = grid, batch, kernel_size
        self.sparse: Any = None

    @cached_property
    def table(self) -> Tensor:
        """(k³, N) int32: row (i·k + j)·k + l has the neighbours at (i, j, l) − k // 2, N for none."""
        return neighbour_table(self.grid, self.batch, self.kernel_size)

    @cached_property
    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """(rows, their neighbours) per offset, for the offsets before the centre; the others mirror them."""
        pairs, (cells, n) = [], self.table.shape
        for others in self.table[: cells // 2]:
            rows = (others < n).nonzero()[:, 0]
            pairs.append((rows, others[rows].long()))
        return pairs


def neighbour_table(grid: Tensor, batch: Tensor, kernel_size: int) -> Tensor:
    """`Neighbours.table`. One search per line of the kernel along z: its next cells are the next sorted keys."""
    n, reach = len(grid), kernel_size // 2
    table = torch.full((kernel_size**3, n), n, dtype=torch.int32, device=grid.device)
    x, y, z = (grid.long() + reach).unbind(1)
    keys, rows = ((((batch.long() << AXIS_BITS | x) << AXIS_BITS) | y) << AXIS_BITS | z).sort()
    row_or_none = torch.cat([rows, rows.new_tensor([n])])
    last = keys.new_tensor([torch.iinfo(torch.int64).max])
    keys_or_end = torch.cat([keys, last])
    for line in range(kernel_size**2 // 2 + 1):
        dx, dy = line // kernel_size - reach, line % kernel_size - reach
        wanted = keys + ((dx << 2 * AXIS_BITS) + (dy << AXIS_BITS) - reach)
        position = torch.searchsorted(keys, wanted)
        for cell in range(line * kernel_size, min((line + 1) * kernel_size, kernel_size**3 // 2)):
            found = keys_or_end[position] == wanted
            table[cell, rows] = row_or_none[torch.where(found, position, n)].int()
            position = position + found
            wanted = wanted + 1
    _mirror(table)
    return table


def _mirror(table: Tensor) -> None:
    """Fill the centre and the second half of `table` (k³, N): p is under q's kernel where q is under p's, opposite."""
    cells, n = table.shape
    table[cells // 2] = torch.arange(n, device=table.device)
    for cell in range(cells // 2):
        rows = (table[cell] < n).nonzero()[:, 0]
        table[cells - 1 - cell, table[cell, rows].long()] = rows.int()


class SubmanifoldConv3d(nn.Module):  # type: ignore[misc]
    """Submanifold convolution with spconv's parameter layout and initial distribution, U(±1/√(k³·in)).

    Raises:
        UserError: backend spconv, which is not installed.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, bias: bool = True, backend: Backend = "torch"
    ) -> None:
        super().__init__()
        if backend == "spconv":
            load_spconv()
        self.backend = backend
        self.weight = nn.Parameter(torch.empty(out_channels, *[kernel_size] * 3, in_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        limit = 1 / math.sqrt(kernel_size**3 * in_channels)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -limit, limit)

    def forward(self, x: Tensor, neighbours: Neighbours) -> Tensor:
        """`x` (N, in) → (N, out), rows as in `neighbours`."""
        weight = self.weight
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(dtype), weight.to(dtype)
        if self.backend == "spconv":
            out = convolve(x, weight, neighbours)
        else:
            function = _PairwiseConv if x.device.type == "cpu" else _GatheredConv
            out = function.apply(x, weight, neighbours)
        return out if self.bias is None else out + self.bias.to(out.dtype)


class _PairwiseConv(torch.autograd.Function):  # type: ignore[misc]
    """Gather → small product → add, per offset: only neighbours that exist are computed. Fastest on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, neighbours: Neighbours) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.neighbours = neighbours
        return _pairwise(x, weight.flatten(1, 3).permute(1, 2, 0).contiguous(), neighbours)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:  # the transposed kernel, mirrored
            grad_x = _pairwise(grad, weight.flatten(1, 3).flip(1).transpose(0, 1).contiguous(), ctx.neighbours)
        if ctx.needs_input_grad[1]:
            grad_weight = _pairwise_weight_grad(x, grad, ctx.neighbours).reshape(weight.shape).to(weight.dtype)
        return grad_x, grad_weight, None


def _pairwise(x: Tensor, kernel: Tensor, neighbours: Neighbours) -> Tensor:
    """Convolution of `x` (N, in) with `kernel` (k³, in, out); sums in at least float32."""
    centre = len(kernel) // 2
    out = (x @ kernel[centre]).to(torch.promote_types(x.dtype, torch.float32))
    for cell, (all_rows, all_others) in enumerate(neighbours.pairs):
        for rows, others in zip(all_rows.split(CPU_PAIRS), all_others.split(CPU_PAIRS), strict=True):
            out.index_add_(0, rows, (x.index_select(0, others) @ kernel[cell]).to(out.dtype))
            out.index_add_(0, others, (x.index_select(0, rows) @ kernel[-1 - cell]).to(out.dtype))
    return out.to(x.dtype)


def _pairwise_weight_grad(x: Tensor, grad: Tensor, neighbours: Neighbours) -> Tensor:
    """(out, k³, in)."""
    pairs = neighbours.pairs
    result = x.new_zeros(grad.shape[1], 2 * len(pairs) + 1, x.shape[1])
    result[:, len(pairs)] = grad.T @ x
    for cell, (rows, others) in enumerate(pairs):
        result[:, cell] = grad.index_select(0, rows).T @ x.index_select(0, others)
        result[:, -1 - cell] = grad.index_select(0, others).T @ x.index_select(0, rows)
    return result


class _GatheredConv(torch.autograd.Function):  # type: ignore[misc]
    """All neighbours of a chunk of rows side by side, then one large product: few kernels to launch, no atomics."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, neighbours: Neighbours) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.neighbours = neighbours
        return _gathered(x, weight.flatten(1).T, neighbours.table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        table = ctx.neighbours.table
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:  # the transposed kernel, mirrored
            kernel = weight.flatten(1, 3).flip(1).permute(1, 0, 2).flatten(0, 1)
            grad_x = _gathered(grad, kernel, table)
        if ctx.needs_input_grad[1]:
            padded = _with_zero_row(x)
            total = x.new_zeros(len(weight), weight[0].numel(), dtype=torch.promote_types(x.dtype, torch.float32))
            for rows in _chunks(x, table):
                gathered = padded[table[:, rows].T].flatten(1)
                total += grad[rows].T @ gathered
            grad_weight = total.reshape(weight.shape).to(weight.dtype)
        return grad_x, grad_weight, None


def _gathered(x: Tensor, kernel: Tensor, table: Tensor) -> Tensor:
    """Convolution of `x` (N, in) with `kernel` (k³·in, out)."""
    padded = _with_zero_row(x)
    return torch.cat([padded[table[:, rows].T].flatten(1) @ kernel for rows in _chunks(x, table)])


def _with_zero_row(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_zeros(1, x.shape[1])])


def _chunks(x: Tensor, table: Tensor) -> list[slice]:
    rows = max(1, GATHERED // (len(table) * x.shape[1]))
    return [slice(start, start + rows) for start in range(0, len(x), rows)]
