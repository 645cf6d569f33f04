"""What the 3D network is given of each point."""

from __future__ import annotations

import torch
from torch import Tensor

from rw3d_train.data.collate import Batch


def point_features(batch: Batch) -> Tensor:
    """(N, 6) float32: coordinates in metres as they are, and colours in [0, 1], as Rewis3d, Sonata and Concerto feed them."""
    return torch.cat([batch.position, batch.color / 255], dim=1)
