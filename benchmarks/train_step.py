"""A training step of Rewis3d: time, share per part, peak memory, and how long it waits for data.

    python benchmarks/train_step.py [--workers 4] [--views 180] [--json FILE]       # on a GPU
    python benchmarks/train_step.py --device cpu --small                            # to see that it works

The paper's configuration on KITTI-360-like samples (the synthetic street of `read_samples.py`, 120,000 points per view):
SegFormer-B4 and Point Transformer V3 with random weights, students and teachers, both cross-modal losses, 12 items of
376×512 pixels in as few parts as the memory holds. Step and waiting are those of the real loop, after three steps to
warm up, until the epoch ends; then the shares are measured in steps of their own, part by part, where the device is
waited for in between. `--small`: tiny networks, two items of 64×128 pixels.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from read_samples import make_store

from rw3d_train.config import TrainConfig, load_train_config
from rw3d_train.data.loader import steps_of
from rw3d_train.engine import Parts, train_step
from rw3d_train.run import Run

WARM_UP = 3
SHARES = 3  # steps measured part by part
SMALL = {
    "model_2d.name": "unet",
    "model_3d.size": "small",
    "model_3d.voxel": 0.5,
    "augment.geometry.crop": "[64, 128]",
    "run.batch_size": 2,
    "run.precision": "fp32",
}


class Clock:
    """Seconds per part; the device is waited for at both ends of one."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, defaultdict[str, float](float)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = self.now()
        yield
        self.seconds[name] += self.now() - started

    def watch(self, module: torch.nn.Module, name: str) -> None:
        """Count the calls of a network."""
        module.register_forward_pre_hook(lambda *_: self.seconds.__setitem__(name, self.seconds[name] - self.now()))
        module.register_forward_hook(lambda *_: self.seconds.__setitem__(name, self.seconds[name] + self.now()))


def configuration(folder: Path, options: argparse.Namespace, accumulate: int) -> TrainConfig:
    values = {
        "data.stores": folder,
        "data.held_out": 0,
        "method.cross_modal.start": 0,
        "model_2d.name": "random:b4",
        "run.workers": options.workers,
        "run.accumulate": accumulate,
        **(SMALL if options.small else {}),
    }
    return load_train_config("kitti360", None, "paper", "rewis3d", [f"{key}={value}" for key, value in values.items()])


def measure_loop(run: Run) -> dict[str, float]:
    """The real loop over one epoch."""
    clock, times, waits = Clock(run.device), [], []
    run.begin_epoch()
    steps, ended = steps_of(run.loader, run.config.run.accumulate), clock.now()
    for number in range(run.steps_per_epoch):
        parts = next(steps)
        got = time.perf_counter()
        train_step(run, parts)
        run.step, run.position = run.step + 1, run.position + 1
        done = clock.now()
        if number >= WARM_UP:
            times.append(done - ended)
            waits.append(got - ended)
        ended = done
    run.end_epoch()
    items = run.config.run.batch_size / statistics.median(times)
    return {
        "step_s": round(statistics.median(times), 3),
        "items_per_s": round(items, 2),
        "data_wait_share": round(sum(waits) / sum(times), 4),
    }


def measure_shares(run: Run) -> dict[str, float]:
    """Share of a step's time per part; gradients of the two students are disjoint, so each goes backward alone."""
    clock = Clock(run.device)
    for name, student in run.method.students.items():
        clock.watch(student, f"student {name} forward")
        clock.watch(run.method.teachers[name].module, f"teacher {name} forward")
    run.begin_epoch()
    for _, parts in zip(range(SHARES), steps_of(run.loader, run.config.run.accumulate), strict=False):
        with clock.part("teachers follow"):
            for teacher in run.method.teachers.values():
                teacher.update(run.step, run.position)
        _forward_and_backward(run, parts, clock)
        with clock.part("optimisers"):
            for optimizer in run.optimizers.values():
                run.scaler.step(optimizer)
                optimizer.zero_grad(set_to_none=True)
            run.scaler.update()
    forward = sum(seconds for name, seconds in clock.seconds.items() if name.endswith(" forward"))
    clock.seconds["losses"] = clock.seconds.pop("all forward and losses") - forward
    total = sum(clock.seconds.values())
    return {name: round(seconds / total, 3) for name, seconds in sorted(clock.seconds.items())}


def _forward_and_backward(run: Run, parts: Parts, clock: Clock) -> None:
    for student, teacher in parts:
        with clock.part("to the device"):
            student, teacher = student.to(run.device), teacher.to(run.device)
        autocast = torch.autocast(run.device.type, run.dtype, enabled=run.dtype != torch.float32)
        with clock.part("all forward and losses"), autocast:
            losses = run.method.losses(student, teacher, run.epoch)
        for name in run.method.students:
            with clock.part(f"student {name} backward"):
                run.scaler.scale(losses[name] / len(parts)).backward()


def peak_gib(device: torch.device) -> float:
    """The allocator's largest amount on a GPU, else the largest resident memory of this process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (30 if sys.platform == "darwin" else 20), 2)


def measure(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """All numbers, with the fewest parts per batch that fit."""
    batch = configuration(folder, options, 1).run.batch_size
    for accumulate in (parts for parts in range(1, batch + 1) if batch % parts == 0):
        if found := measure_if_it_fits(folder, options, accumulate):
            return {"parts": accumulate, **found}
        gc.collect()  # only now: the error held on to the tensors of the step it ended
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    raise SystemExit("one item alone does not fit this GPU")


def measure_if_it_fits(folder: Path, options: argparse.Namespace, accumulate: int) -> dict[str, object] | None:
    """None: out of memory."""
    device, config = torch.device(options.device), configuration(folder, options, accumulate)
    try:
        run = Run.start(config, folder / f"run-{accumulate}", device, resume=False)
        loop = measure_loop(run)
        peak = peak_gib(device)  # of the loop: the shares are measured in another order
        return {**loop, "peak_gib": peak, "shares": measure_shares(run)}
    except torch.OutOfMemoryError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--views", type=int, help="samples made; 180, with --small 12")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this needs a CUDA GPU; to try it without one, give --device cpu --small")
    with tempfile.TemporaryDirectory() as name:
        make_store(Path(name), options.views or (12 if options.small else 180))
        gpu = torch.cuda.get_device_name() if options.device == "cuda" else "none"
        result = {"gpu": gpu, "small": options.small, "workers": options.workers, **measure(Path(name), options)}
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
