"""What keeping freed memory saves in a training step on a CPU (`rw3d_train/memory.py`).

    python benchmarks/freed_memory.py [--steps 20] [--json FILE]

The small networks of the demo on the synthetic street of `read_samples.py`: batches of 4 images of 96×352 pixels, 4,000
points each, one thread. Each line is a process of its own: CPU = user + system seconds of the median step after three to
warm up, and page faults per step.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from read_samples import make_store

from rw3d_train.config import load_train_config
from rw3d_train.data.loader import steps_of
from rw3d_train.engine import train_step
from rw3d_train.memory import keep_freed_memory
from rw3d_train.run import Run

WARM_UP = 3
METHODS = ("ema", "rewis3d")
SETTINGS = (
    "data.held_out=0",
    "model_2d.name=unet",
    "model_3d.size=small",
    "model_3d.voxel=0.5",
    "augment.geometry.crop=[96, 352]",
    "run.batch_size=4",
    "run.accumulate=1",
    "run.precision=fp32",
    "run.workers=0",
)


def measure(folder: Path, method: str, keep: bool, steps: int) -> dict[str, float]:
    """One line of the table, in this process."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    if keep:
        keep_freed_memory(device)
    start = ["method.cross_modal.start=0"] if method == "rewis3d" else []
    config = load_train_config("kitti360", None, "paper", method, [f"data.stores={folder}", *SETTINGS, *start])
    run = Run.start(config, folder / f"run-{method}-{keep}", device, resume=False)
    run.begin_epoch()
    seconds, faults = [], []
    for _, parts in zip(range(WARM_UP + steps), steps_of(run.loader, 1), strict=False):
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time()
        train_step(run, parts)
        seconds.append(time.process_time() - started)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        run.step, run.position = run.step + 1, run.position + 1
    return {
        "steps": len(seconds) - WARM_UP,
        "cpu_s": round(statistics.median(seconds[WARM_UP:]), 3),
        "page_faults": round(statistics.median(faults[WARM_UP:])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--line", nargs=3, metavar=("FOLDER", "METHOD", "KEEP"), help="one process; used by itself")
    options = parser.parse_args()
    if options.line:
        folder, method, keep = options.line
        print(json.dumps(measure(Path(folder), method, keep == "True", options.steps)))
        return
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        make_store(Path(folder), views=4 * (WARM_UP + options.steps), points=4000)
        for method in METHODS:
            for keep in (False, True):
                line = ["--line", folder, method, str(keep), "--steps", str(options.steps)]
                done = subprocess.run([sys.executable, __file__, *line], check=True, stdout=subprocess.PIPE, text=True)
                found[f"{method}, {'kept' if keep else 'returned'}"] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
