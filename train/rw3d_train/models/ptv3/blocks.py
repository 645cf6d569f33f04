"""The layers of PTv3 between serialization and output: block, stem, pooling, unpooling. Names are the published ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from rw3d_train.models.ptv3.attention import SerializedAttention, attend, by_windows
from rw3d_train.models.ptv3.chunks import by_rows, recomputed
from rw3d_train.models.ptv3.level import Level
from rw3d_train.models.ptv3.sparse_conv import Backend, Neighbours, SubmanifoldConv3d

BatchNorm = partial(nn.BatchNorm1d, eps=1e-3, momentum=0.01)
Norm = Callable[[int], nn.Module]


class LayerScale(nn.Module):  # type: ignore[misc]
    """x · gamma, a factor per channel."""

    def __init__(self, channels: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Mlp(nn.Module):  # type: ignore[misc]
    """Linear → exact GELU → Linear, with dropout after both."""

    def __init__(self, channels: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(functional.gelu(self.fc1(x)))))


class Block(nn.Module):  # type: ignore[misc]
    """x + CPE(x); x + attention(LN(x)); x + MLP(LN(x)), the last two with drop path per voxel.

    With `recompute`, the backward pass repeats linear layers and norms from the inputs and outputs of convolution and
    attention, which it keeps: they are cheap beside what they store.
    """

    def __init__(
        self, channels: int, heads: int, patch_size: int, order_index: int, drop_path: float, *, mlp_ratio: float,
        qkv_bias: bool, qk_scale: float | None, attn_drop: float, proj_drop: float, layer_scale: float | None,
        fixed_windows: bool, recompute: bool, conv: Backend,
    ) -> None:  # fmt: skip
        super().__init__()
        self.heads, self.patch_size, self.order_index = heads, patch_size, order_index
        self.drop_path, self.qk_scale, self.attn_drop, self.proj_drop = drop_path, qk_scale, attn_drop, proj_drop
        self.fixed_windows, self.recompute = fixed_windows, recompute
        self.cpe = nn.Sequential(
            SubmanifoldConv3d(channels, channels, 3, backend=conv),
            nn.Linear(channels, channels),
            nn.LayerNorm(channels),
        )
        self.norm1 = nn.Sequential(nn.LayerNorm(channels))
        self.attn = SerializedAttention(channels, heads, qkv_bias)
        self.norm2 = nn.Sequential(nn.LayerNorm(channels))
        self.mlp = nn.Sequential(Mlp(channels, int(channels * mlp_ratio), proj_drop))
        self.ls1, self.ls2 = (
            nn.Sequential(nn.Identity() if layer_scale is None else LayerScale(channels, layer_scale)) for _ in range(2)
        )

    def forward(self, x: Tensor, level: Level, cpe_input: Tensor | None = None) -> Tensor:
        """`x` (N, C) → (N, C); `cpe_input` replaces `x` as the convolution's input."""
        x = by_rows(
            recomputed(self._positioned, self.recompute),
            x,
            self.cpe[0](x if cpe_input is None else cpe_input, level.neighbours()),
        )
        patch = self.patch_size if self.fixed_windows else min(self.patch_size, *level.counts)
        return by_windows(self._window, x, level.windows(patch, self.order_index))

    def _window(self, x: Tensor, length: int) -> Tensor:
        """What follows the positional encoding, for the rows of whole windows."""
        qkv = recomputed(self._qkv, self.recompute)(x)
        seen = attend(qkv, length, self.heads, self.qk_scale, self.attn_drop if self.training else 0.0)
        kept1, kept2 = self._kept(x), self._kept(x)
        x, branch = recomputed(self._after_attention, self.recompute)(x, seen, kept1)
        # Out here, so that repeating ends before the last product of the MLP: nothing needs its result.
        return x + (branch if kept2 is None else branch * kept2)

    def _positioned(self, x: Tensor, conv: Tensor) -> Tensor:
        return x + self.cpe[2](self.cpe[1](conv))

    def _qkv(self, x: Tensor) -> Tensor:
        return self.attn.qkv(self.norm1(x))

    def _after_attention(self, x: Tensor, seen: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        """`x` with attention, and what the MLP adds to it."""
        branch = self.ls1(functional.dropout(self.attn.proj(seen), self.proj_drop, self.training))
        x = x + (branch if kept is None else branch * kept)
        return x, self.ls2(self.mlp(self.norm2(x)))

    def _kept(self, x: Tensor) -> Tensor | None:
        """Drop path: (N, 1), 0 for a dropped voxel, 1 / (1 − p) for others; None where nothing is dropped."""
        if not self.training or self.drop_path == 0:
            return None
        keep = 1 - self.drop_path
        return torch.empty(len(x), 1, dtype=x.dtype, device=x.device).bernoulli_(keep).div_(keep)


class ConvStem(nn.Module):  # type: ignore[misc]
    """The first layer of m1: 5³ convolution without bias → BatchNorm → GELU."""

    def __init__(self, in_channels: int, channels: int, conv: Backend) -> None:
        super().__init__()
        self.stem = nn.ModuleDict(
            {"conv": SubmanifoldConv3d(in_channels, channels, 5, bias=False, backend=conv), "norm": BatchNorm(channels)}
        )

    def forward(self, x: Tensor, level: Level) -> Tensor:
        return functional.gelu(self.stem["norm"](self.stem["conv"](x, Neighbours(level.grid, level.batch, 5))))


class LinearStem(nn.Module):  # type: ignore[misc]
    """The first layer of m2: Linear → LayerNorm → GELU. `mask_token` is loaded and saved, but only pretraining uses it."""

    def __init__(self, in_channels: int, channels: int, mask_token: bool) -> None:
        super().__init__()
        self.stem = nn.ModuleDict({"linear": nn.Linear(in_channels, channels), "norm": nn.LayerNorm(channels)})
        if mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, channels))

    def forward(self, x: Tensor, level: Level) -> Tensor:
        return functional.gelu(self.stem["norm"](self.stem["linear"](x)))


class Pooling(nn.Module):  # type: ignore[misc]
    """Linear, the largest value per channel and coarse voxel, norm, GELU."""

    def __init__(self, in_channels: int, out_channels: int, norm: Norm) -> None:
        super().__init__()
        self.proj = nn.Linear(in_channels, out_channels)
        self.norm = nn.Sequential(norm(out_channels))

    def forward(self, x: Tensor, level: Level) -> Tensor:
        """`x` (N fine, in) → (N of `level`, out)."""
        projected = self.proj(x)
        cluster = level.cluster[:, None].expand_as(projected)
        pooled = projected.new_zeros(len(level.grid), projected.shape[1])
        pooled = pooled.scatter_reduce(0, cluster, projected, "amax", include_self=False)
        return functional.gelu(self.norm(pooled))


class Unpooling(nn.Module):  # type: ignore[misc]
    """GELU(norm(Linear)) of the coarse features and of the skip connection, to be added."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, norm: Norm) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Linear(in_channels, out_channels), norm(out_channels), nn.GELU())
        self.proj_skip = nn.Sequential(nn.Linear(skip_channels, out_channels), norm(out_channels), nn.GELU())

    def forward(self, x: Tensor, skip: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """`x` of `level` and `skip` of the finer one → (sum, skip branch alone), both (N fine, out)."""
        skip = self.proj_skip(skip)
        return skip + self.proj(x).index_select(0, level.cluster), skip
