"""Every loss against a slow float64 reference written from its formula, gradients by finite differences."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rw3d_train import losses
from rw3d_train.data.collate import Correspondences
from slow_losses import (
    problem,
    slow_balance,
    slow_balanced,
    slow_consistency,
    slow_cross_modal,
    slow_share,
    slow_supervised,
)

CORRESPONDENCES = (torch.int64, torch.float32, torch.float32, torch.int64)


def numerical_gradient(function, at: torch.Tensor) -> np.ndarray:
    values, gradient, step = at.detach().numpy().copy(), np.zeros(at.shape), 1e-5
    for index in np.ndindex(values.shape):
        kept = values[index]
        values[index] = kept + step
        above = function(values)
        values[index] = kept - step
        gradient[index] = (above - function(values)) / (2 * step)
        values[index] = kept
    return gradient


LOSSES = {
    "supervised": (
        lambda p, s: losses.supervised(s, p.label),
        lambda p, s: slow_supervised(s, p.label),
    ),
    "supervised, balanced": (
        lambda p, s: losses.supervised(s, p.label, 0.5),
        lambda p, s: slow_balanced(s, p.label, 0.5),
    ),
    "cross-modal, balanced": (
        lambda p, s: losses.cross_modal(s, p.label, p.weight, balance=0.5),
        lambda p, s: slow_cross_modal(
            s, p.label, p.weight.detach() * torch.from_numpy(slow_balance(p.label, 0.5)), "sum_of_weights"
        ),
    ),
    **{
        f"consistency {how}": (
            lambda p, s, how=how: losses.consistency(s, p.teacher, p.label, how),
            lambda p, s, how=how: slow_consistency(s, p.teacher.detach(), p.label, how),
        )
        for how in ("points", "elements")
    },
    **{
        f"cross-modal {how}": (
            lambda p, s, how=how: losses.cross_modal(s, p.label, p.weight, how),
            lambda p, s, how=how: slow_cross_modal(s, p.label, p.weight.detach(), how),
        )
        for how in ("sum_of_weights", "pairs", "sum")
    },
}


@pytest.mark.parametrize("shape", [(9,), (2, 3, 2)], ids=["points", "images"])
@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients_are_those_of_the_formula(name, shape):
    fast, slow = LOSSES[name]
    for seed, unlabelled in ((0, 0.5), (1, 0.9), (2, 0.0), (3, 1.0)):
        p = problem(shape, seed, unlabelled)
        loss = fast(p, p.student)
        assert loss.shape == ()
        assert loss.item() == pytest.approx(slow(p, p.student.detach()), rel=1e-12)
        loss.backward()
        expected = numerical_gradient(lambda z, p=p: slow(p, z), p.student)
        np.testing.assert_allclose(p.student.grad, expected, atol=1e-8)
        assert p.teacher.grad is None
        assert p.weight.grad is None


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("share", [0.0, 1.0], ids=["all labelled", "none labelled"])
def test_empty_sets_give_zero_and_a_gradient_of_zeros(name, share):
    p = problem((6,), unlabelled=share)
    loss = LOSSES[name][0](p, p.student)
    loss.backward()
    empty = (share == 0) == name.startswith("consistency")
    assert (loss.item() == 0) == empty
    assert torch.isfinite(p.student.grad).all()
    assert p.student.grad.any() != empty


@pytest.mark.parametrize("name", LOSSES)
def test_no_points_at_all_give_zero(name):
    p = problem((0,))
    loss = LOSSES[name][0](p, p.student)
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_logits_are_reduced_in_float32(name, dtype):
    p = problem((2, 64, 64))
    rounded = (p.student.detach().to(dtype)).requires_grad_()
    p.teacher = p.teacher.detach().to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = LOSSES[name][0](p, rounded)
    assert loss.dtype == torch.float32
    p.teacher = p.teacher.double()
    exact = LOSSES[name][0](p, rounded.detach().double())
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    loss.backward()
    assert torch.isfinite(rounded.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_logits_at_the_end_of_half_precision_give_no_nan(name):
    p = problem((5,))
    extreme = (p.student.detach().sign() * 60000).half().requires_grad_()
    p.teacher = (p.teacher.detach().sign() * 60000).half()
    loss = LOSSES[name][0](p, extreme)
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(extreme.grad).all()


def test_nothing_waits_for_the_device_or_depends_on_the_labels_for_its_shape():
    """The meta device has shapes but no values: whatever asks for one fails."""
    p = problem((2, 3, 4))
    for name, value in vars(p).items():
        setattr(p, name, value.detach().to("meta"))
    for fast, _ in LOSSES.values():
        assert fast(p, p.student).shape == ()
    assert losses.confident_share(p.teacher, p.label).shape == ()
    pairs = Correspondences(*(torch.zeros(5, dtype=d, device="meta") for d in CORRESPONDENCES))
    shown = losses.points_at_pixels(pairs, (2, 3, 4))
    assert losses.project_to_pixels(torch.zeros(7, device="meta"), shown, 0).shape == (2, 3, 4)
    assert losses.gather_from_pixels(p.label, pairs, 7, 255).shape == (7,)
    offset = torch.zeros(2, dtype=torch.int64, device="meta")
    for how in ("raw", "rank", "log"):
        assert losses.normalized_confidence(torch.zeros(7, device="meta"), offset, how).shape == (7,)
    label, weight = losses.add_sky(p.label, p.weight, p.teacher, shown >= 0, 3)
    assert label.shape == weight.shape == (2, 3, 4)
    assert losses.surface_only(p.label, torch.zeros(256, dtype=torch.bool, device="meta")).shape == (2, 3, 4)


# ---- Eq. 3 and 4 ----


@pytest.mark.parametrize("over", ["unlabelled", "all"])
@pytest.mark.parametrize("shape", [(40,), (2, 5, 4)], ids=["points", "images"])
def test_confident_share(over, shape):
    for seed, unlabelled in ((0, 0.5), (1, 0.0), (2, 1.0)):
        p = problem(shape, seed, unlabelled)
        share = losses.confident_share(p.teacher, p.label, 0.8, over)
        assert share.item() == pytest.approx(slow_share(p.teacher.detach(), p.label, 0.8, over), rel=1e-6)
        assert not share.requires_grad


def test_confidence_equal_to_the_threshold_counts():
    assert losses.confident_share(torch.zeros(1, 2), torch.tensor([255]), 0.5).item() == 1


def test_the_two_readings_of_the_share_differ_by_the_labelled_points():
    teacher, label = torch.tensor([[9.0, 0], [9.0, 0], [0.0, 0], [0.0, 0]]), torch.tensor([0, 255, 255, 255])
    assert losses.confident_share(teacher, label, over="unlabelled").item() == pytest.approx(1 / 3)
    assert losses.confident_share(teacher, label, over="all").item() == pytest.approx(1 / 2)


def test_base_objective():
    supervised, consistency, share = torch.tensor(2.0), torch.tensor(3.0), torch.tensor(0.25)
    assert losses.base_objective(supervised, consistency, share).item() == 0.5 * 2 + 0.5 * 0.25 * 3
    assert losses.base_objective(supervised, consistency, share, beta=0.2).item() == pytest.approx(0.8 * 2 + 0.2 * 0.75)


# ---- properties ----


def test_a_student_equal_to_its_teacher_is_consistent():
    p = problem((20,))
    loss = losses.consistency(p.student, p.student, p.label)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(p.student.grad, 0, atol=1e-12)


@given(st.sampled_from(list(LOSSES)), st.floats(-50, 50), st.integers(0, 1000))
def test_a_constant_added_to_all_logits_changes_nothing(name, constant, seed):
    p = problem((8,), seed)
    fast = LOSSES[name][0]
    assert fast(p, p.student + constant).item() == pytest.approx(fast(p, p.student).item(), rel=1e-9, abs=1e-12)


@given(st.floats(1e-30, 1e37), st.integers(0, 1000))
def test_divided_by_the_sum_of_weights_their_scale_cancels(scale, seed):
    p = problem((8,), seed, unlabelled=0.3)
    student, weight = p.student.detach().float(), p.weight.float()
    once = losses.cross_modal(student, p.label, weight)
    scaled = losses.cross_modal(student, p.label, weight * scale)
    assert scaled.item() == pytest.approx(once.item(), rel=1e-5)


def test_what_has_no_label_has_no_weight_whatever_is_written_there():
    p = problem((8,))
    spoilt = torch.where(p.label == 255, torch.nan, p.weight.detach())
    for how in ("sum_of_weights", "pairs", "sum"):
        assert losses.cross_modal(p.student, p.label, spoilt, how) == losses.cross_modal(
            p.student, p.label, p.weight, how
        )


def test_weights_of_zero_give_zero():
    p = problem((8,))
    for how in ("sum_of_weights", "pairs", "sum"):
        assert losses.cross_modal(p.student, p.label, torch.zeros(8), how).item() == 0


# ---- ramp ----


def test_ramp_steps_once_per_epoch_and_starts_above_zero():
    found = [losses.ramp(epoch, start=15, length=5, maximum=0.075) for epoch in range(23)]
    assert found == pytest.approx([0] * 15 + [0.015, 0.03, 0.045, 0.06, 0.075] + [0.075] * 3)


@pytest.mark.parametrize("length", [0, 1])
def test_a_ramp_without_length_is_a_step(length):
    assert [losses.ramp(epoch, 2, length, 0.1) for epoch in range(4)] == [0, 0, 0.1, 0.1]


@given(st.integers(0, 100), st.floats(0, 1))
def test_balance_gives_a_mean_of_one_and_with_exponent_one_every_class_the_same(seed, exponent):
    label = problem((40,), seed, 0.3).label
    weight = losses.class_balance(label, exponent, torch.float64)
    np.testing.assert_allclose(weight, slow_balance(label, exponent), rtol=1e-9)
    assert weight[label != 255].mean() == pytest.approx(1)
    sums = [float(losses.class_balance(label, 1.0)[label == c].sum()) for c in label[label != 255].unique()]
    assert sums == pytest.approx([sums[0]] * len(sums), rel=1e-5)
