"""What a dataset adapter hands to the rest: one typed Frame per image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rw3d_common.cameras import F64


@dataclass(frozen=True)
class StereoPartner:
    """The right image of a rectified pair: same rows, same intrinsics, `baseline` metres to the right."""

    image: Path
    baseline: float


@dataclass(frozen=True)
class DepthMap:
    """A measured depth image: uint16 PNG × `unit` = metres along the optical axis, 0 = not measured.

    `intrinsics` (3, 3) are the depth camera's, in depth pixels; it shares its centre and axes with the colour camera.
    """

    path: Path
    unit: float
    intrinsics: F64


@dataclass(frozen=True)
class LidarScan:
    """A raw scan, float32 x, y, z, reflectance in metres; `lidar_to_camera` is 4×4 into this frame's camera."""

    path: Path
    lidar_to_camera: F64


@dataclass(frozen=True)
class Frame:
    """One image of a sequence at one time from one camera. Its key is (split, sequence, id, camera).

    `camera_to_world` is 4×4 float64 in the dataset's own world (OpenCV axes, metres), None where the dataset has no
    usable pose; `intrinsics` (3, 3) float64 belong to the source image. `label` is the sparse label that training
    sees, `truth` the dense label kept for metrics only.
    """

    split: str
    sequence: str
    id: int
    camera: str
    image: Path
    camera_to_world: F64 | None = None
    intrinsics: F64 | None = None
    label: Path | None = None
    truth: Path | None = None
    right: StereoPartner | None = None
    depth: DepthMap | None = None
    lidar: LidarScan | None = None

    def __str__(self) -> str:
        return f"{self.split}/{self.sequence}/{self.id:010d} {self.camera}".rstrip()
