"""Augmentations of a point cloud (n, 3) float32 metres: rows keep their number and order.

Everything turns about a frame: an origin, the view's camera, and three orthonormal axes, of which the third is the axis
of rotation. Positions go in and come out in the scene's world axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Box = tuple[float, float, float]
Axis = Literal["gravity", "official"]


@dataclass(frozen=True, eq=False)
class Frame:
    """Where and about what points turn: `origin` (3,) metres in the world, `axes` (3, 3) with one world axis a row."""

    origin: F64
    axes: F64


@dataclass(frozen=True)
class Motion:
    """What was drawn for one cloud: a turn about the frame's third axis (radians), a factor, and flips of the others."""

    angle: float = 0.0
    scale: float = 1.0
    flips: tuple[bool, bool] = (False, False)

    def stretch(self) -> F64:
        """Scale and flips along the frame's axes, (3,)."""
        return self.scale * np.array([-1.0 if self.flips[0] else 1.0, -1.0 if self.flips[1] else 1.0, 1.0])


def frame_of(camera_to_world: F64, axis: Axis) -> Frame:
    """The frame of a view, `camera_to_world` (4, 4).

    `gravity`: the world axis nearest to the camera's up (−y), with its sign, then the two other world axes. A tilted
    camera does not tilt the scene that way; a camera that looks steeply up or down, or one held upright, names the
    wrong axis, which costs realism of the augmentation, not truth. Ties go to the earlier axis.
    `official`: the camera's own x, y and z (optical) axes. There "up" tips over, and the second flip mirrors it.
    """
    rotation, origin = camera_to_world[:3, :3], camera_to_world[:3, 3].astype(np.float64)
    if axis == "official":
        return Frame(origin, rotation.T.astype(np.float64))
    up = -rotation[:, 1]
    nearest = int(np.argmax(np.round(np.abs(up), 9)))
    axes = np.eye(3)[[(nearest + 1) % 3, (nearest + 2) % 3, nearest]]
    if up[nearest] < 0:
        axes = np.diag([1.0, -1.0, -1.0]) @ axes  # both signs: the frame stays right-handed
    return Frame(origin, axes)


def move(position: F32, frame: Frame, motion: Motion, box: Box | None = None) -> F32:
    """`position` (n, 3) turned, clamped to `box`, scaled and flipped about `frame`, in that order (methods.md §1.8).

    Without motion and box the very same array comes back.
    """
    if motion == Motion() and box is None:
        return position
    local = _affine(position, _turn(motion.angle) @ frame.axes, origin=frame.origin)
    if box is not None:
        limit = np.array(box, np.float32)
        np.clip(local, -limit, limit, out=local)
    back = frame.axes.T @ np.diag(motion.stretch())
    world = local @ back.T.astype(np.float32)
    world += frame.origin.astype(np.float32)
    return world


def jitter(position: F32, generator: np.random.Generator, sigma: float, limit: float) -> F32:
    """`position` plus noise from N(0, sigma) clipped to ±limit, metres, drawn for each coordinate alone."""
    noise = generator.standard_normal(position.shape, dtype=np.float32)
    noise *= np.float32(sigma)
    np.clip(noise, -limit, limit, out=noise)
    noise += position
    return noise


def shift_to_center(position: F32, frame: Frame) -> F32:
    """`position` moved across the frame's third axis so that its bounding box is centred at 0 in the two others."""
    if not len(position):
        return position
    across = [position @ axis.astype(np.float32) for axis in frame.axes[:2]]
    middle = np.array([(float(x.min()) + float(x.max())) / 2 for x in across])
    return position - (middle @ frame.axes[:2]).astype(np.float32)


def _turn(angle: float) -> F64:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _affine(position: F32, matrix: F64, origin: F64) -> F32:
    """matrix · (position − origin), (n, 3) float32; the shift is taken first, where float32 is finest."""
    local: F32 = position - origin.astype(np.float32)
    return local @ matrix.T.astype(np.float32)
