"""Points → voxels, and back: what the network needs before it and what follows it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rw3d_common.errors import UserError
from rw3d_train.models.ptv3.serialization import MOST_BITS, encode


class Voxels(NamedTuple):
    """M voxels of a batch. `coord` (M, 3) and `feat` (M, C): means over a voxel's points; `grid` (M, 3) int64 cells from 0
    per element; `offset` (B,) voxels up to and including each element; `voxel_of_point` (N,): the row of each point."""

    coord: Tensor
    feat: Tensor
    grid: Tensor
    offset: Tensor
    voxel_of_point: Tensor


def voxelize(coord: Tensor, feat: Tensor, offset: Tensor, voxel_size: float) -> Voxels:
    """Unique voxels of every element, in the order of their z-curve, so that near voxels are near in memory.

    Cells are floor(coord / size) less the smallest of the element, as the official grid sampling takes them.

    Args:
        coord: (N, 3) float, metres.
        feat: (N, C) float.
        offset: (B,) points up to and including each element; rows are grouped by element.
        voxel_size: metres.

    Raises:
        UserError: an empty element, coordinates that are not finite, or an element of more than 2^16 cells per axis.
    """
    counts = torch.diff(offset.long().cpu(), prepend=torch.zeros(1, dtype=torch.int64))
    if len(counts) == 0 or int(counts.min()) < 1 or int(counts.sum()) != len(coord):
        raise UserError(
            f"offset {offset.tolist()} for {len(coord):,} points; it must rise to their number, without empty elements"
        )
    batch = torch.repeat_interleave(torch.arange(len(counts)), counts).to(coord.device)
    grid = torch.cat([part - part.amin(dim=0) for part in torch.floor(coord / voxel_size).split(counts.tolist())])
    _check_extent(grid, counts.tolist(), voxel_size)
    keys = encode(grid, batch, MOST_BITS, ["z"])[0]
    unique, voxel, members = torch.unique(keys, return_inverse=True, return_counts=True)
    share = members.to(coord.dtype)[:, None]
    means = [
        values.new_zeros(len(members), values.shape[1]).index_add_(0, voxel, values) / share.to(values.dtype)
        for values in (coord, feat)
    ]
    cells = grid.long().new_empty(len(members), 3)
    cells[voxel] = grid.long()
    voxels = torch.bincount(unique >> (3 * MOST_BITS), minlength=len(counts))
    return Voxels(means[0], means[1], cells, voxels.cumsum(0), voxel)


def smallest_voxel(extent: float) -> float:
    """The smallest voxel size, of three digits rounded up, with which `extent` (same unit) fits the codes' bits."""
    digit = 10.0 ** (math.floor(math.log10(extent / 2**MOST_BITS)) - 2)
    return math.ceil(extent / (2**MOST_BITS - 2) / digit) * digit


def _check_extent(grid: Tensor, counts: list[int], voxel_size: float) -> None:
    """Raises on the CPU what would be wrong codes on a device."""
    largest = torch.stack([part.amax() for part in grid.split(counts)]).tolist()
    for element, cells in enumerate(largest):
        if not math.isfinite(cells):
            raise UserError(
                f"element {element} of the batch has coordinates that are not finite; run `rw3d-prep verify`"
            )
        if cells >= 2**MOST_BITS:
            extent = (cells + 1) * voxel_size
            raise UserError(
                f"element {element} of the batch extends over {extent:,.1f} m, more than {2**MOST_BITS:,} voxels of "
                f"{voxel_size} m; take voxels of at least {smallest_voxel(extent):.3g} m, or drop outliers"
            )
