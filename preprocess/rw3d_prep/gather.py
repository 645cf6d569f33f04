"""Scattered look-ups that let other threads run: half the time of numpy's, which go through 64-bit indices."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt


def gather(source: npt.NDArray[Any], index: npt.NDArray[np.uint32], out: npt.NDArray[Any]) -> None:
    """out[i] = source[index[i]] for arrays (N,) or (N, 3); rows of `out` behind the index stay as they are.

    The index is not checked: it must be shorter than `out` and name rows of `source`.
    """
    if source.ndim == 1:
        _gather_values(source, index, out)
    else:
        _gather_triples(source, index, out)


@nb.njit(nogil=True, cache=True)
def _gather_values(source: Any, index: Any, out: Any) -> None:
    for i in range(len(index)):
        out[i] = source[index[i]]


@nb.njit(nogil=True, cache=True)
def _gather_triples(source: Any, index: Any, out: Any) -> None:
    for i in range(len(index)):
        row = index[i]
        out[i, 0] = source[row, 0]
        out[i, 1] = source[row, 1]
        out[i, 2] = source[row, 2]
