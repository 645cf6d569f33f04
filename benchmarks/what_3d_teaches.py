"""What the 3D teacher of a finished run of Rewis3d tells the 2D student, class by class, against dense labels.

    python benchmarks/what_3d_teaches.py RUN [--items 16]

Prints one line per class that occurs: its share of pixels, of sparse labels and of pseudo-labels; of the pixels of that
class that show a point, how many the 3D teacher names right and how many the 2D teacher does; how many of the pseudo-labels
of that name are right; and the mean weight (dual confidence) of a pixel of that class. Percent but for the weight.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from rw3d_common.labels import IGNORE
from rw3d_train.config import read_train_config
from rw3d_train.data.collate import collate_pairs
from rw3d_train.diagnose import lessons_of
from rw3d_train.methods.rewis3d import Rewis3d
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


def counts(labels: torch.Tensor) -> npt.NDArray[np.float64]:
    """How often each train id occurs."""
    return np.bincount(labels[labels != IGNORE].numpy(), minlength=IGNORE).astype(float)


@torch.no_grad()
def measure(folder: Path, count: int) -> list[tuple[str, ...]]:
    """One row of `HEAD` per class, over `count` training items."""
    run = Run.start(read_train_config(folder / "config.yaml", []), folder, torch.device("cpu"), resume=True)
    if not isinstance(run.method, Rewis3d):
        raise SystemExit(f"{folder}: a run of {run.config.method.kind}; only rewis3d has a 3D teacher")
    items, lessons = run.data.train.with_truth(), []
    if items.sample(0).truth is None:
        raise SystemExit(f"{run.config.data.stores}: no dense labels to compare with; reconstruct with them")
    truth, sparse = np.zeros(IGNORE), np.zeros(IGNORE)
    with evaluating(run.networks().values()):
        for index in range(count):
            student, teacher = collate_pairs([items[int((index + 0.5) * len(items) / count)]])
            lessons.append(lessons_of(run.method, student, teacher)["2d"])
            truth, sparse = truth + counts(student.truth), sparse + counts(student.label)
    taught = {key: torch.cat([one[key] for one in lessons]).numpy() for key in lessons[0]}
    given = np.bincount(taught["label"], minlength=IGNORE)
    rows = []
    for train_id, name in enumerate(run.data.classes.names):
        there, said = taught["truth"] == train_id, taught["label"] == train_id
        if not there.any():
            continue
        shares = (truth[train_id] / truth.sum(), sparse[train_id] / sparse.sum(), given[train_id] / given.sum())
        right = (
            said[there].mean(),
            (taught["known"][there] == train_id).mean(),
            there[said].mean() if said.any() else 0,
        )
        rows.append(
            (name, *(f"{100 * value:.1f}" for value in (*shares, *right)), f"{taught['weight'][there].mean():.1f}")
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--items", type=int, default=16)
    options = parser.parse_args()
    for row in (HEAD, *measure(options.run, options.items)):
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
