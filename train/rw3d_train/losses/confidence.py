"""Pseudo-labels of a teacher, and how much each of them counts (Rewis3d, Eq. 5–6)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rw3d_common.labels import IGNORE
from rw3d_train.losses.supervised import at_least_float32


def pseudo_labels(teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """The teacher's class and its softmax probability: (M, C) → two of (M,), (B, C, H, W) → two of (B, H, W).

    Classes are int64, probabilities at least float32, both constants.
    """
    probability, label = at_least_float32(teacher_logits.detach()).softmax(1).max(1)
    return label, probability


def certain_only(label: Tensor, probability: Tensor, threshold: float) -> Tensor:
    """`label` (train ids of any shape) with 255 where its `probability`, of the same shape, is below `threshold`.

    The paper has no threshold; 0 leaves all labels in.
    """
    return torch.where(probability >= threshold, label, IGNORE)


def surface_only(label: Tensor, in_3d: Tensor) -> Tensor:
    """`label` (train ids or 255) with 255 for classes without surface, such as sky, which no point may be taught.

    Args:
        label: integers of any shape.
        in_3d: (256,) bool by train id, `torch.from_numpy(class_map.in_3d)` on the labels' device.
    """
    return torch.where(in_3d[label.long()], label, IGNORE)


def normalized_confidence(
    confidence: Tensor, offset: Tensor, normalization: Literal["raw", "rank", "log"] = "raw"
) -> Tensor:
    """Reconstruction confidence c of N points as finite weights (N,), at least float32. c = 1 everywhere stays 1.

    Confidences of MapAnything start at 1 and have no upper bound. Each is compared within its sample only, so a
    sample's weights do not depend on what else is in the batch.

    * "raw": c. Where c is +inf, the largest finite c of the sample stands in, or 1 if it has none above 0.
    * "log": log2(1 + c), after the same replacement.
    * "rank": the share of the sample's points whose c is at most this one's, in (0, 1]; equal c get equal ranks, and
      +inf is simply the largest.

    Args:
        confidence: (N,), not negative, not NaN.
        offset: (B,) int64, the number of points up to and including each sample.
        normalization: see above.
    """
    confidence = at_least_float32(confidence)
    point = torch.arange(len(confidence), device=confidence.device)
    sample = torch.searchsorted(offset, point, right=True)
    if normalization == "rank":
        return _rank(confidence, offset, sample).to(confidence.dtype)
    finite = torch.where(confidence.isinf(), 0, confidence)
    largest = confidence.new_zeros(len(offset)).scatter_reduce(0, sample, finite, "amax")
    stand_in = torch.where(largest > 0, largest, 1)[sample]
    finite = torch.where(confidence.isinf(), stand_in, confidence)
    return torch.log2(1 + finite) if normalization == "log" else finite


def _rank(confidence: Tensor, offset: Tensor, sample: Tensor) -> Tensor:
    value = torch.searchsorted(confidence.sort().values, confidence)  # equal confidences get equal numbers
    key = sample * len(confidence) + value
    up_to_here = torch.searchsorted(key.sort().values, key, right=True)
    size = torch.diff(offset, prepend=offset.new_zeros(1))
    return (up_to_here - (offset - size)[sample]) / size[sample]


def dual_confidence(
    prediction: Tensor,
    reconstruction: Tensor,
    use: Literal["both", "prediction", "reconstruction", "none"] = "both",
) -> Tensor:
    """Weight of each pseudo-label: the teacher's probability times the point's confidence, either alone, or 1 (Eq. 6).

    Args:
        prediction: largest softmax probability of the teacher, any shape.
        reconstruction: `normalized_confidence` of the same points or pixels, same shape.
        use: which of the two count.
    """
    match use:
        case "both":
            return prediction * reconstruction
        case "prediction":
            return prediction
        case "reconstruction":
            return reconstruction
        case "none":
            return torch.ones_like(prediction)
