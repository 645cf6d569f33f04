"""Losses of weakly supervised segmentation: plain functions of tensors, each usable alone.

Shapes: logits are (M, C) for M points or (B, C, H, W) for images, labels (M,) or (B, H, W) integers with 255 =
unlabelled. Every loss is a 0-dim tensor of the logits' dtype, float32 where they are half precision, so each may be
called inside or outside autocast. Empty sets give 0, with a graph, never NaN. Nothing waits for the device or changes
shape with the labels, so each loss can be compiled. With several processes, counts are those of all of them: the mean of
the processes' losses, as of their gradients, is the loss of the joint batch.

Formulas: Rewis3d (Ernst et al., CVPR 2026, arXiv 2603.06374), Eq. 2–6, and its released code where that differs.
"""

from rw3d_train.losses.balance import class_balance
from rw3d_train.losses.confidence import (
    certain_only,
    dual_confidence,
    normalized_confidence,
    pseudo_labels,
    surface_only,
)
from rw3d_train.losses.consistency import base_objective, confident_share, consistency
from rw3d_train.losses.cross_modal import cross_modal
from rw3d_train.losses.projection import gather_from_pixels, points_at_pixels, project_to_pixels
from rw3d_train.losses.ramp import ramp
from rw3d_train.losses.sky import add_sky
from rw3d_train.losses.supervised import supervised

__all__ = [
    "add_sky",
    "base_objective",
    "certain_only",
    "class_balance",
    "confident_share",
    "consistency",
    "cross_modal",
    "dual_confidence",
    "gather_from_pixels",
    "normalized_confidence",
    "points_at_pixels",
    "project_to_pixels",
    "pseudo_labels",
    "ramp",
    "supervised",
    "surface_only",
]
