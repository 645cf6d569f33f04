"""The recording car: its two cameras and laser scanner, calibrated and written as KITTI-360 does.

Axes: camera x right, y down, z forward; IMU ("pose") x forward, y right, z down; velodyne x forward, y left, z up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
FOCAL, CENTRE, WIDTH, HEIGHT = 552.554261, (682.049453, 238.769549), 1408, 376  # KITTI-360's rectified cameras
BASELINE = 0.594  # metres


def rotation(x: float, y: float, z: float) -> F64:
    """Rotation (3, 3) by small angles in radians about x, then y, then z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos([x, y, z]), np.sin([x, y, z])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    turn: F64 = about_z @ about_y @ about_x
    return turn


def rigid(turn: F64, translation: npt.ArrayLike) -> F64:
    """A 4×4 transform."""
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = turn, translation
    return out


@dataclass(frozen=True)
class Rig:
    """Calibration of one tree; all transforms are 4×4 float64, metres."""

    size: tuple[int, int]  # (height, width)
    intrinsics: F64  # (3, 3), the same for both rectified cameras
    rectify: tuple[F64, F64]  # R_rect of either camera
    cam_to_pose: tuple[F64, F64]  # unrectified camera -> IMU
    cam_to_velo: F64  # unrectified camera 0 -> velodyne

    @classmethod
    def scaled(cls, width: int, height: int) -> Rig:
        """KITTI-360's geometry for images of another size; both axes keep the focal length of the width's scale."""
        s, t = width / WIDTH, height / HEIGHT
        k = np.array(
            [[FOCAL * s, 0, (CENTRE[0] + 0.5) * s - 0.5], [0, FOCAL * s, (CENTRE[1] + 0.5) * t - 0.5], [0, 0, 1]]
        )
        forward = np.array([[0, 0, 1.0], [1, 0, 0], [0, 1, 0]])  # camera -> IMU without any tilt
        tilt = rotation(-0.0975, 0.0, 0.0)  # the cameras look down by 5.6 degrees, which their high centre makes up for
        level = forward @ tilt  # rectified camera -> IMU, the same for both
        rectify = (rotation(0.0032, 0.0, -0.0071), rotation(-0.0032, 0.0172, -0.0121))
        first = np.array([1.575, 0.004, -0.65])
        places = (first, first + level @ [BASELINE, 0, 0])
        cameras = tuple(rigid(level @ r, p) for r, p in zip(rectify, places, strict=True))
        to_velo = rigid(rotation(0.004, -0.002, 0.003) @ np.diag([1.0, -1.0, -1.0]), [-0.77, 0.30, -0.83])
        return cls((height, width), k, rectify, (cameras[0], cameras[1]), to_velo @ cameras[0])

    def camera(self, k: int, pose: F64) -> F64:
        """Rectified camera `k` -> world, from the IMU's pose."""
        return pose @ self.cam_to_pose[k] @ rigid(self.rectify[k].T, [0, 0, 0])

    def velodyne(self, pose: F64) -> F64:
        """Velodyne -> world, from the IMU's pose."""
        return pose @ self.cam_to_pose[0] @ np.linalg.inv(self.cam_to_velo)

    def files(self) -> dict[str, str]:
        """Name and content of the calibration files, in KITTI-360's format."""
        perspective = []
        for k in range(2):
            p = np.hstack([self.intrinsics, [[-self.intrinsics[0, 0] * BASELINE * k], [0], [0]]])
            perspective.append(f"S_rect_{k:02}: {self.size[1]} {self.size[0]}")
            perspective.append(f"R_rect_{k:02}: {numbers(self.rectify[k])}")
            perspective.append(f"P_rect_{k:02}: {numbers(p)}")
        poses = [f"image_{k:02}: {numbers(self.cam_to_pose[k][:3])}" for k in range(2)]
        return {
            "perspective.txt": "\n".join(perspective) + "\n",
            "calib_cam_to_pose.txt": "\n".join(poses) + "\n",
            "calib_cam_to_velo.txt": numbers(self.cam_to_velo[:3]) + "\n",
        }


def numbers(values: F64) -> str:
    """Row-major text of an array; ten decimals keep rotations orthonormal to 1e-9."""
    return " ".join(f"{value:.10f}" for value in np.asarray(values).ravel())
