"""One resolution of the network: its voxels, their order along the curves, and what layers on it share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rw3d_train.models.ptv3.attention import WindowRows, Windows, make_windows
from rw3d_train.models.ptv3.serialization import encode, needed_depth
from rw3d_train.models.ptv3.sparse_conv import Neighbours


@dataclass(eq=False)
class Level:
    """N voxels of a batch, rows grouped by element. O orders, permuted by the shuffles so far.

    `coord` (N, 3) mean position; `grid` (N, 3) integer cell; `batch` (N,) int64 element; `counts` voxels per element;
    `orders` names; `depth` bits per axis; `codes` (O, N) int64; `order` (O, N): rows by rising code; `rank` (O, N): the
    place of each row in it. `cluster`: the row of this level for each row of the finer one, and for its own in the first level.
    """

    coord: Tensor
    grid: Tensor
    batch: Tensor
    counts: list[int]
    orders: list[str]
    depth: int
    codes: Tensor
    order: Tensor
    rank: Tensor
    cluster: Tensor
    _neighbours: Neighbours | None = None
    _windows: dict[int, Windows] = field(default_factory=dict)
    _window_rows: dict[tuple[int, int], WindowRows] = field(default_factory=dict)

    def neighbours(self) -> Neighbours:
        """Neighbours under a 3³ kernel, found at the first call and shared by all blocks of encoder and decoder."""
        if self._neighbours is None:
            self._neighbours = Neighbours(self.grid, self.batch, 3)
        return self._neighbours

    def windows(self, patch_size: int, order_index: int) -> WindowRows:
        """Attention windows of `patch_size` points along one order, made at the first call."""
        if patch_size not in self._windows:
            self._windows[patch_size] = make_windows(self.counts, patch_size, self.grid.device)
        key = (patch_size, order_index)
        if key not in self._window_rows:
            at = self._windows[patch_size]
            rows, slot = self.order[order_index][at.pad], at.slot[self.rank[order_index]]
            self._window_rows[key] = WindowRows(rows, slot, at.borrowed, at.runs)
        return self._window_rows[key]


def first_level(
    coord: Tensor, grid: Tensor, offset: Tensor, orders: Sequence[str], depth: int | None, permutation: Sequence[int]
) -> Level:
    """The voxels as they come; `depth` None takes the official rule, see `needed_depth`."""
    counts = torch.diff(offset.long().cpu(), prepend=torch.zeros(1, dtype=torch.int64))
    batch = torch.repeat_interleave(torch.arange(len(counts)), counts).to(grid.device)
    depth = needed_depth(int(grid.max())) if depth is None else depth
    names = [orders[i] for i in permutation]
    codes, itself = encode(grid, batch, depth, names), torch.arange(len(grid), device=grid.device)
    return _level(coord, grid, batch, counts.tolist(), names, depth, codes, itself)


def pool_level(level: Level, bits: int, permutation: Sequence[int], recode: bool) -> Level:
    """Voxels 2^bits times as large; rows by rising first code of `level`. None are merged where its depth is below `bits`.

    `recode` takes the depth from the new grid and always merges, as m2 does, instead of `level`'s depth less `bits`. Codes of one depth
    need no new encoding: three bits less per level are those of the coarser voxel, on either curve.
    """
    if bits > level.depth:  # more would shift the batch index out of the codes
        bits = level.depth if recode else 0
    keys = level.codes[0][level.order[0]] >> (3 * bits)
    _, run, members = torch.unique_consecutive(keys, return_inverse=True, return_counts=True)
    cluster = run[level.rank[0]]
    head = level.order[0][members.cumsum(0) - members]
    total = level.coord.new_zeros(len(head), 3).index_add_(0, cluster, level.coord)
    coord = total / members[:, None].to(total.dtype)
    grid, batch = level.grid[head] >> bits, level.batch[head]
    depth, names = level.depth - bits, [level.orders[i] for i in permutation]
    codes = level.codes[:, head][list(permutation)] >> (3 * bits)
    if recode and (wanted := needed_depth(int(grid.max()))) != depth:
        depth, codes = wanted, encode(grid, batch, wanted, names)
    counts = torch.bincount(batch, minlength=len(level.counts)).tolist()
    return _level(coord, grid, batch, counts, names, depth, codes, cluster)


def _level(
    coord: Tensor, grid: Tensor, batch: Tensor, counts: list[int], orders: list[str], depth: int, codes: Tensor,
    cluster: Tensor,
) -> Level:  # fmt: skip
    order = codes.argsort(dim=1)
    places = torch.arange(codes.shape[1], device=codes.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, places)
    return Level(coord, grid, batch, counts, orders, depth, codes, order, rank, cluster)
