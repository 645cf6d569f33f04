"""The `sensor` backend: measured depth or LiDAR instead of reconstruction, the paper's "Real 3D" variant.

Confidence is 1 everywhere: a sensor states none (Rewis3d §4.3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from rw3d_common.cameras import F32, F64, PixelMap, project, unproject_depth
from rw3d_common.config import Section
from rw3d_common.errors import UserError
from rw3d_common.images import ImageSource, image_size, read_uint16
from rw3d_prep.frames import DepthMap, Frame, LidarScan
from rw3d_prep.reconstruct.base import ViewGeometry

TILE = 8  # pixels
SLACK = 0.04  # of the nearest depth in a tile: what a slanted surface spans within it


class SensorConfig(Section):
    kind: Literal["sensor"] = "sensor"
    nearest: float = Field(0.1, ge=0)
    """Metres; smaller depths are sensor noise or the car itself."""
    farthest: float = Field(100.0, gt=0)
    """Metres; larger depths are left out."""
    lidar: Literal["scan", "accumulated"] = "scan"
    """Which LiDAR: the scan of each frame's moment, or the cloud of many scans around it (KITTI-360's 3D semantics)."""


class SensorBackend:
    """Depth images give a grid of their own size; LiDAR scans give the image's grid, filled where a return falls."""

    def __init__(self, config: SensorConfig) -> None:
        self.config = config

    @property
    def needs(self) -> tuple[str, ...]:
        """Poses, intrinsics, and what measures depth; nothing takes the place of accumulated LiDAR where it is chosen."""
        return ("camera_to_world", "intrinsics", "depth|lidar" if self.config.lidar == "scan" else "accumulated")

    def identity(self) -> dict[str, str]:
        """What made the geometry."""
        return {"name": "sensor", "model": "measured depth", "revision": "", "licence": "", "version": version("rw3d")}

    def require(self) -> None:
        """Nothing but files is needed."""

    def reconstruct(self, frames: Sequence[Frame], world_offset: F64) -> Iterator[ViewGeometry]:
        """Yield the measured geometry of each frame; the world is the dataset's minus `world_offset`.

        Raises:
            UserError: a depth image or scan that cannot be read or has the wrong format.
        """
        for frame in frames:
            if frame.camera_to_world is None or frame.intrinsics is None:
                raise UserError(f"{frame}: has no pose or intrinsics, which measured depth needs")
            camera_to_world = frame.camera_to_world.copy()
            camera_to_world[:3, 3] -= world_offset
            size = image_size(frame.image)
            one_scan = self.config.lidar == "scan"
            lidar = frame.lidar if one_scan else frame.accumulated
            if frame.depth is not None and one_scan:
                depth, pixel_map, grid_intrinsics = self.from_depth_map(frame.depth, frame.intrinsics, size)
            elif lidar is not None:
                depth, pixel_map, grid_intrinsics = self.from_scan(lidar, frame.intrinsics, size)
            else:
                raise UserError(
                    f"{frame}: has neither a depth image nor {self.config.lidar} LiDAR; use --backend stereo or mapanything"
                )
            valid = (depth >= self.config.nearest) & (depth <= self.config.farthest)
            yield ViewGeometry(
                points=unproject_depth(depth, grid_intrinsics, camera_to_world),
                confidence=np.ones(depth.shape, np.float32),
                valid=valid,
                intrinsics=frame.intrinsics,
                camera_to_world=camera_to_world,
                pixel_map=pixel_map,
            )

    def from_depth_map(self, depth: DepthMap, intrinsics: F64, size: tuple[int, int]) -> tuple[F32, PixelMap, F64]:
        """Metres (H, W); the map to the colour image follows from the two pinhole matrices (same centre and axes)."""
        values = read_depth(depth.path)
        scale = intrinsics[[0, 1], [0, 1]] / depth.intrinsics[[0, 1], [0, 1]]
        offset = intrinsics[:2, 2] - scale * depth.intrinsics[:2, 2]
        pixel_map = PixelMap(values.shape, size, scale[0], offset[0], scale[1], offset[1])
        return values.astype(np.float32) * np.float32(depth.unit), pixel_map, depth.intrinsics

    def from_scan(self, scan: LidarScan, intrinsics: F64, size: tuple[int, int]) -> tuple[F32, PixelMap, F64]:
        """Metres (H, W): depth of the nearest return whose projection rounds to the pixel, 0 where there is none.

        The point is moved to its pixel's centre ray (at most half a pixel), so that point and pixel agree exactly.
        Of an accumulated cloud, returns behind a nearer surface are left out.
        """
        points = read_scan(scan.source) if isinstance(scan.source, Path) else scan.source.read_points()
        camera_to_lidar = np.asarray(np.linalg.inv(scan.lidar_to_camera), np.float64)
        if scan.accumulated:
            points = _in_depth(points, camera_to_lidar, self.config.nearest, self.config.farthest)
        u, v, z = project(points, intrinsics, camera_to_lidar)
        seen = (z > self.config.nearest) & (u > -0.5) & (v > -0.5) & (u < size[1] - 0.5) & (v < size[0] - 0.5)
        column, row = np.floor(u[seen] + 0.5).astype(np.int64), np.floor(v[seen] + 0.5).astype(np.int64)
        depth = np.full(size[0] * size[1], np.inf, np.float32)
        np.minimum.at(depth, row * size[1] + column, z[seen].astype(np.float32))
        depth = depth.reshape(size)
        if scan.accumulated:
            depth[is_hidden(depth)] = 0
        depth[np.isinf(depth)] = 0
        return depth, PixelMap(size, size), intrinsics


def _in_depth(points: F32, camera_to_world: F64, nearest: float, farthest: float) -> F32:
    """The points (n, 3) at depths that count, with a centimetre to spare for float32; windows hold millions of others."""
    position, axis = camera_to_world[:3, 3].astype(np.float32), camera_to_world[:3, 2].astype(np.float32)
    depth = (points - position) @ axis
    return points[(depth > nearest - 0.01) & (depth < farthest + 0.01)]


def is_hidden(depth: F32) -> npt.NDArray[np.bool_]:
    """True where a depth (H, W) in metres is more than 4 % above the smallest of its tile of 8 × 8 pixels; inf = none.

    Sparse returns leave gaps through which the surfaces behind show.
    """
    height, width = depth.shape
    padded = np.pad(depth, ((0, -height % TILE), (0, -width % TILE)), constant_values=np.inf)
    tiles = padded.reshape(padded.shape[0] // TILE, TILE, -1, TILE)
    limit = (1 + SLACK) * tiles.min(axis=(1, 3), keepdims=True)
    return (np.isfinite(tiles) & (tiles > limit)).reshape(padded.shape)[:height, :width]


def read_depth(path: ImageSource) -> npt.NDArray[np.uint16]:
    """A depth image (H, W) as stored, uint16; 0 = not measured, and so is 65535 (what 7-Scenes writes for a miss).

    Raises:
        UserError: missing, truncated, or not 16-bit.
    """
    values = read_uint16(path, "depth image")
    values[values == 65535] = 0
    return values


def read_scan(path: Path) -> F32:
    """LiDAR returns (N, 3) float32 metres of a KITTI-style file of x, y, z, reflectance.

    Raises:
        UserError: missing, or not a whole number of 16-byte records.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; restore it, or remove its frame") from None
    if not data or len(data) % 16:
        raise UserError(f"{path}: {len(data)} bytes are no whole number of float32 x, y, z, reflectance; copy it again")
    points = np.frombuffer(data, np.float32).reshape(-1, 4)[:, :3]
    return points[np.isfinite(points).all(axis=1)]
