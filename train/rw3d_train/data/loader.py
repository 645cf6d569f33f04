"""The order of training items: a permutation per epoch that any process can continue from any batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from rw3d_common.errors import UserError
from rw3d_train.data.collate import Batch, collate_pairs
from rw3d_train.data.dataset import SceneDataset
from rw3d_train.distributed import rank, world


class EpochBatches(torch.utils.data.Sampler[list[int]]):  # type: ignore[misc]
    """Lists of item numbers, one per part of a batch, in an order that (seed, epoch) alone decides.

    A batch of `batch_size` items is cut into `accumulate` parts, and each part among the ranks, so the items of a step
    are the same for any number of ranks or parts. The last items of an epoch that do not fill a batch are left out.
    """

    def __init__(self, items: int, batch_size: int, accumulate: int, seed: int) -> None:
        self.items, self.batch_size, self.accumulate, self.seed = items, batch_size, accumulate, seed
        self.epoch = self.first = 0
        share = accumulate * world()
        if batch_size % share:
            raise UserError(
                f"run.batch_size {batch_size} cannot be shared by {world()} processes × {accumulate} parts; "
                f"take a multiple of {share}"
            )
        if items < batch_size:
            raise UserError(
                f"{items} training items for run.batch_size {batch_size}; sample more views or take a smaller batch"
            )

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        return self.items // self.batch_size

    def start(self, epoch: int, first: int = 0) -> None:
        """Say which epoch the next iteration is of, and from which batch on."""
        self.epoch, self.first = epoch, first

    def __len__(self) -> int:
        return (self.steps - self.first) * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        key = hashlib.blake2b(f"order/{self.seed}/{self.epoch}".encode(), digest_size=16).digest()
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
        order = generator.permutation(self.items)
        for step in range(self.first, self.steps):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            for part in np.split(batch, self.accumulate):
                yield part[rank() :: world()].tolist()


def make_loader(
    dataset: SceneDataset, batches: EpochBatches, workers: int, n_classes: int, voxel: float | None, pin: bool
) -> DataLoader[Any]:
    """A loader of (student, teacher) batches; its workers stay alive between epochs."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=partial(collate_pairs, n_classes=n_classes, voxel_size=voxel),
        pin_memory=pin,
        persistent_workers=workers > 0,
        multiprocessing_context="forkserver" if workers else None,  # a fork would copy the threads of CUDA and OpenMP
    )


def steps_of(loader: DataLoader[Any], accumulate: int) -> Iterator[list[tuple[Batch, Batch]]]:
    """The parts of one step after another."""
    parts: list[tuple[Batch, Batch]] = []
    for pair in loader:
        parts.append(pair)
        if len(parts) == accumulate:
            yield parts
            parts = []
