"""The training loop."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from rw3d_common.errors import UserError
from rw3d_common.log import log, progress
from rw3d_train.checkpoint import best_checkpoint
from rw3d_train.config import TrainConfig
from rw3d_train.data.collate import Batch
from rw3d_train.data.loader import steps_of
from rw3d_train.diagnose import diagnose
from rw3d_train.distributed import rank, sum_over_ranks, wait_for_all, world
from rw3d_train.logbook import Logbook
from rw3d_train.overlays import write_overlays
from rw3d_train.run import Run
from rw3d_train.validate import validate

Parts = list[tuple[Batch, Batch]]


def fit(config: TrainConfig, out: Path, device: torch.device, resume: bool = False, wandb: bool = False) -> Path:
    """Train as configured into the folder `out`, from its last checkpoint with `resume`; returns the best checkpoint.

    Within `distributed.process_group`, all processes that torchrun started do this together.

    Raises:
        UserError: data, weights or configuration that cannot be used, or too many steps that are not finite.
    """
    run = Run.start(config, out, device, resume)
    with Logbook(out, run, wandb) as book, progress("train", run.total_steps, "steps") as advance:
        advance(run.step)
        while run.epoch < config.run.epochs:
            run.begin_epoch()
            for parts in book.timed(steps_of(run.loader, config.run.accumulate)):
                book.note(train_step(run, parts), parts)
                run.step, run.position = run.step + 1, run.position + 1
                advance(1, book.summary)
                if run.position < run.steps_per_epoch and run.step % config.run.save_steps == 0:
                    run.save()
            run.end_epoch()
            if run.epoch % config.run.evaluate_every == 0 or run.epoch == config.run.epochs:
                run.keep_if_best(validate(run, book))
                book.diagnosis(diagnose(run))
                write_overlays(run)
            run.save()
    wait_for_all()
    return best_checkpoint(out)


def train_step(run: Run, parts: Parts) -> dict[str, Tensor]:
    """One optimiser step of every student on the parts of one batch; returns totals and parts of the losses, detached.

    A step whose losses or gradients are not finite on any process changes nothing and is counted.

    Raises:
        UserError: more such steps than allowed.
    """
    # Dropout, drop-path and shuffles of orders: the step alone decides, also after resuming.
    torch.manual_seed(run.seed_of_step())
    for teacher in run.method.teachers.values():
        teacher.update(run.step, run.position)
    found: dict[str, Tensor] = {}
    for student, teacher_view in parts:
        student, teacher_view = (batch.to(run.device, non_blocking=True) for batch in (student, teacher_view))
        with torch.autocast(run.device.type, run.dtype, enabled=run.dtype != torch.float32):
            losses = run.method.losses(student, teacher_view, run.epoch)
        total = sum(losses[name] for name in run.method.students) / len(parts)
        run.scaler.scale(total).backward()
        for name, value in losses.items():
            found[name] = found.get(name, 0) + value.detach() / len(parts)
    if _all_finite(run, found):
        for optimizer in run.optimizers.values():
            run.scaler.step(optimizer)
    run.scaler.update()
    for name, optimizer in run.optimizers.items():
        run.schedules[name].step()
        optimizer.zero_grad(set_to_none=True)
    return found


def _all_finite(run: Run, losses: dict[str, Tensor]) -> bool:
    """Clip gradients; False, and counted, when a loss or a gradient is not finite on any process.

    With fp16 the scaler looks after gradients itself: they overflow now and then until it has found its scale.
    """
    limit = run.config.run.clip or math.inf
    good = torch.stack([losses[name].isfinite() for name in run.method.students]).all()
    for name, optimizer in run.optimizers.items():
        run.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(run.method.students[name].parameters(), limit)
        good = good & (norm.isfinite() | run.scaler.is_enabled())
    if int(sum_over_ranks(good.long())) == world():
        return True
    run.bad_steps += 1
    if rank() == 0:
        log.warning(f"step {run.step}: a loss or gradient is not finite; the step is skipped ({run.bad_steps} so far)")
    if run.bad_steps > run.config.run.max_bad_steps:
        raise UserError(
            f"{run.bad_steps} steps had losses or gradients that are not finite; train with --set run.precision=fp32, a "
            "lower learning rate or --set run.clip=1, and look at metrics.jsonl"
        )
    return False
