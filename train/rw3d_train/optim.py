"""AdamW and learning-rate schedules of the 2D and the 3D network."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, PolynomialLR

from rw3d_common.config import Section

Rate = Annotated[float, Field(gt=0)]


class OptimConfig(Section):
    """AdamW for each network. The defaults are the paper's; it gives no weight decay, so the released code's is here."""

    lr_2d: Rate = 5e-5
    """Learning rate of the 2D network; falls linearly to 0. Released code: 3e-5, Cityscapes 5e-5."""
    lr_3d: Rate = 1e-3
    """Largest learning rate of the 3D network; one cycle, rising over the first 4 %. Released code: 2e-3."""
    lr_blocks: Rate | None = None
    """Learning rate of parameters with "block" in their name, in both networks: all attention layers of SegFormer and
    PTv3. null: that of the rest, as in the paper. Released code: 2e-4."""
    weight_decay_2d: float = Field(1e-8, ge=0)
    """Decoupled weight decay of the 2D network."""
    weight_decay_3d: float = Field(5e-3, ge=0)
    """Decoupled weight decay of the 3D network."""


def optimizer_2d(model: nn.Module, config: OptimConfig) -> AdamW:
    """AdamW over the parameters of the 2D student that require a gradient."""
    return _adamw(model, config.lr_2d, config.lr_blocks, config.weight_decay_2d)


def optimizer_3d(model: nn.Module, config: OptimConfig) -> AdamW:
    """AdamW over the parameters of the 3D student that require a gradient."""
    return _adamw(model, config.lr_3d, config.lr_blocks, config.weight_decay_3d)


def schedule_2d(optimizer: AdamW, steps: int) -> LRScheduler:
    """Linear decay from the configured rates at step 0 to 0 after `steps` optimiser steps."""
    return PolynomialLR(optimizer, total_iters=steps, power=1.0)


def schedule_3d(optimizer: AdamW, steps: int) -> LRScheduler:
    """One cycle over `steps` optimiser steps: from 1/10 of the configured rates up to them in the first 4 %, then down to
    1/1000, both along a cosine, with β1 between 0.95 and 0.85 the other way round."""
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=steps,
        pct_start=0.04 + 1e-9,  # of 25 steps, 4 % exactly is a rise of no length, by which torch divides
        anneal_strategy="cos",
        div_factor=10,
        final_div_factor=100,
        base_momentum=0.85,
        max_momentum=0.95,
    )


def _adamw(model: nn.Module, lr: float, lr_blocks: float | None, weight_decay: float) -> AdamW:
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for name, parameter in named if ("block" in name) == is_block], "lr": rate}
        for is_block, rate in ((False, lr), (True, lr_blocks or lr))
    ]
    return AdamW([group for group in groups if group["params"]], weight_decay=weight_decay)
