"""A picture of a scene's cloud, in photo colours and in labels, without a display."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rw3d_common.cameras import F64, project
from rw3d_common.labels import IGNORE, U8
from rw3d_common.scene import Scene

BACKGROUND = 18
MOST_POINTS = 6_000_000  # more do not show in a picture of this size


def scene_picture(scene: Scene, width: int = 1280, height: int = 560) -> U8:
    """The cloud seen from above and behind its first camera: photo colours, over labels; (2·height, width, 3) uint8.

    The lower half shows the sparse labels in class colours on a dimmed grey cloud. A cloud without views is seen from
    beside and above, with its dense labels, and without its upper fifth: rooms have ceilings.
    """
    position = scene.read("position")
    rows = slice(None, None, max(scene.n_points // MOST_POINTS, 1)) if len(scene) else _below_ceiling(position)
    position = position[rows]
    camera_to_world = overview_camera(scene, position) if len(scene) else beside(position)
    intrinsics = fitting_intrinsics(position[::97], camera_to_world, width, height)
    u, v, z = project(position, intrinsics, camera_to_world)
    photo = scene.colors("rgb")[rows]
    upper = splat(u, v, z, photo, width, height)
    label = scene.read("label" if len(scene) else "truth")[rows]
    labelled = label != IGNORE
    grey = (photo.mean(axis=1, keepdims=True) * 0.45).astype(np.uint8).repeat(3, axis=1)
    painted = np.where(labelled[:, None], scene.classes.palette[label], grey)
    lower = splat(u, v, z, painted, width, height, in_front=labelled)
    return np.vstack([upper, lower])


def overview_camera(scene: Scene, position: np.ndarray) -> F64:
    """A virtual camera behind and above the first one, looking along it and tilted down.

    How far back and how high follows from the depth of the scene, so that rooms and streets both fill the picture.
    """
    poses = scene.view_table["camera_to_world"]
    first = poses[0]
    depth = float(np.median(project(position[::97], np.eye(3), first)[2]))
    reach = max(abs(depth), 0.5)
    tilt = np.deg2rad(14)
    down = np.array([[1, 0, 0], [0, np.cos(tilt), np.sin(tilt)], [0, -np.sin(tilt), np.cos(tilt)]])
    camera = first.copy()
    camera[:3, :3] = first[:3, :3] @ down
    camera[:3, 3] = first[:3, 3] - first[:3, 2] * 0.45 * reach - first[:3, 1] * 0.32 * reach
    return camera


def _below_ceiling(position: np.ndarray) -> np.ndarray:
    """Rows of points (N, 3) in the lower four fifths of their height, as many as show; +z is up."""
    z = position[:, 2]
    rows = np.flatnonzero(z <= 0.2 * z.min() + 0.8 * z.max())
    return rows[:: max(len(rows) // MOST_POINTS, 1)]


def beside(position: np.ndarray) -> F64:
    """A virtual camera that looks along +y at a cloud whose world has +z up, tilted down by 40°."""
    low, high = position.min(axis=0), position.max(axis=0)
    tilt = np.deg2rad(40)
    camera = np.eye(4)
    camera[:3, 1] = 0, -np.sin(tilt), -np.cos(tilt)
    camera[:3, 2] = 0, np.cos(tilt), -np.sin(tilt)
    camera[:3, 3] = (low + high) / 2 - 1.5 * max(float(np.linalg.norm(high - low)), 1e-3) * camera[:3, 2]
    return camera


def fitting_intrinsics(position: np.ndarray, camera: F64, width: int, height: int) -> F64:
    """Pinhole matrix (3, 3) with which the middle 96 % of the points in front of the camera fill the picture."""
    x, y, z = project(position, np.eye(3), camera)
    ahead = z > 0.1 * np.median(np.abs(z))
    if not ahead.any():
        return np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]])
    left, right = np.quantile(x[ahead], [0.02, 0.98])
    top, bottom = np.quantile(y[ahead], [0.02, 0.98])
    focal = 0.94 * min(width / max(right - left, 1e-3), height / max(bottom - top, 1e-3))
    center_x, center_y = width / 2 - focal * (left + right) / 2, height / 2 - focal * (top + bottom) / 2
    return np.array([[focal, 0, center_x], [0, focal, center_y], [0, 0, 1]])


def splat(u: F64, v: F64, z: F64, color: U8, width: int, height: int, in_front: np.ndarray | None = None) -> U8:
    """Paint points far to near, each as a square whose size falls with depth; `in_front` points are painted last."""
    image = np.full((height, width, 3), BACKGROUND, np.uint8)
    near = float(np.quantile(z[z > 0], 0.02)) if (z > 0).any() else 1.0
    seen = np.flatnonzero((z > 0.3 * near) & (u > -2) & (v > -2) & (u < width + 1) & (v < height + 1))
    order = np.argsort(-z[seen]) if in_front is None else np.lexsort((-z[seen], in_front[seen]))
    seen = seen[order]
    column, row = u[seen].astype(int), v[seen].astype(int)
    large = z[seen] < 4 * near
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        chosen = large if (dy, dx) != (0, 0) else np.ones(len(seen), bool)
        y, x, source = row[chosen] + dy, column[chosen] + dx, seen[chosen]
        inside = (y >= 0) & (x >= 0) & (y < height) & (x < width)
        image[y[inside], x[inside]] = color[source[inside]]  # later entries win, and they are nearer
    return image


def write_picture(scene: Scene, path: Path) -> None:
    """Write `scene_picture` as a PNG."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene_picture(scene)).save(path)
