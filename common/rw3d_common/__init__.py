"""What preparation and training share: the scene store, cameras, labels, manifest, configuration, log and errors.

Nothing here imports torch, OpenCV, Open3D or dask, so that a notebook or a training machine can open a store with
numpy and zarr alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rw3d_common.errors import UserError

if TYPE_CHECKING:
    from rw3d_common.collection import Collection, open_collection
    from rw3d_common.scene import Scene, open_scene

__version__ = "0.1.0"
__all__ = ["Collection", "Scene", "UserError", "open_collection", "open_scene"]


def __getattr__(name: str) -> Any:
    """Import zarr when a store is first opened, not for `--help`."""
    from importlib import import_module

    if name in ("Collection", "open_collection"):
        return getattr(import_module("rw3d_common.collection"), name)
    if name in ("Scene", "open_scene"):
        return getattr(import_module("rw3d_common.scene"), name)
    raise AttributeError(f"module 'rw3d_common' has no attribute '{name}'")
