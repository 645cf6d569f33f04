"""Segmentation of points with PTv3: voxelise, run, classify, scatter back."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from rw3d_train.models.ptv3.model import PointTransformerV3
from rw3d_train.models.ptv3.serialization import MOST_BITS
from rw3d_train.models.ptv3.voxelize import voxelize


class PointSegmenter(nn.Module):  # type: ignore[misc]
    """PTv3 and a linear layer over its features, `backbone` and `seg_head` as in published checkpoints.

    Points are voxelised, every point gets the logits of its voxel. The released Rewis3d feeds points as they are, so that
    several share a cell, and spconv lets one of them stand for all.

    The codes take 16 bits per axis by default rather than what the largest element of a batch needs: Hilbert curves of
    different depth run differently, so with the official rule the logits of an element depend on its neighbours in the
    batch.

    Args:
        classes: number of logits.
        voxel_size: metres.
        zero_channels: zeros behind the features, for weights that were trained with more than points have.
        config: see `PTv3Config`.
    """

    def __init__(self, classes: int, voxel_size: float = 0.05, zero_channels: int = 0, **config: Any) -> None:
        super().__init__()
        self.voxel_size, self.zero_channels = voxel_size, zero_channels
        self.backbone = PointTransformerV3(**{"depth": MOST_BITS, **config})
        self.seg_head = nn.Linear(self.backbone.out_channels, classes)

    def forward(self, coord: Tensor, feat: Tensor, offset: Tensor) -> Tensor:
        """Logits (N, classes) of points `coord` (N, 3) metres with features `feat`; see `voxelize`.

        `feat` (N, in_channels − zero_channels).

        Raises:
            UserError: what `voxelize` or `PointTransformerV3.forward` refuse.
        """
        voxels = voxelize(coord, feat, offset, self.voxel_size)
        feat = functional.pad(voxels.feat, (0, self.zero_channels))
        features = self.backbone(voxels.coord, feat, voxels.grid, voxels.offset)
        return self.seg_head(features)[voxels.voxel_of_point]
