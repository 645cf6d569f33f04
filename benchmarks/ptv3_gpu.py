"""Point Transformer V3 on a GPU in bfloat16: forward, and forward with backward, of 120,000 points at 0.05 m.

    python benchmarks/ptv3_gpu.py [--elements 1] [--repeats 10] [--json FILE]

The published configuration on the street of `ptv3_cpu.py`, repeated per element. Milliseconds are medians over repeats
after three warm-up runs, memory the allocator's peak. Beside ours: spconv's convolution and flash-attn's attention in
place of ours where both are installed; otherwise our own other path, per-offset convolution and attention written out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from pathlib import Path

import torch
from ptv3_cpu import CLASSES, VOXEL, explicit_attention, street
from torch import Tensor

from rw3d_train.models.ptv3 import PointSegmenter, attention, sparse_conv

POINTS = 120_000


def use_flash() -> None:
    from flash_attn import flash_attn_func

    def attend(q: Tensor, k: Tensor, v: Tensor, dropout_p: float, scale: float | None) -> Tensor:
        rows = (part.transpose(1, 2).bfloat16() for part in (q, k, v))
        return flash_attn_func(*rows, dropout_p=dropout_p, softmax_scale=scale).transpose(1, 2)

    attention.functional.scaled_dot_product_attention = attend


def use_own_fallback() -> None:
    sparse_conv._GatheredConv = sparse_conv._PairwiseConv
    sparse_conv.CPU_PAIRS = 2**31
    attention.functional.scaled_dot_product_attention = explicit_attention


def measure(elements: int, backward: bool, repeats: int, conv: str) -> dict[str, float]:
    torch.manual_seed(0)
    model = PointSegmenter(CLASSES, VOXEL, conv=conv).cuda().train(backward)
    parts = [street(POINTS, seed) for seed in range(elements)]
    coord, feat = (torch.cat(tensors).cuda() for tensors in zip(*parts, strict=True))
    offset = torch.arange(1, elements + 1) * POINTS
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats + 3):
        torch.cuda.synchronize()
        started = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16), torch.set_grad_enabled(backward):
            logits = model(coord, feat, offset)
        if backward:
            logits.float().square().mean().backward()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() / 2**30
    return {"ms": round(1e3 * statistics.median(times[3:]), 1), "peak_gib": round(peak, 2)}


def both(elements: int, repeats: int, conv: str = "torch") -> dict[str, dict[str, float]]:
    return {
        "forward": measure(elements, False, repeats, conv),
        "forward + backward": measure(elements, True, repeats, conv),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this needs a CUDA GPU; for a CPU, run benchmarks/ptv3_cpu.py")
    result: dict[str, object] = {"gpu": torch.cuda.get_device_name(), "elements": options.elements}
    result["ours"] = both(options.elements, options.repeats)
    if all(importlib.util.find_spec(name) for name in ("spconv", "flash_attn")):
        use_flash()
        result["spconv + flash-attn"] = both(options.elements, options.repeats, "spconv")
    else:
        use_own_fallback()
        result["per-offset convolution + explicit attention"] = both(options.elements, options.repeats)
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
