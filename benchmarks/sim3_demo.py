"""Similarities between overlapping scenes of the built-in street: `python benchmarks/sim3_demo.py STORES`.

STORES holds stereo scenes that share frames (`rw3d-prep reconstruct --dataset demo --batch-size 8 --overlap 3`). Their
worlds differ by a shift that is known. The later scene of every pair is moved into a random world of its own (scale 0.2
to 5, any rotation, tens of metres), both scenes get errors of their own along the rays, a share of the pixels is made
wrong, and the similarity is estimated, robustly and by plain least squares. Prints one JSON object; errors of position are those of the shared cameras, in
metres of the earlier scene.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from rw3d_common.collection import open_collection
from rw3d_common.errors import UserError
from rw3d_common.scene import Scene
from rw3d_prep.align import neighbours
from rw3d_prep.overlap import Correspondences, correspondences, shared_views
from rw3d_prep.sim3 import Sim3, robust_sim3, umeyama

CASES = (  # share of outliers, noise per pixel and error of each scene's depth scale per view, both relative
    (0.0, 0.0, 0.0),
    (0.3, 0.0, 0.0),
    (0.0, 0.01, 0.0),
    (0.3, 0.01, 0.0),
    (0.5, 0.03, 0.0),
    (0.7, 0.03, 0.0),
    (0.3, 0.01, 0.01),
)


def measure(path: Path, worlds: int) -> dict[str, object]:
    """Errors over all pairs of scenes, each with so many random worlds.

    Raises:
        UserError: no two scenes share a frame.
    """
    pairs = [(a, b) for a, b in neighbours(open_collection(path)) if len(shared_views(a, b))]
    if not pairs:
        raise UserError(f"{path}: no two scenes share a frame; reconstruct with --overlap 3")
    started = time.process_time()
    found = [(a, b, correspondences(a, b)) for a, b in pairs]
    reading = (time.process_time() - started) / len(pairs)
    return {
        "pairs": len(pairs),
        "worlds_per_pair": worlds,
        "pixels": sum(len(pixels.depth) for _, _, pixels in found),
        "ms_to_read_a_pair": round(1e3 * reading, 1),
        "cases": [_case(found, worlds, *case) for case in CASES],
    }


def _case(
    pairs: list[tuple[Scene, Scene, Correspondences]], worlds: int, outliers: float, noise: float, view_scale: float
) -> dict[str, object]:
    scale, plain, position, inliers, residual, seconds = [], [], [], [], [], []
    for number, (earlier, later, pixels) in enumerate(pairs):
        shift = Sim3(1.0, np.eye(3), later.world_offset - earlier.world_offset)
        centres = later.view_table["camera_to_world"][shared_views(earlier, later)[:, 1], :3, 3]
        for seed in range(worlds):
            rng = np.random.default_rng((number, seed))
            move = random_sim3(rng)
            true = shift @ move.inverse()
            source, target = (disturbed(pixels, rng, noise, view_scale, centres, shift, side) for side in (0, 1))
            wrong = rng.random(len(source)) < outliers
            source[wrong] = source[rng.permutation(np.flatnonzero(wrong))]  # another pixel's point
            started = time.process_time()
            fit = robust_sim3(move.apply(source), target, pixels.depth, pixels.weights)
            seconds.append(time.process_time() - started)
            assert fit is not None
            scale.append(abs(fit.sim3.scale / true.scale - 1))
            plain.append(abs(umeyama(move.apply(source), target).scale / true.scale - 1))
            moved = move.apply(centres)
            position.append(np.linalg.norm(fit.sim3.apply(moved) - true.apply(moved), axis=1).max())
            inliers.append(fit.inlier_share)
            residual.append(fit.residual)
    return {
        "outliers": outliers,
        "noise": noise,
        "view_scale": view_scale,
        "scale_error_median": float(f"{np.median(scale):.2g}"),
        "scale_error_worst": float(f"{np.max(scale):.2g}"),
        "scale_error_median_least_squares": float(f"{np.median(plain):.2g}"),
        "position_error_m_median": float(f"{np.median(position):.2g}"),
        "position_error_m_worst": float(f"{np.max(position):.2g}"),
        "inlier_share": round(float(np.mean(inliers)), 3),
        "residual": round(float(np.median(residual)), 5),
        "ms": round(1e3 * float(np.median(seconds)), 1),
    }


def disturbed(
    pixels: Correspondences,
    rng: np.random.Generator,
    noise: float,
    view_scale: float,
    centres: np.ndarray,
    shift: Sim3,
    side: int,
) -> np.ndarray:
    """The pixels' points (n, 3) in the later scene (side 0) or the earlier one (1), moved along their rays."""
    points = pixels.source if side == 0 else pixels.target
    eyes = centres if side == 0 else shift.apply(centres)
    view = np.repeat(np.arange(len(eyes)), np.diff(np.linspace(0, len(points), len(eyes) + 1).astype(int)))
    error = rng.normal(0, noise, len(points)) + rng.normal(0, view_scale, len(eyes))[view]
    return eyes[view] + (points - eyes[view]) * (1 + error[:, None])


def random_sim3(rng: np.random.Generator) -> Sim3:
    """Scale 0.2 to 5, any rotation, tens of metres."""
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return Sim3(float(np.exp(rng.uniform(-1.6, 1.6))), rotation * np.linalg.det(rotation), rng.normal(0, 20, 3))


def main() -> None:
    """Measure the scenes named on the command line and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("stores", type=Path)
    parser.add_argument("--worlds", type=int, default=5, help="random worlds per pair of scenes")
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.stores, arguments.worlds), indent=1))


if __name__ == "__main__":
    main()
