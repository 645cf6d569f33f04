"""What a dataset adapter hands to the rest: one typed Frame per image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rw3d_common.cameras import F32, F64
from rw3d_common.images import ImageSource
from rw3d_common.labels import U8


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
    pixels never become points (the car's own bonnet, moving things). `lidar` is the scan of this moment, `accumulated`
    a cloud of many moments around it.
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
    accumulated: LidarScan | None = None

    def __str__(self) -> str:
        return f"{self.split}/{self.sequence}/{self.id:010d} {self.camera}".rstrip()


@dataclass(frozen=True)
class CloudPoints:
    """A labelled point cloud in memory.

    `position` (N, 3) float64 metres in the dataset's world; `color` (N, 3) uint8; `truth` (N,) uint8 raw label ids;
    `notes` one sentence for each kind of thing that was left out.
    """

    position: F64
    color: U8
    truth: U8
    notes: tuple[str, ...] = ()


class CloudSource(Protocol):
    """What reads a labelled point cloud; must be picklable. `path` is its file or folder, for messages."""

    @property
    def path(self) -> Path: ...

    def read(self) -> CloudPoints:
        """The whole cloud.

        Raises:
            UserError: a file is missing, truncated or of another format.
        """
        ...


@dataclass(frozen=True)
class Cloud:
    """A labelled point cloud that belongs to no image, such as a scanned room. It becomes a scene without views."""

    split: str
    sequence: str
    title: str
    source: CloudSource

    @property
    def name(self) -> str:
        """split/sequence/title: where the scene is stored below the output folder, without its suffix."""
        return f"{self.split}/{self.sequence}/{self.title}"
