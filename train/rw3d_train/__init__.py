"""rw3d_train: trains 2D segmentation from the scenes that rw3d-prep made; `load(run).predict(image)` uses the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rw3d_train.trained import load as load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """Import torch only when a network is asked for, not for `rw3d-train --help`."""
    if name == "load":
        from rw3d_train.trained import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
