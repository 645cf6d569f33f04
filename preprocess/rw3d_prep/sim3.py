"""Similarity transforms between worlds: in closed form, robust against outliers, and the errors of a trajectory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rw3d_common.cameras import F64

HYPOTHESES = 512  # of three correspondences each: with 70 % outliers one of them is still clean (1 − 1e-6)
SCORED = 1024  # correspondences that judge a hypothesis
ROUNDS = 15  # of reweighting; it settles within a few
FINEST = 1e-4  # of the depth: errors below this are float32's, not the geometry's


@dataclass(frozen=True, eq=False)
class Sim3:
    """y = scale · rotation · x + translation: `rotation` (3, 3) and `translation` (3,) float64, metres."""

    scale: float
    rotation: F64
    translation: F64

    @classmethod
    def identity(cls) -> Sim3:
        return cls(1.0, np.eye(3), np.zeros(3))

    def apply(self, points: npt.NDArray[np.floating[Any]]) -> F64:
        """Points (n, 3) in the other world, float64 metres."""
        moved: F64 = self.scale * np.asarray(points, np.float64) @ self.rotation.T + self.translation
        return moved

    def __matmul__(self, first: Sim3) -> Sim3:
        """`first`, and then this."""
        (moved,) = self.apply(first.translation[None])
        return Sim3(self.scale * first.scale, self.rotation @ first.rotation, moved)

    def degrees(self) -> float:
        """Angle of the rotation."""
        return float(np.rad2deg(np.arccos(np.clip((np.trace(self.rotation) - 1) / 2, -1, 1))))

    def inverse(self) -> Sim3:
        back = self.rotation.T
        return Sim3(1 / self.scale, back, -back @ self.translation / self.scale)


@dataclass(frozen=True)
class Fit:
    """A robust fit and how well it holds over all correspondences, outliers too.

    `residual` is the median distance as a share of the depth, `residual_metres` the median distance in the target
    world, `inlier_share` the share of correspondences within the limit.
    """

    sim3: Sim3
    residual: float
    residual_metres: float
    inlier_share: float


def umeyama(source: F64, target: F64, weights: F64 | None = None, symmetric: bool = False) -> Sim3:
    """The similarity with the least Σ w |target − S(source)|² over points (n, 3), n ≥ 2 (Umeyama 1991, eq. 40–43).

    `symmetric` takes the ratio of both spreads as scale (Horn 1987): unbiased where both sides are equally noisy, while
    the least-squares scale shrinks with the noise of `source`. The scale is NaN where `source` is a single place; the
    rotation about a line of points is arbitrary.
    """
    weights = np.ones(len(source)) if weights is None else weights
    scale, rotation, translation, _ = _fit(source, target, weights, symmetric)
    return Sim3(float(scale), rotation, translation)


def _fit(source: F64, target: F64, weights: F64, symmetric: bool) -> tuple[F64, F64, F64, F64]:
    """Scale (…), rotation (…, 3, 3), translation (…, 3) and how planar the points are (…) of point sets (…, n, 3).

    The last value, the second singular value over the first, is 0 where all lie on a line.
    """
    share = (weights / weights.sum(axis=-1, keepdims=True))[..., None]
    source_mean, target_mean = (share * source).sum(axis=-2), (share * target).sum(axis=-2)
    x, y = source - source_mean[..., None, :], target - target_mean[..., None, :]
    u, singular, vt = np.linalg.svd(np.swapaxes(share * y, -1, -2) @ x)
    handed = np.ones_like(singular)
    handed[..., 2] = np.sign(np.linalg.det(u) * np.linalg.det(vt))
    rotation = (u * handed[..., None, :]) @ vt
    spread = (share * x**2).sum(axis=(-1, -2))
    with np.errstate(divide="ignore", invalid="ignore"):
        if symmetric:
            scale = np.sqrt((share * y**2).sum(axis=(-1, -2)) / spread)
        else:
            scale = (singular * handed).sum(axis=-1) / spread
        flat = singular[..., 1] / singular[..., 0]
    translation = target_mean - scale[..., None] * (rotation @ source_mean[..., None])[..., 0]
    return scale, rotation, translation, np.nan_to_num(flat)


def robust_sim3(source: F64, target: F64, depth: F64, weights: F64, limit: float = 0.05, seed: int = 0) -> Fit | None:
    """The similarity that most correspondences agree on: RANSAC on triples, then reweighted least squares.

    Args:
        source, target: (n, 3) metres, the same points in two worlds.
        depth: (n,) metres in the target world; errors count relative to it, because geometry errs in proportion.
        weights: (n,) > 0, how much each correspondence counts in the least squares.
        limit: of the depth; correspondences that are farther off are outliers.

    None where the points determine no similarity: fewer than three, or all on a line.
    """
    best = _consensus(source, target, depth, limit, np.random.default_rng(seed)) if len(source) >= 3 else None
    if best is None:
        return None
    for _ in range(ROUNDS):
        error = _relative_errors(best, source, target, depth)
        inside = error < limit
        if np.count_nonzero(inside) < 3:
            break
        cut = float(np.clip(4 * np.median(error[inside]), FINEST, limit))  # Tukey's biweight, at 4 median errors
        influence = weights / depth**2 * np.clip(1 - (error / cut) ** 2, 0, None) ** 2
        best = umeyama(source, target, influence, symmetric=True)
    error = _relative_errors(best, source, target, depth)
    return Fit(best, float(np.median(error)), float(np.median(error * depth)), float(np.mean(error < limit)))


def _relative_errors(sim3: Sim3, source: F64, target: F64, depth: F64) -> F64:
    return np.asarray(np.linalg.norm(sim3.apply(source) - target, axis=1) / depth, np.float64)


def _consensus(source: F64, target: F64, depth: F64, limit: float, rng: np.random.Generator) -> Sim3 | None:
    """The hypothesis with the least truncated error (MSAC: Torr and Zisserman 2000); None if no triple determines one."""
    triples = rng.integers(0, len(source), (HYPOTHESES, 3))
    scale, rotation, translation, flat = _fit(source[triples], target[triples], np.ones((HYPOTHESES, 3)), True)
    usable = np.flatnonzero((flat > 1e-6) & np.isfinite(scale) & (scale > 0))
    if not len(usable):
        return None
    some = rng.permutation(len(source))[:SCORED]
    moved = scale[usable, None, None] * source[some] @ np.swapaxes(rotation[usable], -1, -2)
    error = np.linalg.norm(moved + translation[usable, None] - target[some], axis=-1) / depth[some]
    winner = usable[np.argmin(np.minimum(error, limit).sum(axis=1))]
    return Sim3(float(scale[winner]), rotation[winner], translation[winner])


def absolute_trajectory_error(predicted: F64, given: F64) -> tuple[Sim3, float]:
    """The Umeyama similarity of camera centres, predicted → given world, and ATE: the RMSE that is left, in metres.

    `predicted` and `given` are camera_to_world (n, 4, 4), n ≥ 2 (Sturm et al. 2012, §IV-B, with scale).
    """
    sim3 = umeyama(predicted[:, :3, 3], given[:, :3, 3])
    off = sim3.apply(predicted[:, :3, 3]) - given[:, :3, 3]
    return sim3, float(np.sqrt((off**2).sum(axis=1).mean()))


def relative_pose_error(
    predicted: F64, given: F64, pairs: npt.NDArray[np.integer[Any]], scale: float
) -> tuple[float, float]:
    """RPE over `pairs` (m, 2) of cameras: RMSE of their relative motion in metres and in degrees.

    `predicted` and `given` are camera_to_world (n, 4, 4); `scale` brings predicted lengths to metres (Sturm et al.
    2012, §IV-A). NaN without pairs.
    """
    if not len(pairs):
        return float("nan"), float("nan")
    moved = predicted.copy()
    moved[:, :3, 3] *= scale
    motion, true = (np.linalg.inv(poses[pairs[:, 0]]) @ poses[pairs[:, 1]] for poses in (moved, given))
    error = np.linalg.inv(true) @ motion
    # arccos of the trace loses small angles to rounding; the chord |R − I| = 2√2 sin(angle / 2) keeps them
    chord = np.linalg.norm(error[:, :3, :3] - np.eye(3), axis=(1, 2))
    angle = 2 * np.arcsin(np.clip(chord / np.sqrt(8), 0, 1))
    translation = np.linalg.norm(error[:, :3, 3], axis=1)
    return float(np.sqrt((translation**2).mean())), float(np.rad2deg(np.sqrt((angle**2).mean())))
