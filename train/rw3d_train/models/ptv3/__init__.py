"""Point Transformer V3 in plain PyTorch: `PointTransformerV3` over voxels, `PointSegmenter` over points."""

from rw3d_train.models.ptv3.model import PointTransformerV3
from rw3d_train.models.ptv3.segmenter import PointSegmenter
from rw3d_train.models.ptv3.voxelize import Voxels, voxelize
from rw3d_train.models.ptv3.weights import WeightReport, load_weights

__all__ = ["PointSegmenter", "PointTransformerV3", "Voxels", "WeightReport", "load_weights", "voxelize"]
