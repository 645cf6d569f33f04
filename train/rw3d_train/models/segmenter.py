"""The 2D network of a recipe."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from rw3d_common.errors import UserError
from rw3d_train.models.eomt import RANDOM, eomt
from rw3d_train.models.pretrained import model_type
from rw3d_train.models.segformer import segformer
from rw3d_train.models.unet import UNet


def segmenter(name: str, classes: Sequence[str]) -> nn.Module:
    """The 2D network that `name` stands for, in training mode, for these classes (names by train id).

    Args:
        name: "unet", "random:b0" … "random:b5", "random:eomt-tiny", or a hub id or local folder of a SegFormer or EoMT.
        classes: names by train id.

    Raises:
        UserError: an unknown name, weights that are not there, or those of another network.
    """
    if name == "unet":
        return UNet(len(classes))
    if name == RANDOM:
        return eomt(name, classes)
    if name.startswith("random:"):
        return segformer(name, classes)
    match model_type(name):
        case "segformer":
            return segformer(name, classes)
        case "eomt":
            return eomt(name, classes)
        case other:
            raise UserError(f"{name}: a network of type {other}; give a SegFormer or an EoMT, or unet")
