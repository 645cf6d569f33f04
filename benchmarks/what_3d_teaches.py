"""What the 3D teacher of a finished run of Rewis3d tells the 2D student, class by class, against dense labels.

    python benchmarks/what_3d_teaches.py RUN [--items 16]

Prints one line per class that occurs: its share of pixels, of sparse labels and of pseudo-labels; of the pixels of that
class that have a pseudo-label, how many the 3D teacher names right and how many the 2D teacher does; how many of the
pseudo-labels of that name are right; and the mean weight (dual confidence) of a pixel of that class. Then one line per
probability of the 3D teacher, over all pixels that show a point, whatever the threshold: their share, how many are right, and
where the 2D teacher says otherwise, which of the two is right. Percent but for the weight.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rw3d_common.labels import IGNORE
from rw3d_train import losses
from rw3d_train.config import read_train_config
from rw3d_train.data.collate import Batch, collate_pairs
from rw3d_train.methods.rewis3d import Rewis3d
from rw3d_train.models.images import normalize, upsample
from rw3d_train.models.points import point_features
from rw3d_train.networks import evaluating
from rw3d_train.run import Run

HEAD = (
    "class",
    "pixels",
    "labels",
    "pseudo-labels",
    "3D names right",
    "2D names right",
    "pseudo-labels right",
    "weight",
)
HEAD_CERTAIN = ("probability", "pixels", "3D right", "teachers differ", "3D right there", "2D right there")
PROBABILITIES = (0, 0.5, 0.7, 0.9, 0.97, 1.001)
Pixels = dict[str, npt.NDArray[Any]]


def counts(labels: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """How often each train id occurs."""
    return np.bincount(labels[labels != IGNORE], minlength=IGNORE).astype(float)


def shown_pixels(method: Rewis3d, student: Batch, teacher: Batch) -> Pixels:
    """What both teachers say at the pixels that show a point, beside the truth and the weight of the pseudo-label."""
    size = (student.label.shape[1], student.label.shape[2])
    taught = method.teachers["3d"](teacher.position, point_features(teacher), teacher.offset)
    known, _ = losses.pseudo_labels(upsample(method.teachers["2d"](normalize(teacher.image)), size))
    label, probability = losses.pseudo_labels(taught)
    _, weight = method.targets_2d(student, teacher, taught)
    point = losses.points_at_pixels(student.correspondences, (1, *size))
    shown = point >= 0
    found = {
        "said": label[point[shown]],
        "probability": probability[point[shown]],
        "weight": weight[shown],
        "known": known[shown],
        "truth": student.truth[shown],
    }
    return {key: value.numpy() for key, value in found.items()}


@torch.no_grad()
def look(run: Run, count: int) -> tuple[Pixels, Pixels]:
    """`shown_pixels` of `count` training items, and their sparse labels and truth at all pixels."""
    items, shown, labels = run.data.train.with_truth(), [], []
    with evaluating(run.networks().values()):
        for index in range(count):
            student, teacher = collate_pairs([items[int((index + 0.5) * len(items) / count)]])
            shown.append(shown_pixels(run.method, student, teacher))
            labels.append({"label": student.label.numpy().ravel(), "truth": student.truth.numpy().ravel()})
    joint = [{key: np.concatenate([one[key] for one in some]) for key in some[0]} for some in (shown, labels)]
    return joint[0], joint[1]


def by_class(names: list[str], shown: Pixels, labels: Pixels, threshold: float) -> list[tuple[str, ...]]:
    """One row of `HEAD` per class that occurs."""
    taught = {key: value[shown["probability"] >= threshold] for key, value in shown.items()}
    shares = [each / each.sum() for each in map(counts, (labels["truth"], labels["label"], taught["said"]))]
    rows = []
    for train_id, name in enumerate(names):
        there, said = taught["truth"] == train_id, taught["said"] == train_id
        if not there.any():
            continue
        right = (said[there], taught["known"][there] == train_id, there[said] if said.any() else np.zeros(1))
        numbers = [share[train_id] for share in shares] + [each.mean() for each in right]
        rows.append((name, *(f"{100 * value:.1f}" for value in numbers), f"{taught['weight'][there].mean():.1f}"))
    return rows


def by_probability(shown: Pixels) -> list[tuple[str, ...]]:
    """One row of `HEAD_CERTAIN` per range of the 3D teacher's probability."""
    kept = {key: value[shown["truth"] != IGNORE] for key, value in shown.items()}
    right, known = kept["said"] == kept["truth"], kept["known"] == kept["truth"]
    rows = []
    for low, high in pairwise(PROBABILITIES):
        here = (kept["probability"] >= low) & (kept["probability"] < high)
        differ = here & (kept["said"] != kept["known"])
        numbers = (here.mean(), right[here].mean(), differ.mean(), right[differ].mean(), known[differ].mean())
        rows.append((f"{low} to {min(high, 1)}", *(f"{100 * value:.1f}" for value in numbers)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--items", type=int, default=16)
    options = parser.parse_args()
    config = read_train_config(options.run / "config.yaml", [])
    run = Run.start(config, options.run, torch.device("cpu"), resume=True)
    if not isinstance(run.method, Rewis3d):
        raise SystemExit(f"{options.run}: a run of {config.method.kind}; only rewis3d has a 3D teacher")
    if run.data.train.with_truth().sample(0).truth is None:
        raise SystemExit(f"{config.data.stores}: no dense labels to compare with; reconstruct with them")
    shown, labels = look(run, options.items)
    tables = (
        (HEAD, *by_class(run.data.classes.names, shown, labels, run.method.config.cross_modal.threshold)),
        (HEAD_CERTAIN, *by_probability(shown)),
    )
    for table in tables:
        print("\n".join("| " + " | ".join(row) + " |" for row in table), end="\n\n")


if __name__ == "__main__":
    main()
