"""Space-filling curves: voxels of a grid → one integer each, whose order visits near voxels one after the other.

A code is `batch << 3·depth | curve`, so sorting codes sorts by batch element first. `depth` is the number of bits per
axis. `z` takes the bits of x, y, z in turn, x highest; `hilbert` is Skilling's curve ("Programming the Hilbert curve",
AIP 707, 2004) with the axes in the same order; `-trans` swaps x and y first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ORDERS = ("z", "z-trans", "hilbert", "hilbert-trans")
MOST_BITS = 16  # per axis: three of them and the batch index share an int64
_SPREAD = (  # (shift, mask): each step halves the runs of neighbouring bits until two zeros follow every one
    (32, 0x1F00000000FFFF),
    (16, 0x1F0000FF0000FF),
    (8, 0x100F00F00F00F00F),
    (4, 0x10C30C30C30C30C3),
    (2, 0x1249249249249249),
)


def needed_depth(largest: int) -> int:
    """Bits per axis that the official code takes for grid coordinates up to `largest`: those of `largest` + 1.

    It takes one bit too many where `largest` + 1 is a power of two, except here at 16 bits, the most that fit.
    """
    bits = (largest + 1).bit_length()
    return min(bits, MOST_BITS) if largest < 2**MOST_BITS else bits


def encode(grid: Tensor, batch: Tensor, depth: int, orders: Sequence[str]) -> Tensor:
    """Codes (O, N) int64 of `grid` (N, 3) integer, 0 ≤ coordinate < 2^depth, in elements `batch` (N,), per order."""
    axes = grid.T.to(torch.int32)
    swapped = axes[[1, 0, 2]]
    curves: dict[str, Tensor] = {}
    for curve in {name.removesuffix("-trans") for name in orders}:
        both = torch.stack([axes, swapped], dim=1)  # (3, 2, N): plain and transposed in one go
        curves[curve], curves[f"{curve}-trans"] = _interleave(hilbert_axes(both, depth) if curve == "hilbert" else both)
    return torch.stack([curves[name] for name in orders]) | (batch.long() << (3 * depth))


def hilbert_axes(axes: Tensor, depth: int) -> Tensor:
    """Skilling's transform: `axes` (3, …) int32 → (3, …), whose interleaved bits are the Hilbert code."""
    x, y, z = (axis.clone() for axis in axes)
    for bit in range(depth - 1, 0, -1):
        low = (1 << bit) - 1
        for axis in (x, y, z):
            invert = -((axis >> bit) & 1) & low  # all low bits where this bit is set, none elsewhere
            swap = (x ^ axis) & (low ^ invert)
            x ^= swap
            axis ^= swap  # nothing for x itself, where `swap` is 0
            x ^= invert
    y ^= x
    z ^= y
    parity = z >> 1  # bit j becomes the parity of the bits of z above j
    for shift in (1, 2, 4, 8):
        parity = parity ^ (parity >> shift)
    return torch.stack([x, y, z]) ^ parity


def _interleave(axes: Tensor) -> Tensor:
    """(3, …) integers of at most 16 bits → (…) int64 with their bits in turn, the first axis highest."""
    bits = axes.long()
    for shift, mask in _SPREAD:
        bits = (bits | (bits << shift)) & mask
    return (bits[0] << 2) | (bits[1] << 1) | bits[2]
