"""CPU time of drawing one sample per view, beside a reference that measures all distances for every view.

    python benchmarks/sampling_reference.py [--points 1000000 35000000] [--radius robust] [--json FILE]

The scene is a synthetic street: 200 views, each seeing the ground, walls and what is far away 1 m further along a road,
its points in the order of its pixels. Only the drawing of row numbers is timed, not gathering or writing; CPU = user +
system, mean over views spread over the scene, after one warm-up draw. The reference does what the paper's released
code does, in NumPy: distances of all points, set difference, choice without replacement.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rw3d_prep.sampling import SampleConfig, SceneIndex, draw_sample


def brute_force_sample(
    position: npt.NDArray[np.float32],
    point_offset: npt.NDArray[np.int64],
    view: int,
    config: SampleConfig,
    rng: np.random.Generator,
    assume_unique: bool = True,
) -> npt.NDArray[np.int64]:
    """Rows (n,) of a view-aware sample of `view`, own points first, by measuring the distance of every point.

    `position` (N, 3) float32 metres, `point_offset` (V + 1,) int64; the view must have points. Where the sphere has
    too few points, the rest comes from anywhere, as in the released code. `assume_unique=False` leaves the set difference
    as NumPy does it by default, by sorting, which is what code written without a profiler pays.
    """
    own = np.arange(point_offset[view], point_offset[view + 1])
    center = position[own].mean(axis=0, dtype=np.float64).astype(np.float32)
    distance = np.linalg.norm(position - center, axis=1)
    match config.radius:
        case "robust":
            radius = 1.5 * np.quantile(distance[own], 0.95)
        case "official":
            radius = 1.5 * distance[own].max()
        case metres:
            radius = metres
    chosen = rng.choice(own, min(round(config.points * config.own_share), len(own)), replace=False)
    others = np.setdiff1d(np.flatnonzero(distance <= radius), own, assume_unique=assume_unique)
    near = rng.choice(others, min(config.points - len(chosen), len(others)), replace=False)
    rows = np.concatenate([chosen, near])
    if len(rows) < config.points:
        rest = np.setdiff1d(np.arange(len(position)), rows, assume_unique=True)
        rows = np.concatenate([rows, rng.choice(rest, min(config.points - len(rows), len(rest)), replace=False)])
    return rows


def street(points: int, views: int = 200) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """(N, 3) float32 metres and (V + 1,) offsets: per view a grid of pixels, depth of ground and walls, 1 % noise."""
    height = max(round((points / views / 3) ** 0.5), 1)
    width = max(points // views // height, 1)
    generator = np.random.default_rng(0)
    u, v = np.meshgrid(np.linspace(-1.2, 1.2, width), np.linspace(-0.35, 0.35, height))
    ground, walls = 1.6 / np.maximum(v, 0.02), 8 / np.maximum(np.abs(u), 0.1)
    depth = np.minimum(np.minimum(np.where(v > 0.02, ground, 60), walls), 60)
    position = np.empty((views, height * width, 3), np.float32)
    for view in range(views):
        noisy = depth * (1 + 0.01 * generator.standard_normal(depth.shape))
        position[view] = np.stack([u * noisy, v * noisy, noisy + view], axis=-1).reshape(-1, 3)
    return position.reshape(-1, 3), np.arange(views + 1, dtype=np.int64) * (height * width)


def cpu_ms(call: object, views: list[int]) -> float:
    """Mean CPU milliseconds of `call(view)` over `views`, after one call that is not counted."""
    assert callable(call)
    call(views[0])
    start = time.process_time()
    for view in views:
        call(view)
    return (time.process_time() - start) / len(views) * 1e3


def measure(points: int, config: SampleConfig, reference_views: int) -> dict[str, object]:
    """Build time and CPU per view of both sides for one scene size."""
    position, offset = street(points)
    SceneIndex.build(position[:1000], np.array([0, 1000]))
    start = time.process_time()
    scene = SceneIndex.build(position, offset)
    build = (time.process_time() - start) * 1e3
    ours = cpu_ms(lambda view: draw_sample(scene, view, config, ("train", "street", view, 0)), list(range(5, 195, 5)))
    rng = np.random.default_rng(0)
    few = np.linspace(20, 180, reference_views, dtype=int).tolist()
    theirs = cpu_ms(lambda view: brute_force_sample(position, offset, view, config, rng), few)
    drawn = draw_sample(scene, 100, config, ("train", "street", 100, 0))
    return {
        "scene_points": len(position),
        "radius": config.radius,
        "radius_m": round(drawn.radius, 2),
        "sample_points": len(drawn.index),
        "own_points": drawn.n_own,
        "index_build_ms": round(build, 1),
        "draw_sample_ms": round(ours, 2),
        "brute_force_ms": round(theirs, 1),
        "ratio": round(theirs / ours),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="+", default=[4_000_000, 35_000_000])
    parser.add_argument("--radius", nargs="+", default=["robust"], help="robust, official or metres; several are fine")
    parser.add_argument("--reference-views", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for points in options.points:
        for radius in options.radius:
            named = radius if radius in ("robust", "official") else float(radius)
            rows.append(measure(points, SampleConfig(radius=named), options.reference_views))
            print(json.dumps(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
