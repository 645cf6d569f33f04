"""A backend that measures as another does, but in a world of its own per batch, as a model that predicts would."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.spatial.transform import Rotation

from rw3d_prep.frames import Frame
from rw3d_prep.reconstruct.base import Backend, ViewGeometry
from rw3d_prep.sim3 import Sim3


def random_sim3(rng: np.random.Generator) -> Sim3:
    """Scale 0.2 to 5, any rotation, tens of metres."""
    return Sim3(float(np.exp(rng.uniform(-1.5, 1.5))), Rotation.random(rng=rng).as_matrix(), rng.normal(0, 20, 3))


@dataclass
class MovedBackend:
    """`backend`, with every batch moved by a random similarity: `worlds` holds dataset → batch by first frame id.

    `noise` is relative to the depth and independent between batches; of every view `outliers` are thrown by metres.
    """

    backend: Backend
    noise: float = 0.0
    outliers: float = 0.0
    worlds: dict[int, Sim3] = field(default_factory=dict)
    needs: tuple[str, ...] = ()

    def identity(self) -> dict[str, str]:
        return {"name": "moved"}

    def require(self) -> None:
        """Nothing is needed."""

    def reconstruct(self, frames: Sequence[Frame], world_offset: np.ndarray) -> Iterator[ViewGeometry]:
        rng = np.random.default_rng(frames[0].id)
        pose = frames[0].camera_to_world
        assert pose is not None and not world_offset.any()
        offset = pose[:3, 3]  # worlds are large, and float32 is not
        move = random_sim3(rng)
        self.worlds[frames[0].id] = move @ Sim3(1.0, np.eye(3), -offset)
        for view in self.backend.reconstruct(frames, offset):
            yield self._moved(view, move, rng)

    def _moved(self, view: ViewGeometry, move: Sim3, rng: np.random.Generator) -> ViewGeometry:
        points = view.points.reshape(-1, 3).astype(np.float64)
        centre = view.camera_to_world[:3, 3]
        points = centre + (points - centre) * (1 + rng.normal(0, self.noise, (len(points), 1)))
        thrown = rng.random(len(points)) < self.outliers
        points[thrown] += rng.normal(0, 5, (int(thrown.sum()), 3))
        pose = view.camera_to_world.copy()
        pose[:3, :3], pose[:3, 3] = move.rotation @ pose[:3, :3], move.apply(centre[None])[0]
        moved = move.apply(points).reshape(view.points.shape).astype(np.float32)
        return replace(view, points=moved, camera_to_world=pose)
