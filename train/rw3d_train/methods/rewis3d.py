"""Rewis3d (Ernst et al., CVPR 2026): 2D and 3D student–teacher pairs that teach each other through correspondences.

Equation numbers are the paper's. No gradient crosses from one modality to the other.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rw3d_common.config import Section
from rw3d_common.errors import UserError
from rw3d_common.labels import ClassMap
from rw3d_train import losses
from rw3d_train.data.collate import Batch
from rw3d_train.methods.ema import BaseConfig, base_losses
from rw3d_train.models.images import normalize, upsample
from rw3d_train.models.points import point_features
from rw3d_train.teacher import MeanTeacher, frozen_copy


class CrossModalConfig(Section):
    """Cross-modal consistency (CMC), Eq. 5–7."""

    start: int = Field(15, ge=0)
    """First epoch, counted from 0, in which the modalities teach each other."""
    ramp: int = Field(5, ge=0)
    """Epochs over which λ grows to its maximum, linearly."""
    weight_2d: float = Field(0.1, ge=0)
    """λ of the 2D student's loss (3D teaches 2D)."""
    weight_3d: float = Field(0.1, ge=0)
    """λ of the 3D student's loss (2D teaches 3D)."""
    confidence: Literal["both", "prediction", "reconstruction", "none"] = "both"
    """What a pseudo-label counts by: the teacher's probability, the reconstruction's confidence, both, or neither."""
    confidence_scale: Literal["raw", "rank", "log"] = "raw"
    """Reconstruction confidences as they are, or per sample as ranks in (0, 1], or as log2(1 + c)."""
    normalization: Literal["pairs", "sum_of_weights", "sum"] = "sum_of_weights"
    """What Σ w·CE of Eq. 5 is divided by: the sum of weights, so that λ means the same whatever the scale of the
    confidences (MapAnything's have no upper bound, stereo's reach 11, LiDAR's are 1); the number of pseudo-labels; or
    nothing, as Eq. 5 is printed, whose size then grows with the crop."""
    balance: float = Field(0.0, ge=0, le=1)
    """As `balance` of the method, over pseudo-labels: 0 as in the paper."""
    threshold: float = Field(0.0, ge=0, lt=1)
    """Pseudo-labels to which their teacher gives less probability do not count: 0 as in the paper. Of use where λ is large
    (benchmarks/README.md): the weight, linear in the probability, hardly tells right labels from wrong ones."""
    sky_teacher: bool = False
    """Let a copy of the 2D teacher, frozen when CMC starts, name the sky, which has no points to be taught by."""


class Rewis3dConfig(BaseConfig):
    kind: Literal["rewis3d"] = "rewis3d"
    cross_modal: CrossModalConfig = CrossModalConfig()


class Rewis3d:
    """L_2D + λ_2D CMC_2D for the images' student, L_3D + λ_3D CMC_3D for the points' student (Eq. 7)."""

    def __init__(self, config: Rewis3dConfig, student_2d: nn.Module, student_3d: nn.Module, classes: ClassMap) -> None:
        self.config = config
        self.students = {"2d": student_2d, "3d": student_3d}
        self.teachers = {name: MeanTeacher(student, config.teacher) for name, student in self.students.items()}
        self.in_3d = torch.from_numpy(classes.in_3d)
        self.sky = next((item.train_id for item in classes.classes if not item.in_3d), None)
        self.sky_teacher: nn.Module | None = None
        if config.cross_modal.sky_teacher and self.sky is None:
            raise UserError(
                "method.cross_modal.sky_teacher: no class of this dataset is without surface; set it to false"
            )

    def begin_epoch(self, epoch: int) -> None:
        """Freeze the sky teacher when CMC starts."""
        if self.config.cross_modal.sky_teacher and epoch == self.config.cross_modal.start:
            self.sky_teacher = frozen_copy(self.teachers["2d"].module)

    def losses(self, student: Batch, teacher: Batch, epoch: int) -> dict[str, Tensor]:
        """{"2d": total, "3d": total} and their parts."""
        images, taught_images = self._images(student, teacher)
        points, taught_points = self._points(student, teacher)
        in_3d = self.in_3d.to(student.label.device)
        point_label = losses.surface_only(student.point_label, in_3d)
        total_2d, parts_2d = base_losses(images, taught_images, student.label, self.config, self.config.consistency_2d)
        total_3d, parts_3d = base_losses(points, taught_points, point_label, self.config, "points")
        found = {f"{name}_2d": value for name, value in parts_2d.items()}
        found |= {f"{name}_3d": value for name, value in parts_3d.items()}
        cmc = self.config.cross_modal
        if epoch >= cmc.start:
            weight_2d, weight_3d = (losses.ramp(epoch, cmc.start, cmc.ramp, w) for w in (cmc.weight_2d, cmc.weight_3d))
            found["cross_modal_2d"] = losses.cross_modal(
                images, *self.targets_2d(student, teacher, taught_points), cmc.normalization, cmc.balance
            )
            found["cross_modal_3d"] = losses.cross_modal(
                points, *self.targets_3d(student, taught_images), cmc.normalization, cmc.balance
            )
            total_2d = total_2d + weight_2d * found["cross_modal_2d"]
            total_3d = total_3d + weight_3d * found["cross_modal_3d"]
        return {"2d": total_2d, "3d": total_3d, **found}

    def targets_2d(self, student: Batch, teacher: Batch, taught_points: Tensor) -> tuple[Tensor, Tensor]:
        """Pseudo-labels (B, H, W) of the 3D teacher at the pixels that show a point, 255 elsewhere, and weights (Eq. 5–6)."""
        cmc = self.config.cross_modal
        label, probability = losses.pseudo_labels(taught_points)
        label = losses.certain_only(label, probability, cmc.threshold)
        confidence = losses.normalized_confidence(student.confidence, student.offset, cmc.confidence_scale)
        weight = losses.dual_confidence(probability, confidence, cmc.confidence)
        shown = losses.points_at_pixels(student.correspondences, (len(student), *student.label.shape[1:]))
        label = losses.project_to_pixels(label, shown, fill=255)
        weight = losses.project_to_pixels(weight, shown, fill=0)
        if self.sky_teacher is not None and self.sky is not None:
            with torch.no_grad():
                sky = upsample(self.sky_teacher(normalize(teacher.image)), (label.shape[1], label.shape[2]))
            label, weight = losses.add_sky(label, weight, sky, shown >= 0, self.sky)
        return label, weight

    def targets_3d(self, student: Batch, taught_images: Tensor) -> tuple[Tensor, Tensor]:
        """Pseudo-labels (N,) of the 2D teacher at the points of its own image, 255 elsewhere, and weights (Eq. 5–6)."""
        cmc = self.config.cross_modal
        label, probability = losses.pseudo_labels(taught_images)
        label = losses.certain_only(label, probability, cmc.threshold)
        count = len(student.position)
        label = losses.gather_from_pixels(label, student.correspondences, count, fill=255)
        probability = losses.gather_from_pixels(probability, student.correspondences, count, fill=0)
        confidence = losses.normalized_confidence(student.confidence, student.offset, cmc.confidence_scale)
        label = losses.surface_only(label, self.in_3d.to(label.device))
        return label, losses.dual_confidence(probability, confidence, cmc.confidence)

    def _images(self, student: Batch, teacher: Batch) -> tuple[Tensor, Tensor]:
        """Logits (B, C, H, W) of the 2D student and teacher at the labels' size."""
        size = (student.label.shape[1], student.label.shape[2])
        logits = upsample(self.students["2d"](normalize(student.image)), size)
        return logits, upsample(self.teachers["2d"](normalize(teacher.image)), size)

    def _points(self, student: Batch, teacher: Batch) -> tuple[Tensor, Tensor]:
        """Logits (N, C3) of the 3D student and teacher; rows of both are the same points."""
        logits = self.students["3d"](student.position, point_features(student), student.offset)
        return logits, self.teachers["3d"](teacher.position, point_features(teacher), teacher.offset)
