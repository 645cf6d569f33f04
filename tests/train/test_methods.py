"""Each method's totals are the formula over its losses, with pseudo-labels found by looking at every correspondence."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from method_builders import CLASSES, NAMES, OWN, SKY, H, Points, W, batch, logits_of, method_of, slow_targets
from rw3d_common import UserError
from rw3d_common.labels import ClassMap, LabelClass
from rw3d_train import losses
from rw3d_train.config import load_train_config
from rw3d_train.methods import EmaConfig, Rewis3dConfig, SupervisedConfig, make_method
from rw3d_train.methods.rewis3d import CrossModalConfig
from rw3d_train.models.images import normalize
from rw3d_train.models.points import point_features
from rw3d_train.networks import n_classes_3d
from rw3d_train.teacher import MeanTeacher, TeacherConfig


def base(student, teacher, label, config, normalization):
    share = losses.confident_share(teacher, label, config.threshold, config.confident_over)
    divergence = losses.consistency(student, teacher, label, normalization)
    return (1 - config.beta) * losses.supervised(student, label) + config.beta * share * divergence


def test_supervised_is_cross_entropy_on_the_labels_asked_for():
    one = batch()
    for labels, target in (("dense", one.truth), ("sparse", one.label)):
        method = method_of(SupervisedConfig(labels=labels))
        expected = losses.supervised(method.students["2d"](normalize(one.image)), target)
        found = method.losses(one, one, 0)
        assert found.keys() == {"2d"}
        torch.testing.assert_close(found["2d"], expected)


def test_supervised_can_train_points_too():
    one = batch()
    surfaces = torch.where(one.point_label == SKY, 255, one.point_label)
    method = method_of(SupervisedConfig(labels="sparse", points=True))
    found = method.losses(one, one, 0)
    assert found.keys() == {"2d", "3d"}
    torch.testing.assert_close(found["3d"], losses.supervised(logits_of_points(method, one), surfaces))
    with pytest.raises(UserError, match="no dense labels"):  # the images have some, the points have none
        method_of(SupervisedConfig(points=True)).losses(one, one, 0)


def logits_of_points(method, one):
    return method.students["3d"](one.position, point_features(one), one.offset)


def test_supervised_without_dense_labels_is_told():
    with pytest.raises(
        UserError, match=r"train/a/1/cam#0: this scene has no dense labels; train with --set method\.lab"
    ):
        method_of(SupervisedConfig()).losses(batch(truth=False), batch(truth=False), 0)


@pytest.mark.parametrize("over", ["unlabelled", "all"])
@pytest.mark.parametrize("normalization", ["points", "elements"])
def test_ema_is_equation_4(over, normalization):
    config = EmaConfig(beta=0.3, threshold=0.7, confident_over=over, consistency_2d=normalization)
    one, method = batch(), method_of(config)
    student, teacher = (net(normalize(one.image)) for net in (method.students["2d"], method.teachers["2d"].module))
    found = method.losses(one, one, 0)
    torch.testing.assert_close(found["2d"], base(student, teacher, one.label, config, normalization))
    assert 0 < found["confident_share_2d"] < 1


@pytest.mark.parametrize("use", ["both", "prediction", "reconstruction", "none"])
@pytest.mark.parametrize("normalization", ["pairs", "sum_of_weights", "sum"])
def test_rewis3d_is_equation_7(use, normalization):
    cmc = CrossModalConfig(start=2, ramp=4, weight_2d=0.5, weight_3d=0.25, confidence=use, normalization=normalization)
    config = Rewis3dConfig(threshold=0.4, cross_modal=cmc)
    one, method = batch(), method_of(config)
    images, taught_2d, points, taught_3d = logits_of(method, one)
    surfaces = torch.where(one.point_label == SKY, 255, one.point_label)
    at_pixels, pixel_weight, at_points, point_weight = slow_targets(one, taught_2d, taught_3d, use)
    assert (at_pixels != 255).sum() == 2 * OWN
    for epoch, share in ((1, 0.0), (2, 0.25), (4, 0.75), (9, 1.0)):
        found = method.losses(one, one, epoch)
        taught_images = losses.cross_modal(images, at_pixels, pixel_weight, normalization)
        taught_points = losses.cross_modal(points, at_points, point_weight, normalization)
        expected = base(images, taught_2d, one.label, config, "points") + 0.5 * share * taught_images
        torch.testing.assert_close(found["2d"], expected)
        expected = base(points, taught_3d, surfaces, config, "points") + 0.25 * share * taught_points
        torch.testing.assert_close(found["3d"], expected)
        assert ("cross_modal_2d" in found) == (epoch >= 2)


def test_uncertain_pseudo_labels_do_not_count():
    one = batch()
    _, taught_2d, _, taught_3d = logits_of(method_of(Rewis3dConfig()), one)
    at_pixels, pixel_weight, at_points, point_weight = slow_targets(one, taught_2d, taught_3d, "prediction")
    for label, weight, targets in (
        (at_pixels, pixel_weight, lambda method: method.targets_2d(one, one, taught_3d)),
        (at_points, point_weight, lambda method: method.targets_3d(one, taught_2d)),
    ):
        least = float(weight[label != 255].median())  # with "prediction" the weight is the probability
        kept = (label != 255) & (weight >= least)
        assert 0 < kept.sum() < (label != 255).sum()
        cmc = CrossModalConfig(confidence="prediction", threshold=least)
        found, weights = targets(method_of(Rewis3dConfig(cross_modal=cmc)))
        assert found.equal(torch.where(kept, label, 255))
        torch.testing.assert_close(weights[kept], weight[kept])


@given(st.integers(0, 40), st.integers(0, 20), st.integers(0, 10))
def test_lambda_is_0_then_rises_by_equal_steps_then_stays(epoch, start, length):
    value = losses.ramp(epoch, start, length, 0.1)
    expected = 0.0 if epoch < start else 0.1 * min((epoch + 1 - start) / max(length, 1), 1)
    assert value == pytest.approx(expected)


def test_no_gradient_crosses_modalities_or_reaches_a_teacher():
    one, method = batch(), method_of(Rewis3dConfig(cross_modal=CrossModalConfig(start=0)))
    found = method.losses(one, one, 5)
    found["2d"].backward(retain_graph=True)
    assert all(p.grad is None for p in method.students["3d"].parameters())
    grads = [p.grad.clone() for p in method.students["2d"].parameters()]
    found["3d"].backward()
    assert all(torch.equal(p.grad, grad) for p, grad in zip(method.students["2d"].parameters(), grads, strict=True))
    assert all(p.grad is None for t in method.teachers.values() for p in t.module.parameters())


def test_points_are_never_taught_sky():
    one, method = batch(), method_of(Rewis3dConfig(), sky_bias=100)
    _, taught_2d, _, _ = logits_of(method, one)
    label, _ = method.targets_3d(one, taught_2d)
    assert (taught_2d.argmax(1) == SKY).all()
    assert (label == 255).all()
    one.point_label[:] = SKY  # and what is labelled so in the store does not count either
    assert method.losses(one, one, 0)["supervised_3d"] == 0


def test_sky_teacher_is_frozen_when_cmc_starts_and_only_when_asked_for():
    one = batch()
    for wanted in (False, True):
        config = Rewis3dConfig(cross_modal=CrossModalConfig(start=3, sky_teacher=wanted))
        method = method_of(config, sky_bias=100)
        for epoch in range(3):
            method.begin_epoch(epoch)
            assert method.sky_teacher is None
        method.begin_epoch(3)
        _, _, _, taught_3d = logits_of(method, one)
        label, weight = method.targets_2d(one, one, taught_3d)
        at_pixels, pixel_weight, _, _ = slow_targets(one, *logits_of(method, one)[1::2])
        free = at_pixels == 255
        if wanted:
            sky = method.teachers["2d"].module(normalize(one.image)).softmax(1)[:, SKY]
            torch.testing.assert_close(weight, torch.where(free, sky * (2 * OWN) / (2 * H * W), pixel_weight))
            assert (label == SKY).equal(free)
            before = copy.deepcopy(method.sky_teacher.state_dict())
            method.teachers["2d"].module.bias.add_(1)
            assert all(torch.equal(before[name], value) for name, value in method.sky_teacher.state_dict().items())
        else:
            assert method.sky_teacher is None
            assert label.equal(at_pixels)


def test_sky_teacher_needs_a_sky():
    indoors = ClassMap(tuple(LabelClass(i, name, (i,), (i, i, i)) for i, name in enumerate(NAMES)))
    config = Rewis3dConfig(cross_modal=CrossModalConfig(sky_teacher=True))
    with pytest.raises(UserError, match=r"method\.cross_modal\.sky_teacher: no class .* set it to false"):
        make_method(config, nn.Conv2d(3, 4, 1), Points(), indoors)


def test_classes_without_surface_come_last():
    assert n_classes_3d(CLASSES) == 3
    with pytest.raises(UserError, match=r"class 'sky' has no surface .* train id 0; .* the last train ids, from 1 on"):
        n_classes_3d(ClassMap((LabelClass(0, "sky", (0,), (0, 0, 0), False), LabelClass(1, "road", (1,), (1, 1, 1)))))


def test_presets_differ_where_paper_and_released_code_do():
    paper, official = (load_train_config("kitti360", None, preset, None, []) for preset in ("paper", "official"))
    assert [c.method.consistency_2d for c in (paper, official)] == ["points", "elements"]
    assert [c.method.confident_over for c in (paper, official)] == ["unlabelled", "all"]
    assert [c.method.cross_modal.normalization for c in (paper, official)] == ["sum_of_weights"] * 2
    student = nn.Linear(2, 2)
    one, other = (MeanTeacher(student, c.method.teacher) for c in (paper, official))
    assert [one.decay(step, step % 10) for step in (0, 5, 10)] == [0.99, 0.99, 0.99]
    assert [other.decay(step, step % 10) for step in (0, 5, 10)] == pytest.approx([0, 5 / 6, 0])
    assert not one.module.training
    assert other.module.training
    totals = {}
    for name, config in (("paper", paper), ("official", official)):
        changed = config.method.model_copy(update={"threshold": 0.4, "teacher": TeacherConfig()})
        totals[name] = method_of(changed).losses(batch(), batch(), 30)
    for name, factor in (("consistency_2d", 4), ("consistency_3d", 1)):  # four classes
        torch.testing.assert_close(totals["paper"][name], factor * totals["official"][name])


def test_student_and_teacher_see_their_own_views():
    weak, strong = batch(), batch()
    strong.image[:] = 0
    strong.position[:] += 5
    method = method_of(Rewis3dConfig(threshold=0.4))
    images, _, points, _ = logits_of(method, strong)
    _, taught_2d, _, taught_3d = logits_of(method, weak)
    found = method.losses(strong, weak, 0)
    torch.testing.assert_close(found["2d"], base(images, taught_2d, weak.label, method.config, "points"))
    surfaces = torch.where(weak.point_label == SKY, 255, weak.point_label)
    torch.testing.assert_close(found["3d"], base(points, taught_3d, surfaces, method.config, "points"))
