"""GPU memory: when it is exhausted, how to give it back, and how much there is. Loads torch only where it must."""

from __future__ import annotations

import gc
import sys
import textwrap
from typing import Any

_EXHAUSTED = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def is_exhausted(error: BaseException) -> bool:
    """True for torch.OutOfMemoryError, known by its name, and for what CUDA's libraries raise in its place."""
    return type(error).__name__ == "OutOfMemoryError" or any(sign in str(error) for sign in _EXHAUSTED)


def brief(error: BaseException) -> str:
    """The error on one short line; torch's goes on for a paragraph."""
    return textwrap.shorten(str(error), 100, placeholder=" …")


def release() -> None:
    """Give memory that nothing uses any more back to the device."""
    gc.collect()  # exceptions and tensors in a cycle
    if (cuda := _cuda()) is not None:
        cuda.empty_cache()
        cuda.reset_peak_memory_stats()


def take_peak() -> int:
    """Most bytes in tensors since the last call, as MapAnything's own profile counts them; 0 without a GPU."""
    if (cuda := _cuda()) is None:
        return 0
    peak = int(cuda.max_memory_allocated())
    cuda.reset_peak_memory_stats()
    return peak


def free() -> int | None:
    """Bytes that are free on the GPU of this process; None without torch or a GPU."""
    try:
        import torch
    except ImportError:
        return None
    return int(torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else None


def _cuda() -> Any:
    """torch.cuda where it is in use, else None."""
    torch: Any = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None
