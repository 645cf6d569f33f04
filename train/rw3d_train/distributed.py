"""Several processes started by `torchrun`: rank, device, and sums over all of them. One process needs none of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from rw3d_common.errors import UserError
from rw3d_train.memory import keep_freed_memory


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0; rank 0 alone writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def process_group(device: str) -> Iterator[torch.device]:
    """Join the other processes if `torchrun` started this one, and give the device to work on.

    From here on a process on a CPU keeps the memory it frees; see `memory`.

    Args:
        device: "auto" takes a GPU where there is one (MPS on a Mac), else the CPU; or a torch device name.

    Raises:
        UserError: the device is not on this machine.
    """
    chosen = _device(device)
    keep_freed_memory(chosen)
    if "RANK" not in os.environ:
        yield chosen
        return
    # Counts of what the loader gives are summed on the CPU, so both sides need a backend.
    dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield chosen
    finally:
        dist.destroy_process_group()


def _device(name: str) -> torch.device:
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "auto":
        if torch.cuda.is_available():
            name = f"cuda:{local % torch.cuda.device_count()}"
        else:
            name = "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name}: not on this machine; take --device cpu or auto") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def wait_for_all() -> None:
    """Return when every process has come here: what rank 0 wrote before it, all find afterwards."""
    if world() > 1:
        dist.barrier()


def of_first(number: int, device: torch.device) -> int:
    """The number that process 0 has, such as the time by which a run is named."""
    if world() == 1:
        return number
    shared = torch.tensor(number, device=device)
    dist.broadcast(shared, src=0)
    return int(shared)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, without gradient; the tensor itself with one process."""
    if world() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def max_over_ranks(tensor: Tensor) -> Tensor:
    """The element-wise maximum of a tensor over all processes, without gradient."""
    if world() == 1:
        return tensor
    largest = tensor.detach().clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest


def share_of(count: Tensor) -> Tensor:
    """A process's share of a count over all processes: count of all / number of processes, at least 1 / that number.

    Gradients are averaged over processes. A sum divided by this instead of its own count makes that average the mean
    over the whole batch, however unevenly labels are spread.
    """
    return sum_over_ranks(count).clamp(min=1) / world()
