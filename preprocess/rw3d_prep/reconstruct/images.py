"""The `images` backend: no geometry at all. For the 2D methods alone, `supervised` and `ema`.

Its scenes have views with images, sparse labels and truth, and no point; their samples are images and labels. Nothing
is made up: methods with a 3D network refuse such scenes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Literal

import numpy as np

from rw3d_common.cameras import F64, PixelMap
from rw3d_common.config import Section
from rw3d_common.images import image_size
from rw3d_common.scene import NO_GEOMETRY
from rw3d_prep.frames import Frame
from rw3d_prep.reconstruct.base import ViewGeometry


class ImagesConfig(Section):
    kind: Literal["images"] = "images"


class ImagesBackend:
    """An empty grid for every frame: any frame will do, and each is on its own."""

    needs = ()

    def __init__(self, config: ImagesConfig) -> None:
        self.config = config

    def identity(self) -> dict[str, str]:
        """What made the scene; its name tells readers that there is no geometry."""
        return {"name": NO_GEOMETRY, "model": "no geometry", "revision": "", "licence": "", "version": version("rw3d")}

    def require(self) -> None:
        """Nothing but files is needed."""

    def reconstruct(self, frames: Sequence[Frame], world_offset: F64) -> Iterator[ViewGeometry]:
        """Yield a grid of 0 × 0 cells per frame, with the dataset's own camera where it states one.

        Where it does not, the pose is the identity, and the intrinsics are NaN: nothing can be projected with them.

        Raises:
            UserError: an image that cannot be read.
        """
        for frame in frames:
            camera_to_world = np.eye(4) if frame.camera_to_world is None else frame.camera_to_world.copy()
            camera_to_world[:3, 3] -= world_offset
            yield ViewGeometry(
                points=np.empty((0, 0, 3), np.float32),
                confidence=np.empty((0, 0), np.float32),
                valid=np.empty((0, 0), bool),
                intrinsics=np.full((3, 3), np.nan) if frame.intrinsics is None else frame.intrinsics,
                camera_to_world=camera_to_world,
                pixel_map=PixelMap((0, 0), image_size(frame.image)),
            )
