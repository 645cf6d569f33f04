"""The interface between a batch of frames and its geometry."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

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
