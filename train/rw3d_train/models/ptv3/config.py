"""The published keyword names of PTv3 configurations, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from rw3d_common.config import Section, validate
from rw3d_common.errors import UserError
from rw3d_train.models.ptv3.serialization import MOST_BITS
from rw3d_train.models.ptv3.sparse_conv import Backend

Order = Literal["z", "z-trans", "hilbert", "hilbert-trans"]
# Published options that are not built here, and the one value of theirs that needs nothing built.
NOT_BUILT: dict[str, object] = {
    "pre_norm": True,
    "enable_rpe": False,
    "upcast_attention": False,
    "upcast_softmax": False,
    "pdnorm_bn": False,
    "pdnorm_ln": False,
    "cls_mode": False,
    "freeze_encoder": False,
}
WITHOUT_EFFECT = ("pdnorm_decouple", "pdnorm_adaptive", "pdnorm_affine", "pdnorm_conditions", "traceable")


class PTv3Config(Section):
    """A PTv3 network. The defaults are the published outdoor and indoor configuration of m1, 46.2 M parameters."""

    variant: Literal["m1", "m2"] = "m1"
    """m1: the paper's network. m2: that of Sonata and Concerto, with a linear stem and LayerNorm everywhere."""
    in_channels: int = Field(6, ge=1)
    """Features per point: 6 = position and colour."""
    order: tuple[Order, ...] = Field(("z", "z-trans", "hilbert", "hilbert-trans"), min_length=1)
    """Space-filling curves; block i of a stage uses number i modulo their count."""
    stride: tuple[Literal[2, 4, 8], ...] = (2, 2, 2, 2)
    """How many times larger the voxels of each stage are than those of the stage before."""
    enc_depths: tuple[int, ...] = (2, 2, 2, 6, 2)
    """Blocks per encoder stage."""
    enc_channels: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Channels per encoder stage."""
    enc_num_head: tuple[int, ...] = (2, 4, 8, 16, 32)
    """Attention heads per encoder stage."""
    enc_patch_size: tuple[int, ...] = (1024, 1024, 1024, 1024, 1024)
    """Points per attention window of the encoder stages."""
    dec_depths: tuple[int, ...] = (2, 2, 2, 2)
    """Blocks per decoder stage, finest first."""
    dec_channels: tuple[int, ...] = (64, 64, 128, 256)
    """Channels per decoder stage, finest first."""
    dec_num_head: tuple[int, ...] = (4, 4, 8, 16)
    """Attention heads per decoder stage, finest first."""
    dec_patch_size: tuple[int, ...] = (1024, 1024, 1024, 1024)
    """Points per attention window of the decoder stages, finest first."""
    mlp_ratio: float = Field(4, gt=0)
    """Hidden channels of a block's MLP per channel."""
    qkv_bias: bool = True
    """Whether query, key and value have a bias."""
    qk_scale: float | None = None
    """Factor of query · key; none takes 1 / √(channels per head)."""
    attn_drop: float = Field(0, ge=0, lt=1)
    """Dropout of attention weights in training."""
    proj_drop: float = Field(0, ge=0, lt=1)
    """Dropout after the projections of attention and MLP in training."""
    drop_path: float = Field(0.3, ge=0, lt=1)
    """Share of voxels for which the last block skips its branches in training; rises linearly from 0 at the first."""
    layer_scale: float | None = None
    """m2: initial factor of a block's branches; none has no such parameters."""
    mask_token: bool = False
    """m2: hold the parameter that pretraining replaces masked features with."""
    shuffle_orders: bool = True
    """Permute the orders at every stage: at random in training, always alike in evaluation. False never permutes; the
    official code would still do so when pooling."""
    enable_flash: bool = True
    """Windows of the official flash-attention path: patch size, or the whole of a smaller element. False shrinks all
    windows of a batch to its smallest element, as the official path without flash attention does. Both need no package."""
    enc_mode: bool = False
    """No decoder: features of the last stage, each voxel those of the coarse voxel that holds it."""
    depth: int | None = Field(None, ge=1, le=MOST_BITS)
    """Bits per axis of the codes. none takes what the batch's largest coordinate needs, as the official code does, so
    that features of an element depend on what else is in its batch; a fixed number makes them independent."""
    conv: Backend = "torch"
    """What computes the submanifold convolutions: torch, or the package spconv, with the same parameters."""
    recompute: bool = True
    """Compute linear layers and norms of blocks again in the backward pass instead of keeping them: much less memory."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        stages = len(self.enc_depths)
        for side, count in (("enc", stages), ("dec", 0 if self.enc_mode else stages - 1)):
            for name in ("depths", "channels", "num_head", "patch_size"):
                values = getattr(self, f"{side}_{name}")
                if len(values) != count and count:
                    raise ValueError(f"{side}_{name} has {len(values)} entries; give {count}, one per stage")
                if any(value < 1 for value in values):
                    raise ValueError(f"{side}_{name} is {values}; give numbers of at least 1")
            for channels, heads in zip(
                *(getattr(self, f"{side}_{name}") for name in ("channels", "num_head")), strict=True
            ):
                if channels % heads:
                    raise ValueError(f"{channels} channels do not split into {heads} heads; change {side}_num_head")
        if len(self.stride) != stages - 1:
            raise ValueError(f"stride has {len(self.stride)} entries; give {stages - 1}, one between two stages")
        if self.variant == "m1" and (self.mask_token or self.layer_scale is not None):
            raise ValueError("mask_token and layer_scale belong to m2; set variant to 'm2' or leave them out")
        return self


def read_config(keywords: Mapping[str, Any]) -> PTv3Config:
    """`keywords` of a published configuration as a PTv3Config.

    Raises:
        UserError: an unknown option, an impossible value, or a published option that is not built here.
    """
    for name, only in NOT_BUILT.items():
        if keywords.get(name, only) != only:
            raise UserError(f"PTv3: {name} = {keywords[name]!r} is not supported; set it to {only} or leave it out")
    known = {key: value for key, value in keywords.items() if key not in NOT_BUILT and key not in WITHOUT_EFFECT}
    return validate(PTv3Config, known, "PTv3")
