"""Parameter groups by name, and schedules against their formulas."""

import math

import pytest
import torch
from torch import nn

from rw3d_train.models.segformer import segformer
from rw3d_train.optim import OptimConfig, optimizer_2d, optimizer_3d, schedule_2d, schedule_3d

OFFICIAL = OptimConfig(lr_2d=3e-5, lr_3d=2e-3, lr_blocks=2e-4)


def rates(optimizer, schedule, steps: int) -> list[list[float]]:
    """Learning rates of the groups at each step."""
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return found


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block1, self.head = nn.Linear(2, 2), nn.Linear(3, 3), nn.Linear(4, 4)


def test_paper_one_rate_for_everything():
    for make, rate, decay in ((optimizer_2d, 5e-5, 1e-8), (optimizer_3d, 1e-3, 5e-3)):
        groups = make(Network(), OptimConfig()).param_groups
        assert {(group["lr"], group["weight_decay"]) for group in groups} == {(rate, decay)}
        assert sum(len(group["params"]) for group in groups) == 6


def test_official_blocks_have_a_rate_of_their_own():
    for make, rate, decay in ((optimizer_2d, 3e-5, 1e-8), (optimizer_3d, 2e-3, 5e-3)):
        rest, blocks = make(Network(), OFFICIAL).param_groups
        assert (rest["lr"], blocks["lr"]) == (rate, 2e-4)
        assert rest["weight_decay"] == blocks["weight_decay"] == decay
        assert [p.numel() for p in blocks["params"]] == [9, 3]
        assert [p.numel() for p in rest["params"]] == [4, 2, 16, 4]


def test_official_blocks_of_segformer_b4():
    """58.9 of 64.0 million parameters, as in the released code."""
    with torch.device("meta"):
        model = segformer("random:b4", [str(i) for i in range(19)])
    rest, blocks = (sum(p.numel() for p in group["params"]) for group in optimizer_2d(model, OFFICIAL).param_groups)
    assert (round(blocks / 1e6, 1), round((rest + blocks) / 1e6, 1)) == (58.9, 64.0)


def test_frozen_parameters_and_networks_without_blocks():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    (group,) = optimizer_2d(model, OFFICIAL).param_groups
    assert group["params"] == [model.weight]


def test_2d_decays_linearly_to_zero():
    optimizer = optimizer_2d(Network(), OFFICIAL)
    found = rates(optimizer, schedule_2d(optimizer, 40), 41)
    for step, (rest, blocks) in enumerate(found):
        assert (rest, blocks) == pytest.approx((3e-5 * (1 - step / 40), 2e-4 * (1 - step / 40)), abs=1e-18)


def test_3d_is_one_cycle():
    steps = 1000
    optimizer = optimizer_3d(Network(), OFFICIAL)
    found = rates(optimizer, schedule_3d(optimizer, steps), steps)
    for group, top in enumerate((2e-3, 2e-4)):
        for step in (0, 10, 39, 40, 500, 999):
            up = 0.04 * steps - 1
            low, share = (top / 10, step / up) if step <= up else (top / 1000, (steps - 1 - step) / (steps - 1 - up))
            expected = low + (top - low) * (1 - math.cos(math.pi * share)) / 2
            assert found[step][group] == pytest.approx(expected, rel=1e-6)
    assert max(range(steps), key=lambda step: found[step][0]) == 39


@pytest.mark.parametrize("steps", [1, 2, 24, 25, 26, 50])
def test_short_runs_have_schedules_too(steps):
    for make, schedule in ((optimizer_2d, schedule_2d), (optimizer_3d, schedule_3d)):
        optimizer = make(Network(), OptimConfig())
        found = rates(optimizer, schedule(optimizer, steps), steps)
        assert all(0 < rate <= 1e-3 for step in found for rate in step)


def test_a_resumed_schedule_continues():
    whole = optimizer_3d(Network(), OFFICIAL)
    schedule = schedule_3d(whole, 100)
    expected = rates(whole, schedule, 100)[60:]
    first = optimizer_3d(Network(), OFFICIAL)
    schedule = schedule_3d(first, 100)
    rates(first, schedule, 60)
    second = optimizer_3d(Network(), OFFICIAL)
    resumed = schedule_3d(second, 100)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    assert rates(second, resumed, 40) == expected
