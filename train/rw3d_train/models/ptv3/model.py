"""Point Transformer V3 (Wu et al., CVPR 2024, arXiv 2312.10035): m1, and m2 of Sonata (arXiv 2503.16429)."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from rw3d_common.errors import UserError
from rw3d_train.models.ptv3.blocks import BatchNorm, Block, ConvStem, LinearStem, Pooling, Unpooling
from rw3d_train.models.ptv3.config import PTv3Config, read_config
from rw3d_train.models.ptv3.level import Level, first_level, pool_level
from rw3d_train.models.ptv3.serialization import MOST_BITS
from rw3d_train.models.ptv3.sparse_conv import MOST_ELEMENTS

Stage = tuple[Level, Tensor]


class PointTransformerV3(nn.Module):  # type: ignore[misc]
    """Point Transformer V3 in plain PyTorch, with the parameter names and numbers of the official code.

    Takes the published configuration's keyword names, see `PTv3Config`. Features are those of voxels: two points must
    not share a cell, see `voxelize`.

    Raises:
        UserError: a configuration that cannot be built.
    """

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = read_config(config)
        c, norm = self.config, BatchNorm if self.config.variant == "m1" else nn.LayerNorm
        self.embedding = (
            ConvStem(c.in_channels, c.enc_channels[0], c.conv)
            if c.variant == "m1"
            else LinearStem(c.in_channels, c.enc_channels[0], c.mask_token)
        )
        self.enc = nn.ModuleDict()
        rates = _rates(c.drop_path, c.enc_depths)
        for s in range(len(c.enc_depths)):
            stage = _blocks(c, c.enc_channels[s], c.enc_num_head[s], c.enc_patch_size[s], rates[s])
            if s > 0:
                stage["down"] = Pooling(c.enc_channels[s - 1], c.enc_channels[s], norm)
            self.enc[f"enc{s}"] = stage
        self.out_channels = c.enc_channels[-1] if c.enc_mode else c.dec_channels[0]
        if not c.enc_mode:
            self.dec = nn.ModuleDict()
            channels = (*c.dec_channels, c.enc_channels[-1])
            rates = _rates(c.drop_path, c.dec_depths)
            for s in reversed(range(len(c.dec_depths))):
                stage = _blocks(c, channels[s], c.dec_num_head[s], c.dec_patch_size[s], rates[s][::-1])
                stage["up"] = Unpooling(channels[s + 1], c.enc_channels[s], channels[s], norm)
                self.dec[f"dec{s}"] = stage

    def forward(self, coord: Tensor, feat: Tensor, grid_coord: Tensor, offset: Tensor) -> Tensor:
        """Features of every voxel.

        Args:
            coord: (N, 3) position in metres; only averaged along with the voxels.
            feat: (N, in_channels) float.
            grid_coord: (N, 3) integer cell, at least 0, each at most once per element.
            offset: (B,) number of voxels up to and including each element; rows are grouped by element.

        Returns:
            (N, out_channels) in input order.

        Raises:
            UserError: shapes that do not fit, an element without voxels, or cells beyond the codes' bits.
        """
        stages = self.encode(coord, feat, grid_coord, offset)
        if not self.config.enc_mode:
            return self.decode(stages)[-1]
        x = stages[-1][1]
        for level, _ in reversed(stages[1:]):
            x = x[level.cluster]
        return x

    def encode(self, coord: Tensor, feat: Tensor, grid_coord: Tensor, offset: Tensor) -> list[Stage]:
        """(level, features) of every encoder stage, finest first; arguments and errors of `forward`."""
        c = self.config
        _check(feat, grid_coord, offset, c)
        permutations = self._permutations()
        level = first_level(coord, grid_coord, offset, c.order, c.depth, permutations[0])
        x, stages = self.embedding(feat, level), []
        for s, stage in enumerate(self.enc.values()):
            if s > 0:
                bits = (c.stride[s - 1] - 1).bit_length()
                level = pool_level(level, bits, permutations[s], recode=c.variant == "m2" and c.depth is None)
                x = stage["down"](x, level)
            for i in range(c.enc_depths[s]):
                x = stage[f"block{i}"](x, level)
            stages.append((level, x))
        return stages

    def decode(self, stages: list[Stage]) -> list[Tensor]:
        """Features of every decoder stage, coarsest first: the last are those of the input voxels."""
        x, outputs = stages[-1][1], []
        for s, stage in zip(reversed(range(len(stages) - 1)), self.dec.values(), strict=True):
            level, skip = stages[s]
            x, skip = stage["up"](x, skip, stages[s + 1][0])
            for i in range(self.config.dec_depths[s]):
                # The official m1 leaves the skip branch alone in the first convolution; published weights expect it.
                quirk = self.config.variant == "m1" and i == 0
                x = stage[f"block{i}"](x, level, cpe_input=skip if quirk else None)
            outputs.append(x)
        return outputs

    def _permutations(self) -> list[list[int]]:
        """Which order takes whose place, per stage: random in training, and in evaluation one fixed draw of those."""
        stages, orders = len(self.config.enc_depths), len(self.config.order)
        if not self.config.shuffle_orders:
            return [list(range(orders))] * stages
        generator = None if self.training else torch.Generator().manual_seed(0)
        return [torch.randperm(orders, generator=generator).tolist() for _ in range(stages)]


def _blocks(c: PTv3Config, channels: int, heads: int, patch: int, rates: list[float]) -> nn.ModuleDict:
    options = c.model_dump(
        include={"mlp_ratio", "qkv_bias", "qk_scale", "attn_drop", "proj_drop", "layer_scale", "recompute", "conv"}
    )
    return nn.ModuleDict(
        {
            f"block{i}": Block(
                channels, heads, patch, i % len(c.order), rate, fixed_windows=c.enable_flash, **options
            )
            for i, rate in enumerate(rates)
        }
    )  # fmt: skip


def _rates(last: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Drop-path rates from 0 to `last` over all blocks, by stage."""
    rates = torch.linspace(0, last, sum(depths), device="cpu").tolist()
    return [rates[end - depth : end] for depth, end in zip(depths, accumulate(depths), strict=True)]


def _check(feat: Tensor, grid: Tensor, offset: Tensor, c: PTv3Config) -> None:
    if feat.shape != (len(grid), c.in_channels):
        raise UserError(
            f"PTv3: features of shape {tuple(feat.shape)} for {len(grid):,} voxels of {c.in_channels} channels; "
            "give one row per voxel, and in_channels as many as it has"
        )
    ends = offset.tolist()
    if not ends or ends[-1] != len(grid) or any(b <= a for a, b in zip([0, *ends], ends, strict=False)):
        raise UserError(
            f"PTv3: offset {ends} for {len(grid):,} voxels; it must rise to their number, without empty elements"
        )
    if len(ends) > MOST_ELEMENTS:
        raise UserError(f"PTv3: {len(ends):,} elements in a batch; give at most {MOST_ELEMENTS:,}")
    bits = c.depth or MOST_BITS
    low, high = int(grid.min()), int(grid.max())
    if low < 0 or high >= 2**bits:
        element = next(
            i
            for i, part in enumerate(torch.tensor_split(grid.cpu(), ends[:-1]))
            if part.min() < 0 or part.max() >= 2**bits
        )
        raise UserError(
            f"PTv3: element {element} of the batch has cells from {low} to {high:,}, but codes of {bits} bits hold 0 to "
            f"{2**bits - 1:,}; subtract the smallest cell, and take larger voxels"
        )
