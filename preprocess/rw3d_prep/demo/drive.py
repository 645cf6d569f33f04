"""The drive through one street: where the car is at every frame, and what its sensors record there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .generate import WORLD_ORIGIN, frame_ids
from .rig import Rig, numbers, rigid, rotation
from .world import Street, generator, plan_street

if TYPE_CHECKING:
    from .generate import DemoConfig

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
FRAME_TIME = 0.1  # seconds
IMU_HEIGHT = 0.9  # metres above the road
STEREO_GAIN = 1.03  # the right camera is a little brighter


@dataclass(frozen=True)
class Shot:
    """What is recorded at one frame: RGB pictures (H, W, 3), labels (H, W), depth (H, W) m, scan (N, 4)."""

    left: U8
    right: U8
    labels: U8
    depth: F32
    scan: F32
    scribble: U8 | None


@dataclass(frozen=True)
class Drive:
    """Poses of the IMU along one street, all 4×4 float64; the street's frame has z up and x along its start."""

    rig: Rig
    street: Street
    street_to_world: F64
    poses: list[F64]  # IMU -> street, exact
    frames: list[int]
    written_poses: list[F64]  # IMU -> world, with the noise of a GPS/IMU solution

    def written_cameras(self) -> list[F64]:
        """Rectified camera 0 -> world, as the written poses imply."""
        return [self.rig.camera(0, pose) for pose in self.written_poses]

    def pose_lines(self, poses: list[F64], rows: int) -> str:
        """One line per frame: its number, then the first `rows` rows of the matrix."""
        return "".join(f"{frame} {numbers(pose[:rows])}\n" for frame, pose in zip(self.frames, poses, strict=True))


def drive_of(config: DemoConfig, sequence: int) -> Drive:
    """The drive of a sequence, drawn from (seed, sequence)."""
    frames = frame_ids(config, sequence)
    street = plan_street(config.seed, sequence, config.step * len(frames))
    rng = generator(config.seed, sequence, 7)
    lane = -(street.half_width - street.parking) / 2
    waves = rng.uniform(0, 6.3, 5)
    poses = [_pose(street, i * config.step, lane, waves) for i in range(len(frames))]
    to_world = rigid(rotation(0, 0, rng.uniform(0, 6.28)), WORLD_ORIGIN + sequence * np.array([150, -90, 0]))
    written = []
    for pose in poses:
        shift, turn = rng.normal(size=3) * config.pose_noise, rng.normal(size=3) * config.pose_noise * 0.02
        written.append(to_world @ pose @ rigid(rotation(*turn), shift))
    rig = Rig.scaled(config.width, config.height)
    return Drive(rig, street, to_world, poses, frames, written)


def _pose(street: Street, s: float, lane: float, waves: F64) -> F64:
    """IMU -> street at `s`: in its lane, swaying, pitching and rolling a little."""
    sway, pitch, roll, heave, yaw = np.sin(waves + s * np.array([0.11, 0.9, 0.6, 0.7, 0.13]))
    x, y = street.arc.point(s, lane + 0.15 * sway)
    level = rotation(0, 0, street.arc.heading(s)) @ np.diag([1.0, -1.0, -1.0])
    return rigid(level @ rotation(0.003 * roll, 0.004 * pitch, 0.012 * yaw), [x, y, IMU_HEIGHT + 0.012 * heave])


class Recorder:
    """Renders the frames of one sequence; building it costs about half a second."""

    def __init__(self, config: DemoConfig, sequence: int) -> None:
        from . import world
        from .render import Scene

        self.config, self.sequence = config, sequence
        self.drive = drive_of(config, sequence)
        self.movers = world.plan_movers(self.drive.street, config.seed, sequence, config.step / FRAME_TIME)
        self.train = sequence < config.train_sequences
        static = world.build_static(self.drive.street, config.seed, sequence)
        self.scene = Scene(static, self.drive.street, config.seed)

    def record(self, index: int) -> Shot:
        """All recordings of the frame with this index."""
        from .render import develop, laser_scan
        from .scribbles import scribble
        from .world import build_movers

        rng = generator(self.config.seed, self.sequence, 8, index)
        drive, rig, scene = self.drive, self.drive.rig, self.scene
        here = index * self.config.step
        scene.set_moving(build_movers(drive.street, self.movers, index * FRAME_TIME, (here - 15, here + 75)))
        pose = drive.poses[index]
        exposure = drive.street.exposure * (1 + 0.1 * np.sin(0.5 * index + self.sequence) + rng.normal() * 0.02)
        left, labels, depth = scene.look(rig.camera(0, pose), rig.intrinsics, rig.size)
        right, _, _ = scene.look(rig.camera(1, pose), rig.intrinsics, rig.size)
        sparse = scribble(labels, rng) if self.train and index % self.config.label_every == 0 else None
        pictures = develop(left, exposure, rng), develop(right, exposure * STEREO_GAIN, rng)
        return Shot(*pictures, labels, depth, laser_scan(scene, rig.velodyne(pose), rng), sparse)
