"""Batches: never across a split, sequence, timestamp or gap; every frame in exactly one."""

import itertools
from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from rw3d_prep.batching import BatchConfig, make_batches
from rw3d_prep.datasets import _strided
from rw3d_prep.frames import Frame


def frame(
    frame_id: int, camera: str = "c0", sequence: str = "s", split: str = "train", labelled: bool = False
) -> Frame:
    return Frame(split, sequence, frame_id, camera, Path("x.png"), label=Path("l.png") if labelled else None)


frame_sets = st.sets(
    st.tuples(
        st.sampled_from(["train", "val"]),
        st.sampled_from("ab"),
        st.integers(0, 60),
        st.sampled_from(["c0", "c1", "c2"]),
    ),
    min_size=1,
)


@given(frame_sets, st.integers(1, 9))
def test_partition(keys, size):
    frames = [frame(frame_id, camera, sequence, split) for split, sequence, frame_id, camera in keys]
    batches = make_batches(frames, BatchConfig(size=size))
    assert Counter(id(f) for batch in batches for f in batch.frames) == Counter(id(f) for f in frames)
    assert len({batch.name for batch in batches}) == len(batches)
    for batch in batches:
        assert len({(f.split, f.sequence) for f in batch.frames}) == 1
        assert len(batch.frames) <= max(size, 3), "only the cameras of one moment may exceed the size"
        ids = sorted({f.id for f in batch.frames})
        everywhere = sorted({f.id for f in frames if (f.split, f.sequence) == (batch.split, batch.sequence)})
        steps = sorted(b - a for a, b in itertools.pairwise(everywhere))
        typical = steps[(len(steps) - 1) // 2] if steps else 0
        assert all(b - a <= typical for a, b in itertools.pairwise(ids)), "a batch crosses a gap"
    moments = Counter((batch.split, batch.sequence, f_id) for batch in batches for f_id in {f.id for f in batch.frames})
    assert set(moments.values()) == {1}, "a timestamp is split"


def test_two_hundred_and_one_frames_become_two_even_batches():
    batches = make_batches([frame(i) for i in range(201)], BatchConfig())
    assert [len(batch.frames) for batch in batches] == [101, 100] or [len(b.frames) for b in batches] == [100, 101]


def test_a_gap_splits_and_a_wider_limit_joins():
    frames = [frame(i) for i in (0, 1, 2, 5, 6)]
    assert [b.name for b in make_batches(frames, BatchConfig())] == [
        "train/s/0000000000-0000000002",
        "train/s/0000000005-0000000006",
    ]
    assert len(make_batches(frames, BatchConfig(max_gap=3))) == 1


def test_every_fifth_frame_is_no_gap():
    assert len(make_batches([frame(i) for i in range(0, 100, 5)], BatchConfig())) == 1


def test_batch_size_one_is_one_image_each():
    assert [len(batch.frames) for batch in make_batches([frame(i) for i in range(4)], BatchConfig(size=1))] == [1] * 4


def test_stride_keeps_every_labelled_frame():
    frames = [frame(i, labelled=i in (3, 5)) for i in range(9)]
    assert [f.id for f in _strided(frames, 4)] == [0, 3, 4, 5, 8]
