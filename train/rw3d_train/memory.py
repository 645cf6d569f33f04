"""Memory of a training on a CPU."""

from __future__ import annotations

import ctypes
import sys

import torch

# Of malloc.h in glibc.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = -1


def keep_freed_memory(device: torch.device) -> None:
    """Let a process that trains on a CPU keep what it frees, and use it again for the next tensors.

    By default glibc returns every large buffer to the kernel, which then clears every page of the next one: up to a fifth
    of the time of a step (benchmarks/README.md). The process stays as large as it ever was, which is what it needs again
    in the next step. On other devices, and elsewhere than on glibc, this does nothing.
    """
    if device.type != "cpu" or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
