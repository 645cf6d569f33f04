"""The order of items: each once per epoch, continued from any batch, shared by any number of processes and parts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rw3d_common import UserError
from rw3d_train.data import loader
from rw3d_train.data.loader import EpochBatches, steps_of


def parts_of(items, batch_size, accumulate, *, epoch=0, first=0, rank=0, world=1, seed=0) -> list[list[int]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "rank", lambda: rank)
        patch.setattr(loader, "world", lambda: world)
        batches = EpochBatches(items, batch_size, accumulate, seed)
        batches.start(epoch, first)
        found = list(batches)
        assert len(found) == len(batches)
        return found


sizes = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 30))


@given(sizes, st.integers(0, 5), st.integers(0, 3))
def test_processes_and_parts_share_every_batch_completely(size, epoch, seed):
    world, accumulate, share, more = size
    batch_size = world * accumulate * share
    items = batch_size + more
    options = {"epoch": epoch, "seed": seed}
    alone = parts_of(items, batch_size, 1, **options)
    ranks = [parts_of(items, batch_size, accumulate, rank=r, world=world, **options) for r in range(world)]
    for step, whole in enumerate(alone):
        mine = slice(step * accumulate, (step + 1) * accumulate)
        together = [item for found in ranks for part in found[mine] for item in part]
        assert sorted(together) == sorted(whole)
        assert all(len(part) == share for found in ranks for part in found[mine])
    seen = [item for batch in alone for item in batch]
    assert len(set(seen)) == len(seen) == items // batch_size * batch_size
    assert set(seen) <= set(range(items))


@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 10))
def test_any_batch_can_be_continued_from(items, batch_size, first):
    if items < batch_size:
        return
    first = min(first, items // batch_size)
    whole = parts_of(items, batch_size, 1, epoch=3)
    assert parts_of(items, batch_size, 1, epoch=3, first=first) == whole[first:]


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {
        tuple(np.concatenate(parts_of(50, 5, 1, epoch=epoch, seed=seed))) for epoch in range(4) for seed in range(3)
    }
    assert len(orders) == 12
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_parts_come_back_as_steps():
    assert list(steps_of(iter("abcdef"), 2)) == [["a", "b"], ["c", "d"], ["e", "f"]]


@pytest.mark.parametrize(
    ("items", "batch_size", "accumulate", "sentence"),
    [
        (3, 4, 1, r"3 training items for run\.batch_size 4; sample more views or take a smaller batch"),
        (9, 9, 2, r"run\.batch_size 9 cannot be shared by 1 processes × 2 parts; take a multiple of 2"),
    ],
)
def test_batches_that_cannot_be_made_are_told(items, batch_size, accumulate, sentence):
    with pytest.raises(UserError, match=sentence):
        EpochBatches(items, batch_size, accumulate, 0)
