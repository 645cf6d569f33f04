"""Batches: what belongs together stays together, and what a GPU would choke on is named before it gets there."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from rw3d_common import UserError
from rw3d_train.data import collate as module
from rw3d_train.data.collate import Batch, check_sample, collate, collate_pairs
from rw3d_train.data.sample import Sample

SIZE = (6, 8)


def sample(seed: int = 0, points: int = 20, own: int = 12, **changes) -> Sample:
    generator = np.random.default_rng(seed)
    pixel = np.stack([generator.integers(0, n, own) for n in SIZE], axis=1).astype(np.float32)
    item = Sample(
        key=f"train/s/{seed:010d}/c#0",
        image=generator.integers(0, 256, (*SIZE, 3), dtype=np.uint8),
        label=generator.choice(np.array([0, 1, 255], np.uint8), SIZE),
        truth=generator.choice(np.array([0, 1], np.uint8), SIZE),
        position=generator.normal(size=(points, 3)).astype(np.float32),
        color=generator.integers(0, 256, (points, 3), dtype=np.uint8),
        confidence=generator.random(points).astype(np.float32),
        point_label=generator.choice(np.array([0, 1, 255], np.uint8), points),
        point_truth=generator.choice(np.array([0, 1], np.uint8), points),
        pixel=pixel,
        camera_to_world=np.eye(4) * seed,
    )
    return replace(item, **changes)


@pytest.fixture(autouse=True)
def no_warnings_so_far(monkeypatch):
    monkeypatch.setattr(module, "_unlabelled", set())


def error_of(action) -> str:
    with pytest.raises(UserError) as raised:
        action()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    values = {**vars(batch), **vars(batch.correspondences)}
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


def test_everything_is_there_in_order():
    samples = [sample(0), sample(1, points=7, own=0), sample(2, points=15, own=15)]
    batch = collate(samples, n_classes=2, voxel_size=0.05)
    assert len(batch) == 3
    assert batch.keys == tuple(one.key for one in samples)
    assert batch.offset.tolist() == [20, 27, 42]
    assert (batch.image.shape, batch.image.dtype) == ((3, 3, *SIZE), torch.uint8)
    assert batch.image.is_contiguous(memory_format=torch.channels_last)
    start = 0
    for number, (one, end) in enumerate(zip(samples, batch.offset.tolist(), strict=True)):
        np.testing.assert_array_equal(batch.image[number].permute(1, 2, 0), one.image)
        np.testing.assert_array_equal(batch.label[number], one.label)
        np.testing.assert_array_equal(batch.truth[number], one.truth)
        np.testing.assert_array_equal(batch.camera_to_world[number], one.camera_to_world)
        for name in ("position", "color", "confidence", "point_label", "point_truth"):
            rows = getattr(batch, name)[start:end].numpy()
            np.testing.assert_array_equal(rows, getattr(one, name))
            assert rows.dtype == getattr(one, name).dtype
        start = end


def test_correspondences_lead_to_their_point_and_pixel():
    samples = [sample(seed) for seed in range(3)]
    for one in samples:
        one.pixel[1::3] = np.nan
        one.pixel[::3] += 0.25
    found = collate(samples).correspondences
    assert len(found) == sum(np.isfinite(one.pixel[:, 0]).sum() for one in samples) == 24
    assert [str(t.dtype) for t in vars(found).values()] == ["torch.int64", "torch.float32", "torch.float32", "torch.int64"]  # fmt: skip
    for image, row, column, point in zip(*(t.tolist() for t in vars(found).values()), strict=True):
        assert samples[image].pixel[point - 20 * image].tolist() == [row, column]
    for number, one in enumerate(samples):
        lost = 20 * number + np.flatnonzero(np.isnan(one.pixel[:, 0]))
        assert not np.isin(lost, found.point).any()


def test_truth_may_be_missing_in_some_or_all():
    without = {"truth": None, "point_truth": None}
    assert collate([sample(0, **without)]).truth is None
    assert collate([sample(0, **without)]).point_truth is None
    batch = collate([sample(0, **without), sample(1)])
    assert (batch.truth[0] == 255).all()
    assert (batch.point_truth[:20] == 255).all()
    np.testing.assert_array_equal(batch.point_truth[20:], sample(1).point_truth)


def test_batches_own_their_memory():
    one = sample()
    batch = collate([one])
    batch.position[:] = 0
    batch.image[:] = 0
    assert one.position.any()
    assert one.image.any()


def test_pairs_of_student_and_teacher():
    student, teacher = collate_pairs([(sample(0), sample(1)), (sample(2), sample(3))], n_classes=2)
    assert student.keys == (sample(0).key, sample(2).key)
    assert teacher.keys == (sample(1).key, sample(3).key)


def test_to_and_pin_memory_keep_everything():
    batch = collate([sample(0), sample(1, truth=None)])
    for copy in (batch.to("cpu", non_blocking=True), batch.pin_memory(), batch.to("meta")):
        assert copy.keys == batch.keys
        assert tensors(copy).keys() == tensors(batch).keys()
        assert all(t.shape == tensors(batch)[name].shape for name, t in tensors(copy).items())
    assert all(t.device.type == "meta" for t in tensors(batch.to("meta")).values())
    if torch.cuda.is_available():
        assert all(t.is_pinned() for t in tensors(batch.pin_memory()).values())


def test_in_a_loader():
    loader = DataLoader([sample(i) for i in range(5)], batch_size=2, collate_fn=partial(collate, n_classes=2))
    assert [len(batch) for batch in loader] == [2, 2, 1]


# Checks


@pytest.mark.parametrize("name", ["label", "truth", "point_label", "point_truth"])
def test_ids_without_a_class(name):
    one = sample(4)
    getattr(one, name).flat[3] = 2
    message = error_of(lambda: collate([sample(0), one], n_classes=2))
    assert message.startswith(f"{one.key}: its {name} holds train id 2, but there are 2 classes")
    collate([one], n_classes=3)
    collate([one])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_positions_that_are_not_finite(value):
    one = sample(5)
    one.position[3, 1] = value
    assert error_of(lambda: collate([one])).startswith(f"{one.key}: 1 of its points are not finite")


def test_an_extent_beyond_the_grid_names_one_that_fits():
    one = sample(6)
    one.position[0, 2] = 1e6
    message = error_of(lambda: collate([one], voxel_size=0.05))
    assert message.startswith(f"{one.key}: its points extend over 1,000,00")
    smallest = float(message.split("at least ")[1].split(" m")[0])
    collate([one], voxel_size=smallest)
    cells = np.floor((one.position - one.position.min(axis=0)) / smallest)
    assert cells.max() < 2**16
    assert smallest < 1.02 * 1e6 / 2**16
    collate([one])


@pytest.mark.parametrize("extent", [0.001, 1.0, 65.536, 3276.7, 98765.4, 1e7])
def test_the_smallest_grid_always_fits(extent):
    one = sample(6, position=np.array([[0, 0, 0], [0, extent, 0]] * 10, np.float32))
    voxel = extent / 70_000
    smallest = float(error_of(lambda: check_sample(one, voxel_size=voxel)).split("at least ")[1].split(" m")[0])
    check_sample(one, voxel_size=smallest)
    assert extent / smallest < 2**16


def test_no_points():
    none = sample(7, points=0, own=0)
    assert "has no points" in error_of(lambda: collate([none], voxel_size=0.5))
    batch = collate([none, sample(8), none])
    assert batch.offset.tolist() == [0, len(batch.position), len(batch.position)]
    assert set(batch.correspondences.image.tolist()) <= {1}, "without a 3D network nothing needs points"


@pytest.mark.parametrize("pixel", [(-0.51, 0), (0, 7.5), (5.5, 0), (3, np.inf), (100, 1)])
def test_correspondences_outside_the_image(pixel):
    one = sample(8)
    one.pixel[2] = pixel
    assert error_of(lambda: collate([one])).startswith(f"{one.key}: 1 correspondences lie outside its 8×6 image")
    one.pixel[2] = (-0.5, 7.49)
    collate([one])


def test_more_correspondences_than_points():
    assert "correspondences for 5 points" in error_of(lambda: collate([sample(9, points=5, own=6)]))


def test_images_of_different_sizes():
    other = sample(1, image=np.zeros((5, 8, 3), np.uint8), label=np.zeros((5, 8), np.uint8), truth=None, own=0)
    message = error_of(lambda: collate([sample(0), other]))
    assert message.startswith(f"{other.key}: its image is 8×5, the image of {sample(0).key} in the same batch is 8×6")
    assert "its label is 8×5" in error_of(lambda: collate([replace(sample(0), label=other.label)]))


def test_no_samples():
    assert "no samples" in error_of(lambda: collate([]))


def test_images_without_labels_are_told_a_few_times(caplog):
    blank = np.full(SIZE, 255, np.uint8)
    with caplog.at_level("WARNING", logger="rw3d"):
        for _ in range(2):
            for seed in range(10):
                collate([sample(seed, label=blank, truth=None)])
    assert [message.split(":")[0] for message in caplog.messages[:5]] == [sample(i).key for i in range(5)]
    assert caplog.messages[5:] == ["more images without any labelled pixel follow; they are not listed"]


def test_images_with_dense_labels_may_lack_sparse_ones(caplog):
    with caplog.at_level("WARNING", logger="rw3d"):
        collate([sample(99, label=np.full(SIZE, 255, np.uint8))])
    assert not caplog.messages
