"""The weight λ of cross-modal consistency by epoch."""

from __future__ import annotations


def ramp(epoch: int, start: int, length: int, maximum: float) -> float:
    """0 before epoch `start` (counted from 0), then `maximum`·(epoch + 1 − start)/`length`, then `maximum`.

    It steps once per epoch, so the first epoch has `maximum`/`length` already; a length of 0 or 1 gives all of it.
    """
    return maximum * min(max((epoch + 1 - start) / max(length, 1), 0.0), 1.0)
