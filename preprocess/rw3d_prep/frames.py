"""What a dataset adapter hands to the rest: one typed Frame per image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rw3d_common.cameras import F32, F64
from rw3d_common.images import ImageSource


@dataclass(frozen=True)
class StereoPartner:
    """The right image of a rectified pair: same rows, same intrinsics, `baseline` metres to the right."""

    image: ImageSource
    baseline: float


@dataclass(frozen=True)
class DepthMap:
    """A measured depth image: uint16 PNG × `unit` = metres along the optical axis, 0 = not measured.

    `path` may be any image source that gives such a PNG.

    `intrinsics` (3, 3) are the depth camera's, in depth pixels; it shares its centre and axes with the colour camera.
    """

    path: ImageSource
    unit: float
    intrinsics: F64


class ScanSource(Protocol):
    """Points that are no plain file of x, y, z, reflectance; must be picklable."""

    def read_points(self) -> F32:
        """(N, 3) float32 metres, finite.

        Raises:
            UserError: the file is missing, truncated or of another format.
        """
        ...


@dataclass(frozen=True)
class LidarScan:
    """A scan, as a file of float32 x, y, z, reflectance in metres or a `ScanSource`.

    `lidar_to_camera` is 4×4 from the points' frame into this frame's camera. An `accumulated` cloud was seen from many
    places, so parts of it are hidden from this camera; a single scan was taken from beside it.
    """

    source: Path | ScanSource
    lidar_to_camera: F64
    accumulated: bool = False


@dataclass(frozen=True)
class Frame:
    """One image of a sequence at one time from one camera. Its key is (split, sequence, id, camera).

    `camera_to_world` is 4×4 float64 in the dataset's own world (OpenCV axes, metres), None where the dataset has no
    usable pose; `intrinsics` (3, 3) float64 belong to the source image. `label` is the sparse label that training
    sees, `truth` the dense label kept for metrics only, `exclude` an 8-bit mask of the image's size whose non-zero
    pixels never become points (the car's own bonnet, moving things).
    """

    split: str
    sequence: str
    id: int
    camera: str
    image: ImageSource
    camera_to_world: F64 | None = None
    intrinsics: F64 | None = None
    label: ImageSource | None = None
    truth: ImageSource | None = None
    exclude: ImageSource | None = None
    right: StereoPartner | None = None
    depth: DepthMap | None = None
    lidar: LidarScan | None = None

    def __str__(self) -> str:
        return f"{self.split}/{self.sequence}/{self.id:010d} {self.camera}".rstrip()
