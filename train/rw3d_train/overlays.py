"""Pictures of training items: what the student is shown, told and taught, and what it and its teacher say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageFilter

from rw3d_common.errors import disk_errors
from rw3d_common.labels import IGNORE, U8
from rw3d_train.data.collate import collate_pairs
from rw3d_train.distributed import rank
from rw3d_train.methods.rewis3d import Rewis3d
from rw3d_train.models.images import normalize, upsample
from rw3d_train.models.points import point_features
from rw3d_train.networks import evaluating
from rw3d_train.predict import overlay

if TYPE_CHECKING:
    from rw3d_train.run import Run

THICK = 3  # pixels: a scribble one pixel wide vanishes in a small picture
GAP = 4


@torch.no_grad()
def write_overlays(run: Run) -> None:
    """One picture per evaluation, `overlays/epoch_0005.png`: a row per item, augmented as in the epoch just done.

    Columns: the student's image, the sparse label, teacher, student, the 3D teacher's label at every pixel that shows a
    point (white where none; absent in methods without a 3D network), and the truth where it was read.
    """
    count = min(run.config.run.overlays, len(run.data.train))
    if count == 0 or rank() != 0:
        return
    numbers = [int((index + 0.5) * len(run.data.train) / count) for index in range(count)]
    with evaluating(run.networks().values()):
        rows = [_row(run, number) for number in numbers]
    widest = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, GAP), (0, widest - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    folder = run.out / "overlays"
    with disk_errors(folder):
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.concatenate(rows)).save(folder / f"epoch_{run.epoch:04d}.png")


def _row(run: Run, number: int) -> U8:
    shown, weak = run.data.train[number]
    student, teacher = (batch.to(run.device) for batch in collate_pairs([(shown, weak)]))
    classes, networks = run.data.classes, run.networks()
    panels = [shown.image, overlay(weak.image, _thicker(weak.label), classes, opacity=1.0)]
    for name, batch, image in (("teacher_2d", teacher, weak.image), ("student_2d", student, shown.image)):
        if name in networks:
            said = upsample(networks[name](normalize(batch.image)), image.shape[:2])[0].argmax(0)
            panels.append(overlay(image, _array(said), classes))
    if isinstance(run.method, Rewis3d):
        taught = networks["teacher_3d"](teacher.position, point_features(teacher), teacher.offset)
        target, _ = run.method.targets_2d(student, teacher, taught)
        panels.append(overlay(np.full_like(weak.image, 255), _array(target[0]), classes, opacity=1.0))
    if weak.truth is not None:
        panels.append(overlay(weak.image, weak.truth, classes))
    gap = np.full((len(weak.image), GAP, 3), 255, np.uint8)
    return np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)


def _array(labels: torch.Tensor) -> U8:
    return labels.to(torch.uint8).cpu().numpy()


def _thicker(labels: U8) -> U8:
    """Labels with every labelled pixel grown to a square of `THICK` pixels over what is unlabelled."""
    grown = Image.fromarray(labels).filter(ImageFilter.MinFilter(THICK))
    return np.where(labels == IGNORE, np.asarray(grown), labels)
