"""MapAnything from images to stores: the pipelined run, the same steps one after the other, and the package's demo path.

`python benchmarks/gpu_pipeline.py --weights DIR`, with DIR from `tests/prep/run_real_mapanything.py build` (random
weights: the geometry means nothing, the work is the real one) or with the published ones. Prints one JSON object. The
demo path is what the package's image demo does per batch: `load_images`, `infer` with edge masks, world points and
masks as arrays; it saves them as an uncompressed .npz, and makes neither colours nor labels nor checksums.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sleeping_gpu import DEVICE, measure_sleeping

from rw3d_common.log import configure
from rw3d_prep.batch_scene import reconstruct_batch
from rw3d_prep.batching import BatchConfig
from rw3d_prep.config import PrepConfig
from rw3d_prep.datasets import DatasetConfig
from rw3d_prep.pipeline import find_batches, reconstruct
from rw3d_prep.plan import make_plan
from rw3d_prep.reconstruct.mapanything import MapAnythingConfig
from rw3d_prep.reconstruct.mapanything_model import load_model

PAUSE = 100  # frame numbers between batches: a gap splits them


def write_images(folder: Path, batches: int, views: int, height: int, width: int) -> None:
    """Smooth noise with a few edges as PNG files, about as costly to decode as photographs."""
    from PIL import Image

    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for batch in range(batches):
        for view in range(views):
            coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
            smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
            noisy = np.clip(smooth + rng.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"{batch * PAUSE + view:06d}.png")


def demo_path(model: Any, images: list[str], target: Path) -> None:
    """One batch as the package's demo does it, with its options."""
    from mapanything.utils.geometry import depthmap_to_world_frame
    from mapanything.utils.image import load_images

    on_gpu = str(model.device).startswith("cuda")
    options = {"use_amp": on_gpu, "amp_dtype": "bf16", "apply_mask": True, "mask_edges": True}
    outputs = model.infer(load_images(images), memory_efficient_inference=True, minibatch_size=1, **options)
    arrays = {}
    for index, view in enumerate(outputs):
        points, valid = depthmap_to_world_frame(
            view["depth_z"][0].squeeze(-1), view["intrinsics"][0], view["camera_poses"][0]
        )
        mask = view["mask"][0].squeeze(-1).cpu().numpy().astype(bool) & valid.cpu().numpy()
        arrays |= {f"points{index}": points.cpu().numpy(), f"mask{index}": mask}
        arrays[f"image{index}"] = view["img_no_norm"][0].cpu().numpy()
    np.savez(target, **arrays)


def run_demo(model: Any, paths: list[list[str]], folder: Path) -> None:
    for index, images in enumerate(paths):
        demo_path(model, images, folder / str(index))


class ForwardClock:
    """Adds up the seconds in a model's `forward`; with them, ways compare even on a machine whose load changes."""

    def __init__(self, model: Any) -> None:
        self.seconds, self.forward, self.device = 0.0, model.forward, model.device
        model.forward = self

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        import torch

        started = time.perf_counter()
        try:
            return self.forward(*arguments, **options)
        finally:
            if str(self.device).startswith("cuda"):
                torch.cuda.synchronize()
            self.seconds += time.perf_counter() - started

    def share_of(self, work: Callable[[], object]) -> tuple[float, float]:
        """Seconds that `work` takes, and the share of them that the model computes."""
        before, started = self.seconds, time.perf_counter()
        work()
        seconds = time.perf_counter() - started
        return seconds, (self.seconds - before) / seconds


def measure(config: PrepConfig, root: Path, folder: Path, workers: int, rounds: int) -> dict[str, Any]:
    """Seconds and views per second of the three ways, the best of `rounds` in turn, and where the pipelined time goes."""
    model = load_model(config.backend)
    batches = list(find_batches(config, root)[0])
    views = sum(len(batch.frames) for batch in batches)
    paths = [[str(frame.image) for frame in batch.frames] for batch in batches]
    demo_path(model, paths[0][:2], folder / "warm")  # first calls compile and allocate
    clock = ForwardClock(model)
    taken: list[dict[str, tuple[float, float]]] = []
    logs: list[list[dict[str, Any]]] = []
    for number in range(rounds):
        out = folder / str(number)
        (out / "demo").mkdir(parents=True)
        taken.append(
            {
                "package_demo": clock.share_of(lambda out=out: run_demo(model, paths, out / "demo")),
                "one_after_the_other": clock.share_of(
                    lambda out=out: [reconstruct_batch(batch, config, root, out / "plain") for batch in batches]
                ),
                "pipelined": clock.share_of(lambda out=out: reconstruct(config, root, out / "out", workers)),
            }
        )
        logs.append([json.loads(line) for line in (out / "out" / "metrics.jsonl").read_text().splitlines()])
    seconds, share = ({way: min(times[way] for times in taken)[part] for way in taken[0]} for part in (0, 1))
    lines = logs[min(range(rounds), key=lambda number: taken[number]["pipelined"])]
    keys = [key for key in lines[0] if key.endswith("_seconds")]
    peak = max(line["gpu_peak_bytes"] for line in lines)
    predicted = make_plan(batches, config, root, workers).gpu_memory
    return {
        "views": views,
        "batches": [len(batch.frames) for batch in batches],
        "rounds": [{way: round(value[0], 2) for way, value in times.items()} for times in taken],
        "seconds": {way: round(value, 2) for way, value in seconds.items()},
        "views_per_second": {way: round(views / value, 3) for way, value in seconds.items()},
        "model_share": {way: round(value, 3) for way, value in share.items()},
        "times_the_demo": round(seconds["package_demo"] / seconds["pipelined"], 3),
        "times_one_after_the_other": round(seconds["one_after_the_other"] / seconds["pipelined"], 3),
        "gpu_busy": round(sum(line["gpu_seconds"] for line in lines) / seconds["pipelined"], 3),
        "per_batch": [{key: line[key] for key in (*keys, "gpu_busy")} for line in lines],
        "gpu_peak_gb": round(peak / 1e9, 2),
        "gpu_planned_gb": round(predicted / 1e9, 2),
    }


def device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--weights", type=Path)
    model.add_argument("--sleep", type=float, metavar="MS_PER_VIEW", help="no model and no GPU: see sleeping_gpu.py")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--views", type=int, default=200)
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), default=(376, 1408))
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    configure()
    with tempfile.TemporaryDirectory(prefix="rw3d-gpu-") as name:
        root = Path(name) / "images"
        write_images(root, options.batches, options.views, *options.size)
        if options.sleep is not None:
            result = measure_sleeping(root, Path(name), options.views, options.sleep, options.workers, options.rounds)
        else:
            backend = MapAnythingConfig(weights=options.weights, device=options.device)
            batching = BatchConfig(size=options.views)
            config = PrepConfig(dataset=DatasetConfig(name="folder"), batching=batching, backend=backend)
            result = measure(config, root, Path(name), options.workers, options.rounds)
    device = device_name() if options.sleep is None else DEVICE
    result = {"device": device, "size": list(options.size), "workers": options.workers, **result}
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
