"""From configuration to networks. transformers is imported only for the networks that come from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rw3d_common.errors import UserError
from rw3d_common.labels import ClassMap
from rw3d_common.log import log
from rw3d_train.config import Model2DConfig, Model3DConfig
from rw3d_train.models.eomt import EoMT
from rw3d_train.models.ptv3 import PointSegmenter, load_weights
from rw3d_train.models.ptv3.sizes import SIZES
from rw3d_train.models.segformer import SegFormer
from rw3d_train.models.segmenter import segmenter
from rw3d_train.models.unet import UNet
from rw3d_train.teacher import unwrapped


def make_2d(config: Model2DConfig, classes: ClassMap) -> nn.Module:
    """The 2D student: images (B, 3, H, W) from `images.normalize` → logits (B, C, h, w).

    Raises:
        UserError: weights that are not there, or of another kind of network.
    """
    return segmenter(config.name, classes.names)


def describe_2d(network: nn.Module, classes: ClassMap) -> dict[str, Any]:
    """What `rebuild_2d` needs to make the same network again, without the weights it started from."""
    inner = getattr(unwrapped(network), "network", None)
    if inner is None:
        return {"kind": "unet", "n_classes": len(classes)}
    return {"kind": inner.config.model_type, "config": inner.config.to_dict()}


def rebuild_2d(description: dict[str, Any]) -> nn.Module:
    """The network of a description, with random weights, in eval mode."""
    match description["kind"]:
        case "unet":
            return UNet(description["n_classes"]).eval()
        case "segformer":
            from transformers import SegformerConfig, SegformerForSemanticSegmentation

            return SegFormer(SegformerForSemanticSegmentation(SegformerConfig.from_dict(description["config"]))).eval()
        case "eomt":
            from transformers import EomtConfig, EomtForUniversalSegmentation

            return EoMT(EomtForUniversalSegmentation(EomtConfig.from_dict(description["config"]))).eval()
        case kind:
            raise UserError(
                f"checkpoint.json: unknown kind of network '{kind}'; use the rw3d that wrote this checkpoint"
            )


def n_classes_3d(classes: ClassMap) -> int:
    """C3: classes with a surface. Those without, such as sky, come last, so 3D ids are 2D ids.

    Raises:
        UserError: a class without surface comes before one that has one.
    """
    count = sum(item.in_3d for item in classes.classes)
    for item in classes.classes[:count]:
        if not item.in_3d:
            raise UserError(
                f"class '{item.name}' has no surface (in_3d: false) and train id {item.train_id}; in data_manifest.yaml "
                f"give such classes the last train ids, from {count} on, and reconstruct the scenes again"
            )
    return count


def make_3d(config: Model3DConfig, classes: ClassMap) -> PointSegmenter:
    """The 3D student: (position, point_features, offset) → logits (N, C3).

    Raises:
        UserError: weights that are not there, or do not fit, or a package that is not installed.
    """
    model = PointSegmenter(n_classes_3d(classes), config.voxel, conv=config.conv, **SIZES[config.size])
    if config.weights is not None:
        # Sonata and Concerto are published as encoders.
        missing = ("seg_head.*",) if model.backbone.config.variant == "m1" else ("seg_head.*", "dec.*")
        report = load_weights(model, config.weights, missing)
        log.info(f"3D weights of {config.weights}: {report}")
    return model


@contextmanager
def evaluating(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Networks in eval mode; afterwards each is in the mode it was in."""
    modes = [(network, network.training) for network in networks]
    for network, _ in modes:
        network.eval()
    try:
        yield
    finally:
        for network, training in modes:
            network.train(training)


def parameters(network: nn.Module) -> int:
    """How many numbers training changes."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def compiled(network: nn.Module, wanted: bool) -> nn.Module:
    """The network through torch.compile, where wanted."""
    return torch.compile(network) if wanted else network
