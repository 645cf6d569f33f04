"""The table of `rw3d-prep plan`."""

from __future__ import annotations

import shutil
from pathlib import Path

from rich.table import Table

from rw3d_prep.config import PrepConfig
from rw3d_prep.plan import Plan
from rw3d_prep.reconstruct import gpu_memory


def plan_table(plan: Plan, config: PrepConfig, out: Path) -> Table:
    """What a run needs, beside what this machine has."""
    some = "a few views" if plan.views else "one cloud"
    how = f"measured on {some}" if plan.measured else "estimated from published figures, not measured here"
    table = Table(
        "what",
        "needed",
        "note",
        title=f"Plan: {config.dataset.name} with {config.backend.kind} into {out}",
        title_justify="left",
    )
    if plan.views:
        table.add_row("images", f"{plan.views:,}", f"{plan.labelled:,} with sparse labels")
        table.add_row(
            "batches = scenes", f"{plan.batches:,}", f"up to {plan.largest_batch} of {config.batching.size} frames"
        )
    if plan.clouds:
        table.add_row("point clouds = scenes", f"{plan.clouds:,}", "without views; predicted from one of them")
    table.add_row("points", f"{plan.points / 1e6:,.1f} M", how)
    table.add_row("disk", _size(plan.disk), f"{_free(out) / 1e9:,.0f} GB free; {how}")
    table.add_row("memory", _size(plan.memory), "estimate for all workers")
    if plan.gpu_memory:
        table.add_row("GPU memory", _size(plan.gpu_memory), f"for {plan.largest_batch} images; {how}")
        for name, memory in _gpus():
            fits = plan.largest_batch_in(memory)
            advice = f"--batch-size {fits}" if fits else "too small: not even one image"
            table.add_row(f"  in {_size(memory)}", f"{fits} images", f"{advice}; {name}, estimate")
    table.add_row("time", _duration(plan.seconds), how)
    return table


def _gpus() -> list[tuple[str, float]]:
    """Name and bytes of usual GPUs, after this machine's own if it has one."""
    free = gpu_memory.free()
    own = [] if free is None else [("free on this machine's GPU", float(free))]
    return [*own, *((f"a GPU of {size} GB", size * 1e9) for size in (24, 40, 80))]


def _free(path: Path) -> int:
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:,.1f} min"
