"""Scribbles by `make-labels scribbles` beside those of Scribbles4All's generator, and the time that they take.

    python benchmarks/scribbles.py CAMVID --theirs FOLDER [--json FILE]

CAMVID is the dataset's root as `rw3d-prep reconstruct --dataset camvid` takes it; FOLDER holds the other generator's
output, `<stem>.png` with CamVid's raw ids, 11 = unlabelled. A scribble is a connected component of one class; its width
is 2 · d − 1 with d the mean distance to its rim along its ridge, where no neighbour is farther from the rim; its length
is half of its outline. Time is CPU for drawing alone, also of label images enlarged to Cityscapes' 2048×1024.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from rw3d_common.images import LabelFile, image_size
from rw3d_common.labels import IGNORE, U8
from rw3d_common.manifest import dataset_entry
from rw3d_prep.config import load_config
from rw3d_prep.sparse_labels.dense import DenseFrame, dense_frames
from rw3d_prep.sparse_labels.make import keyed_generator
from rw3d_prep.sparse_labels.scribbles import PRESETS, Preset, draw_scribbles, make_curves

CITYSCAPES = (2048, 1024)


def widths_and_lengths(label: U8) -> tuple[list[float], list[float]]:
    """Width and length in pixels of every scribble in train ids (H, W)."""
    widths, lengths = [], []
    for train_id in np.unique(label[label != IGNORE]):
        count, component, stats, _ = cv2.connectedComponentsWithStats(
            (label == train_id).astype(np.uint8), connectivity=8
        )
        for number in range(1, count):
            left, top, width, height, _ = stats[number]
            stroke = np.pad(component[top : top + height, left : left + width] == number, 2).astype(np.uint8)
            distance = cv2.distanceTransform(stroke, cv2.DIST_L2, 5)
            ridge = (distance > 0) & (distance >= cv2.dilate(distance, np.ones((3, 3), np.uint8)))
            outline = cv2.findContours(stroke, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0][0]
            widths.append(float(2 * distance[ridge].mean() - 1))
            lengths.append(cv2.arcLength(outline, True) / 2)
    return widths, lengths


def statistics(pairs: list[tuple[U8, U8]], names: list[str]) -> dict[str, Any]:
    """Of (sparse, dense) train ids (H, W)."""
    measured = [widths_and_lengths(sparse) for sparse, _ in pairs]
    widths, lengths = (np.concatenate([one[part] for one in measured]) for part in (0, 1))
    present = np.array([np.bincount(dense.ravel(), minlength=256)[:IGNORE] > 0 for _, dense in pairs])
    hit = np.array([np.bincount(sparse.ravel(), minlength=256)[:IGNORE] > 0 for sparse, _ in pairs])
    return {
        "images": len(pairs),
        "labelled_percent": round(100 * float(np.mean([np.mean(sparse != IGNORE) for sparse, _ in pairs])), 2),
        "scribbles_per_image": round(len(widths) / len(pairs), 1),
        "width_px": [round(float(value), 2) for value in np.percentile(widths, [5, 50, 95])],
        "length_px": [round(float(value), 1) for value in np.percentile(lengths, [5, 50, 90])],
        "wrong_pixels": int(sum(np.sum((sparse != IGNORE) & (sparse != dense)) for sparse, dense in pairs)),
        "classes_hit_percent": round(100 * float((hit & present).sum() / present.sum()), 1),
        "images_hit": {name: f"{hit[:, i].sum()}/{present[:, i].sum()}" for i, name in enumerate(names)},
    }


def scribbled(frame: DenseFrame, dense: U8, preset: Preset) -> tuple[U8, float]:
    """Scribbles (H, W) of a frame with seed 0, and the CPU seconds that they took."""
    start = time.process_time()
    curves = make_curves(dense, preset, keyed_generator(0, frame[0]))
    sparse = draw_scribbles(curves, dense, preset.length, preset.thickness)
    return sparse, time.process_time() - start


def timing(seconds: list[float], pairs: list[tuple[U8, U8]]) -> dict[str, Any]:
    """CPU per image, and the share of pixels labelled."""
    return {
        "images": len(seconds),
        "cpu_seconds_per_image": {"mean": round(float(np.mean(seconds)), 3), "max": round(max(seconds), 3)},
        "labelled_percent": round(100 * float(np.mean([np.mean(sparse != IGNORE) for sparse, _ in pairs])), 2),
        "wrong_pixels": int(sum(np.sum((sparse != IGNORE) & (sparse != dense)) for sparse, dense in pairs)),
    }


def measure(root: Path, theirs: Path, enlarged: int) -> dict[str, Any]:
    """Statistics of both generators on the images that both have, of ours on all, and times."""
    entry = dataset_entry("camvid")
    classes, names = entry.class_map(), entry.class_map().names
    frames = dense_frames(root, load_config("camvid", None, None, None, []).dataset, entry)
    dense = [file.read(image_size(file.path)) for _, file in frames]
    made = [scribbled(frame, label, PRESETS["default"]) for frame, label in zip(frames, dense, strict=True)]
    ours = [(sparse, label) for (sparse, _), label in zip(made, dense, strict=True)]
    files = {i: theirs / Path(str(file.path)).name for i, (_, file) in enumerate(frames)}
    both = [i for i, path in files.items() if path.is_file()]
    others = [(LabelFile(files[i], "gray8", classes).read(dense[i].shape), dense[i]) for i in both]
    chosen = np.linspace(0, len(frames) - 1, enlarged, dtype=int)
    large = [cv2.resize(dense[i], CITYSCAPES, interpolation=cv2.INTER_NEAREST) for i in chosen]
    timed = [scribbled(frames[i], label, PRESETS["cityscapes"]) for i, label in zip(chosen, large, strict=True)]
    large_pairs = [(sparse, label) for (sparse, _), label in zip(timed, large, strict=True)]
    return {
        "theirs": statistics(others, names),
        "ours, same images": statistics([ours[i] for i in both], names),
        "ours, all images": statistics(ours, names),
        "time, CamVid 480×360": timing([seconds for _, seconds in made], ours),
        "time, enlarged to 2048×1024, preset cityscapes": timing([seconds for _, seconds in timed], large_pairs),
    }


def main() -> None:
    """Print a table, and write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("camvid", type=Path)
    parser.add_argument("--theirs", type=Path, required=True)
    parser.add_argument("--enlarged", type=int, default=20, help="images to time at Cityscapes' size")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    results = measure(options.camvid, options.theirs, options.enlarged)
    for title, row in results.items():
        print(title)
        for name, value in row.items():
            print(f"  {name:24} {value}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
