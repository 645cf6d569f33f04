"""Point Transformer V3 on one CPU thread: forward, and forward with backward, of 120,000 points at 0.05 m.

    python benchmarks/ptv3_cpu.py [--points 120000] [--json FILE]

The published configuration in float32 on a synthetic street whose voxels thin out from stage to stage as those of a
real one do. Every line is measured in a process of its own: CPU = user + system seconds of the first step, which pays
for its memory pages, and of the next one, as in training; peak = the largest resident memory, with everything that was
imported. Beside ours: the same network with attention written out (softmax of a full window × window matrix, as the
official code does without flash attention), and ours without recomputing in the backward pass. Their outputs are
compared.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rw3d_train.memory import keep_freed_memory
from rw3d_train.models.ptv3 import PointSegmenter, attention

VOXEL = 0.05  # metres
CLASSES = 19
RUNS = {  # name: (explicit attention, backward, recompute)
    "forward": (False, False, True),
    "forward, explicit attention": (True, False, True),
    "forward + backward": (False, True, True),
    "forward + backward, nothing recomputed": (False, True, False),
}


def street(points: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ground and two walls with 2 cm of noise around a sensor, sparser further away: (coord, feat)."""
    generator = np.random.default_rng(seed)
    radius = 30 * generator.random(points) ** 1.5 + 1.5
    angle = generator.uniform(0, 2 * np.pi, points)
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    height = np.where(np.abs(y) > 8, generator.uniform(0, 6, points), 0)
    coord = np.stack([x, y.clip(-8, 8), height], axis=1) + generator.normal(0, 0.02, (points, 3))
    feat = np.concatenate([coord, generator.random((points, 3))], axis=1)
    return torch.from_numpy(coord.astype(np.float32)), torch.from_numpy(feat.astype(np.float32))


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, dropout_p: float, scale: float | None) -> Tensor:
    """Softmax of the whole matrix; the published configuration has no dropout here."""
    return ((q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)).softmax(dim=-1) @ v


def memory() -> float:
    """Largest resident memory so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (30 if sys.platform == "darwin" else 20)


def build(recompute: bool) -> PointSegmenter:
    torch.manual_seed(0)
    return PointSegmenter(CLASSES, VOXEL, recompute=recompute).eval()


def run(name: str, points: int) -> dict[str, float]:
    """One line of the table, in this process."""
    explicit, backward, recompute = RUNS[name]
    torch.set_num_threads(1)
    keep_freed_memory(torch.device("cpu"))  # as training does
    model, (coord, feat) = build(recompute), street(points)
    if explicit:
        attention.functional.scaled_dot_product_attention = explicit_attention

    def step() -> float:
        started = time.process_time()
        if backward:
            model.train()(coord, feat, torch.tensor([points])).square().mean().backward()
        else:
            with torch.no_grad():
                model(coord, feat, torch.tensor([points]))
        return round(time.process_time() - started, 1)

    return {"cpu_s": step(), "next_cpu_s": step(), "peak_gib": round(memory(), 2)}


def assert_equal() -> None:
    """Both attentions give the same logits, within rounding."""
    model, (coord, feat) = build(True), street(4000)
    ours = attention.functional.scaled_dot_product_attention
    with torch.no_grad():
        expected = model(coord, feat, torch.tensor([4000]))
        attention.functional.scaled_dot_product_attention = explicit_attention
        other = model(coord, feat, torch.tensor([4000]))
    attention.functional.scaled_dot_product_attention = ours
    assert (other - expected).abs().max() < 1e-4 * expected.abs().max()


def stages(points: int) -> list[int]:
    """Voxels per stage."""
    cells = np.floor(street(points)[0].numpy() / np.float32(VOXEL)).astype(np.int64)
    cells -= cells.min(axis=0)
    return [len(np.unique(cells >> s, axis=0)) for s in range(5)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=120_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", choices=RUNS, help="measure this one only, in this process")
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run(options.run, options.points)))
        return
    result: dict[str, object] = {"points": options.points}
    for name in RUNS:
        command = [sys.executable, __file__, "--points", str(options.points), "--run", name]
        result[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    # Last, because a child's largest memory starts at what its parent had.
    assert_equal()
    result["voxels"] = stages(options.points)
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
