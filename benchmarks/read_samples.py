"""Read training items through rw3d_train.data, beside `np.load` of a compressed npz and beside zarr-python.

    python benchmarks/read_samples.py [--samples 60] [--rounds 5] [--json FILE]

Makes a synthetic street of 336×518 views with 1 % depth noise, 1408×376 images and 3 % of pixels labelled, samples
120,000 points per view (72,000 own), and writes the same content as npz: the point part alone, and with the decoded
image and labels. All readers decode every array of an item (position, colour, confidence, label, truth, pixel) of the
same items, warm, in one process and in turns; CPU = user + system time of all threads, medians over rounds. Every
reader keeps what it has opened. Beside it: loaders with workers (wall time, whole batches), cost of opening, and bytes
on disk. Ratios on one machine, not promises.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr
from fuse_write import IMAGE, Street
from PIL import Image
from torch.utils.data import DataLoader

from rw3d_common import open_scene
from rw3d_common.cameras import PixelMap
from rw3d_common.manifest import dataset_entry
from rw3d_common.schema import VIEWS
from rw3d_prep.fuse import fuse_view
from rw3d_prep.samples import make_samples
from rw3d_prep.sampling import SampleConfig
from rw3d_prep.write import SceneWriter
from rw3d_train.data.collate import collate
from rw3d_train.data.dataset import SceneDataset

ARRAYS = ("position", "color", "confidence", "label", "truth", "pixel")
BATCH = 4
RELEASED = 4  # items written in the released code's layout, to weigh them
Read = Callable[[int], object]


def make_store(folder: Path, views: int, points: int = 120_000) -> Path:
    """A finished scene with samples of so many points and embedded files."""
    street, entry = Street(336, 518), dataset_entry("kitti360")
    street.pixel_map = PixelMap.resize_then_crop(IMAGE, (336, 1258), (336, 518), 370, 0)
    street.image = picture()
    files = write_images(folder, street)
    store = folder / "scene.zarr"
    with SceneWriter(store, with_truth=True, embed=True) as writer:
        for index in range(views):
            view = street.view(index)
            writer.append(fuse_view(view, street.image, street.label, street.truth, entry.class_map(), 10.0), files)
        writer.publish(view_columns(views), view_strings(files, folder, views), attributes(folder, entry))
    make_samples(store, SampleConfig(seed=0, points=points), workers=2)
    return store


def picture() -> np.ndarray:
    """(376, 1408, 3) uint8: smooth patches with sensor noise, which a PNG or an npz compresses like a photograph."""
    generator = np.random.default_rng(1)
    small = Image.fromarray(generator.integers(0, 256, (24, 88, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize(IMAGE[::-1], Image.Resampling.BICUBIC), np.float32)
    return np.clip(smooth + generator.normal(0, 3, smooth.shape), 0, 255).astype(np.uint8)


def write_images(folder: Path, street: Street) -> dict[str, Path | None]:
    raw = np.zeros(256, np.uint8)
    for item in dataset_entry("kitti360").classes:
        raw[item.train_id] = item.ids[0]
    files: dict[str, Path | None] = {}
    for kind, pixels in (("image", street.image), ("label", raw[street.label]), ("truth", raw[street.truth])):
        files[kind] = path = folder / f"{kind}.png"
        Image.fromarray(pixels).save(path)
    return files


def view_columns(views: int) -> dict[str, np.ndarray]:
    columns = {spec.name: np.ones((views, *spec.row), spec.dtype) for spec in VIEWS if spec.name != "point_offset"}
    columns["frame_id"], columns["camera"] = np.arange(views), np.zeros(views, np.uint8)
    columns["image_size"] = np.tile(np.array(IMAGE, np.int32), (views, 1))
    columns["camera_to_world"] = np.tile(np.eye(4), (views, 1, 1))
    columns["shared"] = np.zeros(views, bool)
    return columns


def view_strings(files: dict[str, Path | None], folder: Path, views: int) -> dict[str, list[str]]:
    names = {kind: str(path.relative_to(folder)) for kind, path in files.items() if path}
    return {"cameras": ["image_00"], **{f"{kind}s": [name] * views for kind, name in names.items()}}


def attributes(folder: Path, entry) -> dict[str, object]:
    classes = entry.class_map()
    return {
        "dataset": "kitti360", "split": "train", "sequence": "street", "root": str(folder), "world_offset": [0, 0, 0],
        "backend": {"name": "synthetic"}, "config": {}, "config_hash": "0", "classes": classes.to_json(),
        "class_map_hash": classes.hash, "ignored_ids": list(entry.ignored_ids), "ignored_in_truth": [],
        "label_encoding": "gray8", "truth_encoding": "gray8",
    }  # fmt: skip


def write_npz(folder: Path, dataset: SceneDataset) -> None:
    """Per item: <i>.npz with the point part, <i>-image.npz with the image part, both as decoded arrays, compressed."""
    for index in range(len(dataset)):
        sample, points = dataset.sample(index), dataset.points(index)
        np.savez_compressed(folder / f"{index}.npz", **points)
        np.savez_compressed(folder / f"{index}-image.npz", image=sample.image, label=sample.label, truth=sample.truth)
        np.savez(folder / f"{index}-plain.npz", **points)


def write_released_layout(folder: Path, store: Path, dataset: SceneDataset, index: int) -> Path:
    """An item in the fields and types of the paper's released code (methods of its save step), compressed."""
    sample, view = dataset.sample(index), open_scene(store).view(index)
    own = len(sample.pixel)
    pixel = np.full((len(sample.position), 2), -1, np.int64)
    pixel[:own] = sample.pixel
    cloud_index = np.where(pixel[:, 0] >= 0, np.arange(len(pixel)), -1)
    path = folder / f"{index}-released.npz"
    np.savez_compressed(
        path,
        student_image_1=sample.image,
        student_mask_1=sample.label,
        original_mask_1=sample.truth,
        depth=view.paint(view.depth, background=np.float32(0)),
        point_indices_array=cloud_index,
        pixel_coords_array=pixel,
        student_coord=sample.position,
        student_colors=(sample.color / 255).astype(np.float32),
        student_segment=sample.point_label,
        original_segment=sample.point_truth,
        conf=sample.confidence,
    )
    return path


def readers(store: Path, folder: Path) -> dict[str, Read]:
    """What is measured, by name: each reads all of item i."""
    checked, trusting = SceneDataset(store), SceneDataset(store, verify=False)
    training = SceneDataset(store, truth=False)
    group = zarr.open_group(store / "samples", mode="r")
    arrays = [group[name] for name in ARRAYS]

    def npz(*names: str) -> Read:
        def read(index: int) -> None:
            for name in names:
                with np.load(folder / f"{index}{name}.npz") as file:
                    for array in file:
                        file[array]

        return read

    return {
        "points, checksums": checked.points,
        "points, no checksums": trusting.points,
        "points, zarr-python": lambda index: [array[index : index + 1] for array in arrays],
        "points, npz compressed": npz(""),
        "points, npz uncompressed": npz("-plain"),
        "item, image decoded, checksums": checked.sample,
        "item, image decoded, no checksums": trusting.sample,
        "item without truth, image decoded, checksums": training.sample,
        "item, npz compressed": npz("", "-image"),
    }


def assert_equal(store: Path, folder: Path) -> None:
    """All readers give the same values."""
    dataset, group = SceneDataset(store), zarr.open_group(store / "samples", mode="r")
    points = dataset.points(3)
    with np.load(folder / "3.npz") as file:
        for name in ARRAYS:
            np.testing.assert_array_equal(points[name], file[name])
            np.testing.assert_array_equal(points[name], group[name][3, : len(points[name])])


def cpu_ms(read: Read, samples: int) -> float:
    started = time.process_time()
    for index in range(samples):
        read(index)
    return 1e3 * (time.process_time() - started) / samples


def compare(store: Path, folder: Path, samples: int, rounds: int) -> dict[str, dict[str, float]]:
    """CPU per item of every reader, in turns."""
    sides = readers(store, folder)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, read in sides.items():
            times[name].append(cpu_ms(read, samples))
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}  # the first one warms up
    return {name: {"cpu_ms": round(ms, 3), "samples_per_cpu_s": round(1e3 / ms)} for name, ms in medians.items()}


def collate_cost(dataset: SceneDataset, rounds: int) -> float:
    """CPU milliseconds per sample of checking and joining a batch."""
    samples = [dataset.sample(index) for index in range(BATCH)]
    times = [cpu_ms(lambda _: collate(samples, len(dataset.classes), 0.05), 1) for _ in range(4 * rounds)]
    return round(statistics.median(times) / BATCH, 2)


def open_cost(store: Path, rounds: int) -> dict[str, float]:
    """CPU milliseconds before a first item: the index once per run, the arrays once per worker and store."""
    dataset = SceneDataset(store)
    warm = min(cpu_ms(dataset.points, 1) for _ in range(5))

    def ours() -> None:
        copy.deepcopy(dataset).points(0)  # what a pickle or a fork starts with

    def other() -> None:
        group = zarr.open_group(store / "samples", mode="r")
        for name in ARRAYS:
            group[name]

    return {
        "index_of_a_store": round(
            statistics.median(cpu_ms(lambda _: SceneDataset(store), 1) for _ in range(rounds)), 2
        ),
        "open_scene": round(statistics.median(cpu_ms(lambda _: open_scene(store), 1) for _ in range(rounds)), 2),
        "worker_first_item": round(statistics.median(cpu_ms(lambda _: ours(), 1) for _ in range(rounds)) - warm, 2),
        "zarr_python_handles": round(statistics.median(cpu_ms(lambda _: other(), 1) for _ in range(rounds)), 2),
    }


def loaders(store: Path, samples: int) -> dict[str, dict[str, float]]:
    """Items per second of wall time in batches, second epoch of persistent workers, and the first batch's delay."""
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # more workers than cores: on purpose
    result = {}
    for workers in (0, 2, 4):
        loader = DataLoader(
            SceneDataset(store, truth=False), batch_size=BATCH, collate_fn=collate, num_workers=workers,
            persistent_workers=workers > 0, multiprocessing_context="fork" if workers else None,
        )  # fmt: skip
        started = time.perf_counter()
        batches = iter(loader)
        next(batches)
        first = time.perf_counter() - started
        for _ in batches:
            pass
        started = time.perf_counter()
        for _ in loader:
            pass
        rate = samples / (time.perf_counter() - started)
        result[str(workers)] = {"samples_per_s": round(rate, 1), "first_batch_s": round(first, 3)}
    return result


def megabytes(paths: list[Path], samples: int) -> float:
    return round(sum(path.stat().st_size for path in paths if path.is_file()) / samples / 1e6, 3)


def sizes(store: Path, folder: Path, samples: int) -> dict[str, float]:
    """MB per item. The item of training is without `index`, which only leads back into points/."""
    part = {name: list((store / "samples" / name).rglob("*")) for name in (*ARRAYS, "index")}
    points = [path for name in ARRAYS for path in part[name]]
    npz, image = ([folder / f"{i}{end}.npz" for i in range(samples)] for end in ("", "-image"))
    ours = {
        "samples_without_index": megabytes(points, samples),
        "samples": megabytes([*points, *part["index"]], samples),
        "embedded_files": megabytes(list((store / "files").rglob("*")), samples),
        "npz": megabytes(npz, samples),
        "npz_image_part": megabytes(image, samples),
    }
    ours["released_layout_npz"] = megabytes([folder / f"{i}-released.npz" for i in range(RELEASED)], RELEASED)
    ours["share_of_released_layout"] = round(ours["samples"] / ours["released_layout_npz"], 3)
    ours["share_of_npz"] = round(ours["samples"] / ours["npz"], 3)
    all_ours, all_npz = ours["samples"] + ours["embedded_files"], ours["npz"] + ours["npz_image_part"]
    return {**ours, "share_of_npz_with_image": round(all_ours / all_npz, 3)}


def measure(samples: int, rounds: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        store = make_store(folder, samples)
        dataset = SceneDataset(store)
        write_npz(folder, dataset)
        for index in range(RELEASED):
            write_released_layout(folder, store, dataset, index)
        assert_equal(store, folder)
        cpu = compare(store, folder, samples, rounds)
        npz, ours = (cpu[f"points, {name}"]["cpu_ms"] for name in ("npz compressed", "checksums"))
        return {
            "samples": samples,
            "points_per_sample": float(dataset.index.table["n_points"].mean()),
            "own_points_per_sample": float(dataset.index.table["n_own"].mean()),
            "cpu": cpu,
            "points_faster_than_npz": round(npz / ours, 1),
            "collate_cpu_ms_per_sample": collate_cost(dataset, rounds),
            "open_cpu_ms": open_cost(store, 4 * rounds),
            "loader_workers": loaders(store, samples),
            "mb_per_sample": sizes(store, folder, samples),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = measure(options.samples, options.rounds)
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
