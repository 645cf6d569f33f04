"""Why a run of Rewis3d gains, or does not: what its teachers tell the students, and how much of that is right.

Dense labels take part in nothing but these numbers; where scenes have none, those that need them are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rw3d_common.labels import IGNORE
from rw3d_train.data.collate import Batch, collate_pairs
from rw3d_train.distributed import rank
from rw3d_train.losses import points_at_pixels, pseudo_labels
from rw3d_train.methods.rewis3d import Rewis3d
from rw3d_train.models.images import normalize, upsample
from rw3d_train.models.points import point_features
from rw3d_train.networks import evaluating

if TYPE_CHECKING:
    from rw3d_train.run import Run

BINS = 20
Lesson = dict[str, Tensor]


@torch.no_grad()
def diagnose(run: Run) -> dict[str, Any]:
    """Numbers over `run.diagnose` training items, augmented as in the epoch just done; docs/training.md explains each.

    Empty for methods without a 3D teacher, and on all processes but the first.
    """
    count = min(run.config.run.diagnose, len(run.data.train))
    if not isinstance(run.method, Rewis3d) or count == 0 or rank() != 0:
        return {}
    items = run.data.train.with_truth()
    lessons: dict[str, list[Lesson]] = {"2d": [], "3d": []}
    shown = 0
    with evaluating(run.networks().values()):
        for index in range(count):
            pair = collate_pairs([items[int((index + 0.5) * len(items) / count)]])
            student, teacher = (batch.to(run.device) for batch in pair)
            shown += int((points_at_pixels(student.correspondences, (1, *student.label.shape[1:])) >= 0).sum())
            for name, lesson in lessons_of(run.method, student, teacher).items():
                lessons[name].append(lesson)
    joint = {name: {key: torch.cat([one[key] for one in some]) for key in some[0]} for name, some in lessons.items()}
    pixels = count * student.label[0].numel()
    numbers: dict[str, Any] = {
        "correspondences": shown / pixels,
        "taught": len(joint["2d"]["label"]) / shown if shown else None,
        "agreement": _share(joint["2d"]["label"] == joint["2d"]["known"]),
        **_precision(joint["2d"], "2d"),
        **_precision(joint["3d"], "3d"),
        **_histogram(joint["2d"]["weight"]),
    }
    return {f"diagnose/{name}": value for name, value in numbers.items() if value is not None}


def lessons_of(method: Rewis3d, student: Batch, teacher: Batch) -> dict[str, Lesson]:
    """What each student is taught, and what the teacher of its own modality says there.

    {"2d": …, "3d": …}, each with `label` and `known` (M,) int64 train ids, `weight` (M,) float and `truth` (M,) train ids, 255
    where there is none; M pseudo-labels.
    """
    size = (student.label.shape[1], student.label.shape[2])
    taught_images = upsample(method.teachers["2d"](normalize(teacher.image)), size)
    taught_points = method.teachers["3d"](teacher.position, point_features(teacher), teacher.offset)
    label_2d, weight_2d = method.targets_2d(student, teacher, taught_points)
    label_3d, weight_3d = method.targets_3d(student, taught_images)
    # The sky teacher's pixels show no point: they are no lesson of geometry.
    label_2d = torch.where(points_at_pixels(student.correspondences, (1, *size)) >= 0, label_2d, IGNORE)
    return {
        "2d": _lesson(label_2d, weight_2d, pseudo_labels(taught_images)[0], student.truth),
        "3d": _lesson(label_3d, weight_3d, pseudo_labels(taught_points)[0], student.point_truth),
    }


def _lesson(label: Tensor, weight: Tensor, known: Tensor, truth: Tensor | None) -> Lesson:
    given = label != IGNORE
    truth = torch.full_like(label, IGNORE) if truth is None else truth
    return {"label": label[given], "weight": weight[given], "known": known[given], "truth": truth[given]}


def _precision(lesson: Lesson, name: str) -> dict[str, float | None]:
    """How often pseudo-labels are right, plain and by weight, and how often the student's own teacher is right there."""
    counted = lesson["truth"] != IGNORE
    right = (lesson["label"] == lesson["truth"])[counted]
    weight = lesson["weight"][counted].double()
    return {
        f"precision_{name}": _share(right),
        f"weighted_precision_{name}": float((weight * right).sum() / weight.sum()) if weight.sum() > 0 else None,
        f"known_{name}": _share((lesson["known"] == lesson["truth"])[counted]),
    }


def _share(right: Tensor) -> float | None:
    return float(right.double().mean()) if len(right) else None


def _histogram(weight: Tensor) -> dict[str, Any]:
    """Counts of the weights that pixels are taught with, in equal bins from 0 to the largest."""
    if not len(weight):
        return {}
    largest = max(float(weight.max()), 1e-12)
    counts = torch.histc(weight.float(), BINS, 0, largest).long().tolist()
    return {"weights_2d": counts, "weight_edges": [largest * index / BINS for index in range(BINS + 1)]}
