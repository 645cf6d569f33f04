"""From a world and a camera to a picture, its labels, its depth, and a laser scan."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import open3d as o3d

from .geometry import F32, F64, Mesh, merge
from .materials import SKY
from .shading import noise_table, shade, sun_side
from .world import Street

U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Hits:
    """Nearest hits of N rays; `triangle` is −1 and `t` is inf where nothing is hit."""

    t: F32
    triangle: npt.NDArray[np.int32]
    bary: F32  # (N, 2)


class Scene:
    """A static mesh, traced again and again, and a moving mesh that is exchanged from frame to frame."""

    def __init__(self, static: Mesh, street: Street, seed: int, threads: int = 1) -> None:
        self.static, self.street, self.threads = static, street, threads
        self.table = noise_table(seed)
        self._static = _traceable(static)
        self.mesh = static
        self._moving: o3d.t.geometry.RaycastingScene | None = None

    def set_moving(self, moving: Mesh) -> None:
        """Exchange everything that moves."""
        self._moving = _traceable(moving)
        self.mesh = merge(self.static, moving)

    def cast(self, origin: F64, rays: F32) -> Hits:
        """Nearest hits of rays (N, 3) from `origin` (3,); distances are multiples of a ray's length."""
        full = np.empty((len(rays), 6), np.float32)
        full[:, :3], full[:, 3:] = origin, rays
        hits = self._cast(self._static, full, 0)
        if self._moving is None:
            return hits
        other = self._cast(self._moving, full, len(self.static.triangles))
        nearer = other.t < hits.t
        return Hits(
            np.where(nearer, other.t, hits.t),
            np.where(nearer, other.triangle, hits.triangle),
            np.where(nearer[:, None], other.bary, hits.bary),
        )

    def _cast(self, scene: o3d.t.geometry.RaycastingScene, rays: F32, first: int) -> Hits:
        answer = scene.cast_rays(o3d.core.Tensor.from_numpy(rays), nthreads=self.threads)
        t, triangle = answer["t_hit"].numpy(), answer["primitive_ids"].numpy().astype(np.int64)
        return Hits(t, np.where(np.isfinite(t), triangle + first, -1).astype(np.int32), answer["primitive_uvs"].numpy())

    def _sunlit(self, origin: F64, rays: F32, hits: Hits) -> npt.NDArray[np.bool_]:
        m = self.mesh
        sun = self.street.light["sun"][0]
        shadow, needed = sun_side(
            origin, rays, hits.t, hits.triangle, hits.bary, m.normals, m.triangles, m.material, m.materials, sun
        )
        shadow = o3d.core.Tensor.from_numpy(shadow[needed])
        lit: npt.NDArray[np.bool_] = needed.copy()
        blocked = self._static.test_occlusions(shadow, nthreads=self.threads).numpy()
        if self._moving is not None:
            blocked |= self._moving.test_occlusions(shadow, nthreads=self.threads).numpy()
        lit[needed] = ~blocked
        return lit

    def look(self, camera: F64, intrinsics: F64, size: tuple[int, int]) -> tuple[F32, U8, F32]:
        """What a pinhole `camera` (camera -> street, 4×4) sees, all (H, W).

        Linear light (H, W, 3) float32; raw ids uint8 and depth along the optical axis float32 (metres, inf for sky) of
        the rays through the pixel centres. Light is also taken at the pixels' corners, which are shared: a quincunx
        smooths edges nearly as well as four rays to a pixel at half the cost.
        """
        height, width = size
        u, v = np.arange(width + 1, dtype=np.float64) - 0.5, np.arange(height + 1, dtype=np.float64) - 0.5
        centre, hits = self._light(camera, intrinsics, u[:-1] + 0.5, v[:-1] + 0.5)
        corner, _ = self._light(camera, intrinsics, u, v)
        around = corner[:-1, :-1] + corner[1:, :-1] + corner[:-1, 1:] + corner[1:, 1:]
        labels = self.mesh.materials["label"][self.mesh.material[hits.triangle]]
        labels[hits.triangle < 0] = SKY
        light = 0.5 * centre + 0.125 * around
        return light, labels.astype(np.uint8).reshape(size), hits.t.reshape(size)

    def _light(self, camera: F64, intrinsics: F64, u: F64, v: F64) -> tuple[F32, Hits]:
        rays = pixel_rays(camera, intrinsics, u, v)
        hits = self.cast(camera[:3, 3], rays)
        m, lit = self.mesh, self._sunlit(camera[:3, 3], rays, hits)
        angle = 0.7 / intrinsics[0, 0]
        seen = shade(
            self.table, self.street.light[0], rays, hits.t, hits.triangle, hits.bary, lit,
            m.normals, m.texture, m.triangles, m.material, m.materials, angle,
        )  # fmt: skip
        return seen.reshape(len(v), len(u), 3), hits


def _traceable(mesh: Mesh) -> o3d.t.geometry.RaycastingScene:
    scene = o3d.t.geometry.RaycastingScene()
    tensor = o3d.core.Tensor.from_numpy
    scene.add_triangles(tensor(mesh.vertices), tensor(mesh.triangles.astype(np.uint32)))
    return scene


def pixel_rays(camera: F64, intrinsics: F64, u: F64, v: F64) -> F32:
    """Rays (V·U, 3) float32 through pixel columns u (U,) and rows v (V,), of unit length along the optical axis."""
    x = ((u - intrinsics[0, 2]) / intrinsics[0, 0]).astype(np.float32)
    y = ((v - intrinsics[1, 2]) / intrinsics[1, 1]).astype(np.float32)
    turn = camera[:3, :3].astype(np.float32)
    rays = np.empty((len(y), len(x), 3), np.float32)
    for axis in range(3):
        rays[..., axis] = turn[axis, 0] * x[None, :] + (turn[axis, 1] * y + turn[axis, 2])[:, None]
    return rays.reshape(-1, 3)


def develop(light: F32, exposure: float, rng: np.random.Generator) -> U8:
    """The 8-bit sRGB picture (H, W, 3) that a camera makes of linear light: lens blur, shot and read noise, gamma."""
    height, width = light.shape[:2]
    blurred = cv2.GaussianBlur(light * np.float32(exposure), (0, 0), 0.42)
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
    blurred *= (1 - 0.10 * (x[None, :] ** 2 + 0.3 * y[:, None] ** 2))[..., None]
    value = 1.08 * blurred / (1 + 0.38 * blurred)  # soft shoulder: the sky does not clip at once
    value = np.maximum(value, 0) ** np.float32(1 / 2.2)
    noise = rng.standard_normal(value.shape, dtype=np.float32)
    value += noise * (0.004 + 0.007 * np.sqrt(value))
    picture: U8 = np.clip(value * 255 + 0.5, 0, 255).astype(np.uint8)
    return picture


BEAMS, TURN = 64, 0.36  # laser beams; degrees between two shots of one


def laser_scan(scene: Scene, velodyne: F64, rng: np.random.Generator) -> F32:
    """One forward sweep of a 64-beam scanner: x, y, z, reflectance (N, 4) float32 in velodyne coordinates, metres.

    `velodyne` is velodyne -> street (4×4). Ranges carry 2 cm of noise; some shots are lost.
    """
    elevation = np.radians(np.linspace(2.0, -24.8, BEAMS))[:, None]
    azimuth = np.radians(np.arange(-90, 90, TURN))[None, :]
    beams = np.stack(
        np.broadcast_arrays(
            np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)
        ),
        -1,
    ).reshape(-1, 3)
    hits = scene.cast(velodyne[:3, 3], (beams @ velodyne[:3, :3].T).astype(np.float32))
    distance = hits.t + rng.normal(0, 0.02, len(beams))
    kept = (hits.triangle >= 0) & (distance > 2.5) & (distance < 80) & (rng.random(len(beams)) > 0.04)
    kinds = scene.mesh.materials[scene.mesh.material[hits.triangle[kept]]]
    reflectance = np.clip(kinds["colour"].mean(1) * rng.normal(1, 0.1, kept.sum()), 0, 1)
    return np.column_stack([beams[kept] * distance[kept, None], reflectance]).astype(np.float32)
