"""The interface between a batch of frames and its geometry."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from rw3d_common.cameras import F32, F64, PixelMap
from rw3d_prep.frames import Frame


@dataclass(frozen=True)
class ViewGeometry:
    """The geometry of one frame, on a grid of H × W cells.

    `points` (H, W, 3) float32 metres in the scene's world; `confidence` (H, W) float32, raw as the backend gives it,
    larger is better; `valid` (H, W) bool: where it is False the point means nothing (never judge by coordinates);
    `intrinsics` (3, 3) float64 of the SOURCE image; `camera_to_world` (4, 4) float64, OpenCV axes, in the scene's
    world; `pixel_map` leads from grid cells to source pixels.
    """

    points: F32
    confidence: F32
    valid: npt.NDArray[np.bool_]
    intrinsics: F64
    camera_to_world: F64
    pixel_map: PixelMap


class Backend(Protocol):
    """Turns a batch into geometry.

    `needs` names the Frame fields without which a frame cannot be reconstructed ("camera_to_world", "right", …);
    `identity` says what made the geometry and is stored with the scene: name, model, revision, licence, version.
    """

    @property
    def needs(self) -> tuple[str, ...]: ...

    def identity(self) -> dict[str, str]: ...

    def require(self) -> None:
        """Raise UserError when something the backend needs is not on this machine; called before the first batch."""
        ...

    def reconstruct(self, frames: Sequence[Frame], world_offset: F64) -> Iterator[ViewGeometry]:
        """Yield one ViewGeometry per frame, in the order of `frames`.

        `world_offset` (3,) float64 metres is subtracted from the dataset's world before anything becomes float32.
        A backend that predicts its own world ignores it and the scene's world is its own.

        Raises:
            UserError: an input that cannot be used, named with its file.
        """
        ...


@dataclass(frozen=True)
class RawView:
    """What a model predicts for one frame, as arrays of their own off the GPU.

    `image_size` (height, width) of the source; `points` (H, W, 3) and `depth` (H, W) float32 metres; `confidence`
    (H, W) float32; `mask` (H, W) bool: where the model finds no fault with the point, edges not yet looked at;
    `intrinsics` (3, 3) of the grid; `camera_to_world` (4, 4), OpenCV axes.
    """

    image_size: tuple[int, int]
    points: F32
    depth: F32
    confidence: F32
    mask: npt.NDArray[np.bool_]
    intrinsics: F32
    camera_to_world: F32


@runtime_checkable
class GpuBackend(Backend, Protocol):
    """A backend in three steps that overlap between batches; `reconstruct` is the three, one after the other.

    It travels to worker processes for `finish`, so it must be picklable, and without its model.
    """

    def load_model(self) -> None:
        """Have the model on its device; once per process."""
        ...

    def load(self, frames: Sequence[Frame]) -> Any:
        """On a thread of the host: the images of a batch as `infer` takes them.

        Raises:
            UserError: an image that cannot be used, named with its file.
        """
        ...

    def infer(self, frames: Sequence[Frame], loaded: Any) -> Iterator[RawView]:
        """On the GPU: one RawView per frame, in order, each copied off as it is asked for. Uses `loaded` up.

        Raises:
            UserError: the results do not fit the frames. torch.OutOfMemoryError: the batch is too large.
        """
        ...

    def finish(self, frame: Frame, raw: RawView) -> ViewGeometry:
        """In a worker process: the rest, which needs no GPU."""
        ...
