"""Small samples and networks around which a method can be held to its formula by hand."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from rw3d_common.labels import ClassMap, LabelClass
from rw3d_train.data.collate import collate
from rw3d_train.data.sample import Sample
from rw3d_train.methods import make_method
from rw3d_train.models.images import normalize
from rw3d_train.models.points import point_features

NAMES = ("road", "car", "pole", "sky")
SKY = 3
CLASSES = ClassMap(tuple(LabelClass(i, name, (i,), (i, i, i), name != "sky") for i, name in enumerate(NAMES)))
H, W, OWN, POINTS = 6, 8, 9, 14


class Points(nn.Module):
    """A network with the signature of PTv3's segmenter."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, position, features, offset):
        return self.head(features)


def sample(seed: int, truth: bool = True) -> Sample:
    rng = np.random.default_rng(seed)
    pixels = rng.permutation(H * W)[:OWN]
    sparse = np.where(rng.random((H, W)) < 0.3, rng.integers(0, 4, (H, W)), 255).astype(np.uint8)
    return Sample(
        key=f"train/a/{seed}/cam#0",
        image=rng.integers(0, 256, (H, W, 3), dtype=np.uint8),
        label=sparse,
        truth=rng.integers(0, 4, (H, W)).astype(np.uint8) if truth else None,
        position=rng.normal(size=(POINTS, 3)).astype(np.float32),
        color=rng.integers(0, 256, (POINTS, 3), dtype=np.uint8),
        confidence=(1 + rng.exponential(size=POINTS)).astype(np.float32),
        point_label=rng.choice([0, 1, 2, SKY, 255, 255], POINTS).astype(np.uint8),
        point_truth=None,
        pixel=np.stack(np.divmod(pixels, W), 1).astype(np.float32),
        camera_to_world=np.eye(4),
    )


def batch(truth: bool = True):
    return collate([sample(1, truth), sample(2, truth)])


def method_of(config, seed: int = 0, sky_bias: float = 0.0):
    """The method around small networks; its teachers have weights of their own."""
    torch.manual_seed(seed)
    points = None if getattr(config, "points", True) is False else Points()
    made = make_method(config, nn.Conv2d(3, 4, 3, padding=1), points, CLASSES)
    for teacher in made.teachers.values():
        for parameter in teacher.module.parameters():
            parameter.add_(torch.randn_like(parameter))
    if sky_bias:
        made.teachers["2d"].module.bias[SKY] += sky_bias
    return made


def logits_of(method, one):
    """Logits of student and teacher in both modalities."""
    image, features = normalize(one.image), point_features(one)
    return (
        method.students["2d"](image),
        method.teachers["2d"].module(image),
        method.students["3d"](one.position, features, one.offset),
        method.teachers["3d"].module(one.position, features, one.offset),
    )


def slow_targets(one, taught_2d, taught_3d, use="both"):
    """Labels and weights for pixels and points, correspondence by correspondence."""
    at_pixels, pixel_weight = torch.full((2, H, W), 255), torch.zeros(2, H, W)
    at_points, point_weight = torch.full((2 * POINTS,), 255), torch.zeros(2 * POINTS)
    pairs = one.correspondences
    for image, row, column, point in zip(pairs.image, pairs.row, pairs.column, pairs.point, strict=True):
        place = (int(image), round(float(row)), round(float(column)))
        confidence = float(one.confidence[point]) if use in ("both", "reconstruction") else 1.0
        p3, p2 = taught_3d[point].softmax(0), taught_2d[place[0], :, place[1], place[2]].softmax(0)
        at_pixels[place] = p3.argmax()
        pixel_weight[place] = confidence * (float(p3.max()) if use in ("both", "prediction") else 1.0)
        if p2.argmax() != SKY:
            at_points[point] = p2.argmax()
        point_weight[point] = confidence * (float(p2.max()) if use in ("both", "prediction") else 1.0)
    return at_pixels, pixel_weight, at_points, point_weight
