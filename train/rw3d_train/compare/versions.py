"""What made a number: versions, commit, device."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[3]
PACKAGES = ("rw3d", "torch", "numpy", "transformers")


def versions() -> dict[str, str]:
    """Versions by name: packages, Python, and the commit of rw3d where it runs from a checkout."""
    found = {"commit": commit, **_packages()} if (commit := _commit()) else _packages()
    return {**found, "python": platform.python_version()}


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "?"
    return found


def _commit() -> str:
    """The commit of the checkout, with '+' where files differ from it; '' where there is no checkout or no git."""
    if not (ROOT / ".git").exists():
        return ""
    git = ("git", "-C", str(ROOT))
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, check=False)
    except FileNotFoundError:
        return ""
    return head.stdout.strip() + "+" * (changed.returncode == 1) if head.returncode == 0 else ""


def device_name(device: str, gpu: str, threads: str) -> str:
    """What a cell runs on: the name of the GPU, or "cpu" with its number of threads."""
    import torch

    if device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        return f"cpu, {threads} thread{'s' * (threads != '1')}"
    if not torch.cuda.is_available():
        return "mps"
    number = gpu_number(gpu) if gpu else torch.device(device if device.startswith("cuda") else "cuda").index or 0
    return f"GPU {gpu}" if number is None else str(torch.cuda.get_device_name(number))


def gpu_number(gpu: str) -> int | None:
    """What torch calls a GPU of --gpus in this process; None where it has been shown only some of them."""
    import torch

    known = gpu.isdigit() and "CUDA_VISIBLE_DEVICES" not in os.environ and int(gpu) < torch.cuda.device_count()
    return int(gpu) if known else None


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
