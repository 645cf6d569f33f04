"""Triangle meshes of simple solids, and the builder that places them along a curved street.

A shape is a `Shape` in its own frame (x along the street, y to the left, z up, metres). Its own coordinates stay with
it as texture coordinates, so that a moving thing carries its pattern along.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
RNG = np.random.Generator


class Shape(NamedTuple):
    """Vertices (V, 3), vertex normals (V, 3) and triangles (T, 3)."""

    vertices: F64
    normals: F64
    triangles: I32


@dataclass(frozen=True)
class Mesh:
    """Everything to be rendered: float32 vertices, normals, texture coordinates (V, 3); int32 triangles (T, 3)."""

    vertices: F32
    normals: F32
    texture: F32
    triangles: I32
    material: I32  # (T,) row of `materials`
    materials: npt.NDArray[np.void]  # structured, see materials.MATERIAL


@dataclass(frozen=True)
class Arc:
    """The street's centre line: an arc of constant curvature (1/m) through the origin, starting along +x."""

    curvature: float

    def point(self, s: npt.ArrayLike, d: npt.ArrayLike) -> tuple[F64, F64]:
        """Ground coordinates x, y of the point `s` metres along the street and `d` metres to its left."""
        angle = self.curvature * np.asarray(s, np.float64)
        radius = 1 / self.curvature
        away = radius - np.asarray(d, np.float64)
        return away * np.sin(angle), radius - away * np.cos(angle)

    def heading(self, s: float) -> float:
        """Direction of the street at `s`, radians counter-clockwise from +x."""
        return self.curvature * s


class Builder:
    """Collects placed shapes into one Mesh."""

    def __init__(self, arc: Arc) -> None:
        self.arc = arc
        self._shapes: list[tuple[F64, F64, F64, I32]] = []
        self._owner: list[int] = []
        self._materials: list[npt.NDArray[np.void]] = []

    def add(
        self, shape: Shape, material: npt.NDArray[np.void], s: float, d: float, z: float = 0.0, yaw: float = 0.0
    ) -> None:
        """Place a rigid shape at (s, d, z), turned by `yaw` from the direction of the street there."""
        angle = self.arc.heading(s) + yaw
        cos, sin = np.cos(angle), np.sin(angle)
        turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        x, y = self.arc.point(s, d)
        self._append(shape, shape.vertices @ turn.T + [float(x), float(y), z], shape.normals @ turn.T, material)

    def add_bent(self, shape: Shape, material: npt.NDArray[np.void]) -> None:
        """Place a long shape given in street coordinates (s, d, z); it follows the curve."""
        s, d, z = shape.vertices.T
        x, y = self.arc.point(s, d)
        angle = self.arc.curvature * s
        cos, sin = np.cos(angle), np.sin(angle)
        nx, ny, nz = shape.normals.T
        self._append(
            shape, np.stack([x, y, z], 1), np.stack([cos * nx - sin * ny, sin * nx + cos * ny, nz], 1), material
        )

    def _append(self, shape: Shape, vertices: F64, normals: F64, material: npt.NDArray[np.void]) -> None:
        self._shapes.append((vertices, normals, shape.vertices, shape.triangles))
        self._materials.append(material)

    def mesh(self) -> Mesh:
        """All shapes so far, as one mesh."""
        counts = [len(shape[0]) for shape in self._shapes]
        first = np.concatenate([[0], np.cumsum(counts)[:-1]])
        vertices, normals, texture = (np.concatenate([s[k] for s in self._shapes]) for k in range(3))
        triangles = np.concatenate([s[3] + f for s, f in zip(self._shapes, first, strict=True)])
        owner = np.repeat(np.arange(len(self._shapes)), [len(s[3]) for s in self._shapes])
        return Mesh(
            vertices.astype(np.float32),
            normals.astype(np.float32),
            texture.astype(np.float32),
            triangles.astype(np.int32),
            owner.astype(np.int32),
            np.concatenate(self._materials),
        )


def merge(first: Mesh, second: Mesh) -> Mesh:
    """One mesh: the triangles and materials of `first`, then those of `second`."""
    return Mesh(
        np.concatenate([first.vertices, second.vertices]),
        np.concatenate([first.normals, second.normals]),
        np.concatenate([first.texture, second.texture]),
        np.concatenate([first.triangles, second.triangles + np.int32(len(first.vertices))]),
        np.concatenate([first.material, second.material + np.int32(len(first.materials))]),
        np.concatenate([first.materials, second.materials]),
    )


def join(*shapes: Shape) -> Shape:
    """Several shapes of the same frame as one."""
    first = np.concatenate([[0], np.cumsum([len(s.vertices) for s in shapes])[:-1]])
    return Shape(
        np.concatenate([s.vertices for s in shapes]),
        np.concatenate([s.normals for s in shapes]),
        np.concatenate([s.triangles + f for s, f in zip(shapes, first, strict=True)]).astype(np.int32),
    )


def moved(shape: Shape, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Shape:
    """The shape shifted in its own frame."""
    return shape._replace(vertices=shape.vertices + np.array([x, y, z]))


def swung(shape: Shape, angle: float, z: float) -> Shape:
    """The shape turned about the y axis at height z: a leg or an arm that swings."""
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    return shape._replace(vertices=(shape.vertices - [0, 0, z]) @ turn.T + [0, 0, z], normals=shape.normals @ turn.T)


def _cross(a: F64, b: F64) -> F64:
    """Cross product along the last axis; several times as fast as NumPy's for the small arrays here."""
    product: F64 = a[..., [1, 2, 0]] * b[..., [2, 0, 1]] - a[..., [2, 0, 1]] * b[..., [1, 2, 0]]
    return product


def facets(corners: npt.ArrayLike, faces: npt.ArrayLike) -> Shape:
    """Flat-shaded triangles (T, 3) over corners (V, 3)."""
    points = np.asarray(corners, np.float64)[np.asarray(faces)]  # (T, 3, 3)
    face = _cross(points[:, 1] - points[:, 0], points[:, 2] - points[:, 0])
    normals = face / np.maximum(np.linalg.norm(face, axis=1, keepdims=True), 1e-12)
    triangles = np.arange(3 * len(points), dtype=np.int32).reshape(-1, 3)
    return Shape(points.reshape(-1, 3), np.repeat(normals, 3, axis=0), triangles)


def smooth(vertices: F64, triangles: npt.ArrayLike) -> Shape:
    """Smooth-shaded triangles: vertex normals are area-weighted means of the faces around."""
    triangles = np.asarray(triangles, np.int32)
    points = vertices[triangles]
    face = _cross(points[:, 1] - points[:, 0], points[:, 2] - points[:, 0])
    corner, weight = triangles.ravel(), np.repeat(face, 3, axis=0)
    total = np.stack([np.bincount(corner, weight[:, axis], len(vertices)) for axis in range(3)], 1)
    return Shape(vertices, total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12), triangles)


QUADS = np.array([[0, 2, 3, 1], [4, 5, 7, 6], [0, 1, 5, 4], [2, 6, 7, 3], [0, 4, 6, 2], [1, 3, 7, 5]])
BOX_FACES = np.concatenate([QUADS[:, [0, 1, 2]], QUADS[:, [0, 2, 3]]])


def box(length: float, width: float, height: float) -> Shape:
    """A box centred on the origin in x and y, standing on z = 0."""
    corners = [[x, y, z] for z in (0, height) for y in (-width / 2, width / 2) for x in (-length / 2, length / 2)]
    return facets(corners, BOX_FACES)


def gable(length: float, width: float, height: float) -> Shape:
    """A gable roof over a length × width rectangle, ridge along x."""
    x, y = length / 2, width / 2
    corners = [[-x, -y, 0], [x, -y, 0], [x, y, 0], [-x, y, 0], [-x, 0, height], [x, 0, height]]
    return facets(corners, [[0, 1, 5], [0, 5, 4], [2, 3, 4], [2, 4, 5], [3, 0, 4], [1, 2, 5]])


def tube(start: npt.ArrayLike, end: npt.ArrayLike, radius: float, end_radius: float | None = None) -> Shape:
    """A round bar with eight sides and a cap, from `start` to `end`."""
    a, b = np.asarray(start, np.float64), np.asarray(end, np.float64)
    axis = (b - a) / np.linalg.norm(b - a)
    side = _cross(axis, np.eye(3)[1 if abs(axis[1]) < 0.9 else 0])
    side /= np.linalg.norm(side)
    turn = np.linspace(0, 2 * np.pi, 8, endpoint=False)[:, None]
    ring = np.cos(turn) * side + np.sin(turn) * _cross(axis, side)
    vertices = np.concatenate([a + radius * ring, b + (radius if end_radius is None else end_radius) * ring])
    i, j = np.arange(8), (np.arange(8) + 1) % 8
    wall = np.concatenate([np.stack([i, j, i + 8], 1), np.stack([j, j + 8, i + 8], 1)])
    caps = [[8, 8 + k, 9 + k] for k in range(1, 7)] + [[0, k + 1, k] for k in range(1, 7)]
    return Shape(vertices, np.concatenate([ring, ring]), np.concatenate([wall, caps]).astype(np.int32))


def _icosphere(subdivisions: int) -> tuple[F64, I32]:
    g = (1 + 5**0.5) / 2
    v = np.array([[s * a, t * b, 0] for a, b in ((1, g),) for s in (-1, 1) for t in (-1, 1)])
    vertices = np.concatenate([v, v[:, [2, 0, 1]], v[:, [1, 2, 0]]])
    distance = np.linalg.norm(vertices[:, None] - vertices[None], axis=2)
    near = np.isclose(distance, 2.0)
    faces = [
        (i, j, k) for i in range(12) for j in range(i + 1, 12) for k in range(j + 1, 12)
        if near[i, j] and near[j, k] and near[i, k]
    ]  # fmt: skip
    triangles = np.array([f if np.linalg.det(vertices[list(f)]) > 0 else (f[0], f[2], f[1]) for f in faces])
    for _ in range(subdivisions):
        edges = np.sort(triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
        unique, inverse = np.unique(edges, axis=0, return_inverse=True)
        a, b, c = (inverse.reshape(-1, 3) + len(vertices)).T
        x, y, z = triangles.T
        vertices = np.concatenate([vertices, vertices[unique].mean(axis=1)])
        triangles = np.concatenate([np.stack(t, 1) for t in ((x, a, c), (y, b, a), (z, c, b), (a, b, c))])
    return vertices / np.linalg.norm(vertices, axis=1, keepdims=True), triangles.astype(np.int32)


SPHERES = {n: _icosphere(n) for n in range(1, 4)}


def blob(radii: npt.ArrayLike, rng: RNG | None = None, roughness: float = 0.0, subdivisions: int = 2) -> Shape:
    """An ellipsoid about the origin whose radius varies by `roughness` (share) in random waves."""
    sphere, triangles = SPHERES[subdivisions]
    scale = np.ones(len(sphere))
    if rng is not None:
        waves = rng.normal(size=(8, 3)) * np.linspace(1.5, 6, 8)[:, None]
        scale += roughness * np.sin(sphere @ waves.T + rng.uniform(0, 6.3, 8)).sum(1) / 2.8
    return smooth(sphere * scale[:, None] * np.asarray(radii, np.float64), triangles)


def leaves(radii: npt.ArrayLike, count: int, size: float, rng: RNG) -> Shape:
    """Loose triangles in the outer shell of an ellipsoid, shaded like the ellipsoid: a crown with an open outline."""
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    centres = direction * np.asarray(radii) * rng.uniform(0.72, 1.08, (count, 1))
    points = centres[:, None] + rng.normal(size=(count, 3, 3)) * size
    normals = direction + rng.normal(size=(count, 3)) * 0.35
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    triangles = np.arange(3 * count, dtype=np.int32).reshape(-1, 3)
    return Shape(points.reshape(-1, 3), np.repeat(normals, 3, axis=0), triangles)


def strip(s: tuple[float, float], d: tuple[float, float], z: tuple[float, float], spacing: float = 2.0) -> Shape:
    """A ribbon along the street between (d[0], z[0]) and (d[1], z[1]); with d[0] < d[1] it faces up."""
    n = max(2, int(np.ceil((s[1] - s[0]) / spacing)) + 1)
    along = np.linspace(*s, n)
    edges = [np.stack([along, np.full(n, d[k]), np.full(n, z[k])], 1) for k in range(2)]
    i = np.arange(n - 1)
    triangles = np.concatenate([np.stack([i, i + 1, i + n], 1), np.stack([i + 1, i + n + 1, i + n], 1)])
    return smooth(np.concatenate(edges), triangles)


def loft(x: npt.ArrayLike, half_width: npt.ArrayLike, bottom: npt.ArrayLike, top: npt.ArrayLike) -> Shape:
    """A rounded hull along x, each station a bevelled cross-section from `bottom` to `top`; ends closed."""
    stations = np.stack(np.broadcast_arrays(x, half_width, bottom, top), 1).astype(np.float64)
    ring = np.array([[-0.85, 0], [0.85, 0], [1, 0.15], [1, 0.72], [0.93, 0.93], [0.7, 1], [-0.7, 1], [-0.93, 0.93],
                     [-1, 0.72], [-1, 0.15]])  # fmt: skip
    k, n = len(ring), len(stations)
    vertices = np.concatenate(
        [np.stack([np.full(k, a), ring[:, 0] * w, b + ring[:, 1] * (t - b)], 1) for a, w, b, t in stations]
    )
    i, j = np.arange(k), (np.arange(k) + 1) % k
    walls = [np.concatenate([np.stack([i, j + k, j], 1), np.stack([i, i + k, j + k], 1)]) + m * k for m in range(n - 1)]
    ends = [[0, m, m + 1] for m in range(1, k - 1)]
    ends += [[(n - 1) * k, (n - 1) * k + m + 1, (n - 1) * k + m] for m in range(1, k - 1)]
    hull = smooth(vertices, np.concatenate(walls))
    caps = facets(vertices, ends)
    return join(hull, caps)
