"""The mean teacher against its closed forms, and that nothing but `update` moves it."""

import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rw3d_train.teacher import MeanTeacher, TeacherConfig, frozen_copy, unwrapped


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).double()


def constant(module: nn.Module, value: float) -> nn.Module:
    """`module` with every parameter and floating buffer set to `value`."""
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.fill_(value if tensor.is_floating_point() else int(value))
    return module


def value(module: nn.Module) -> float:
    """The one value that all parameters have."""
    found = torch.cat([parameter.flatten() for parameter in module.parameters()])
    assert torch.allclose(found, found[0].expand_as(found))
    return found[0].item()


def test_after_k_steps_it_is_where_the_closed_form_says():
    student = constant(network(), 10)
    teacher = MeanTeacher(student, TeacherConfig(alpha=0.9, warmup=None))
    constant(student, 2)
    for step in range(25):
        teacher.update(step, step)
    assert value(teacher.module) == pytest.approx(2 + 0.9**25 * (10 - 2), rel=1e-12)


def test_in_warm_up_it_is_the_mean_of_its_students():
    student = network()
    teacher = MeanTeacher(constant(student, 99), TeacherConfig(alpha=0.99))
    seen = []
    for step in range(60):
        seen.append(step**1.5)
        constant(student, seen[-1])
        teacher.update(step, 0)
        assert value(teacher.module) == pytest.approx(sum(seen) / len(seen), rel=1e-12)


def test_warm_up_ends_at_alpha():
    teacher = MeanTeacher(network(), TeacherConfig(alpha=0.99))
    assert [teacher.decay(step, 0) for step in (0, 1, 3, 98, 99, 100, 10**6)] == pytest.approx(
        [0, 1 / 2, 3 / 4, 98 / 99, 0.99, 0.99, 0.99]
    )


def test_with_the_official_reset_every_epoch_begins_with_a_copy():
    student = network()
    teacher = MeanTeacher(student, TeacherConfig(alpha=0.999, warmup="epoch"))
    for step in range(7):
        constant(student, step)
        teacher.update(step, step_in_epoch=step % 5)
    assert value(teacher.module) == pytest.approx((5 + 6) / 2)
    assert [teacher.decay(10**6, it) for it in (0, 1, 246, 999, 5000)] == pytest.approx(
        [0, 0.5, 1 - 1 / 247, 0.999, 0.999]
    )


@pytest.mark.parametrize("buffers", ["copy", "average"])
def test_buffers(buffers):
    student = constant(network(), 4)
    teacher = MeanTeacher(student, TeacherConfig(alpha=0.75, warmup=None, buffers=buffers))
    constant(student, 8)
    teacher.update(0, 0)
    norm = teacher.module[1]
    expected = 8 if buffers == "copy" else 5
    assert norm.running_mean.tolist() == norm.running_var.tolist() == [expected] * 4
    assert norm.num_batches_tracked.item() == 8


def test_a_copy_is_exact_and_no_alias():
    student = network().float()
    teacher = MeanTeacher(student, TeacherConfig())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.normal_()
    teacher.update(0, 0)
    for (name, old), new in zip(teacher.module.state_dict().items(), student.state_dict().values(), strict=True):
        assert torch.equal(old, new), name
        assert old.data_ptr() != new.data_ptr()


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_no_gradient_reaches_it_and_its_mode_is_its_own(mode):
    student = network()
    teacher = MeanTeacher(student, TeacherConfig(mode=mode))
    student.eval() if mode == "train" else student.train()
    points = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    prediction = teacher(points)
    student(points).sum().backward()
    teacher.update(3, 3)
    assert not prediction.requires_grad
    assert all(p.grad is None and not p.requires_grad and p.is_leaf for p in teacher.module.parameters())
    assert all(p.requires_grad for p in student.parameters())
    assert teacher.module.training == (mode == "train")
    assert (prediction == 0).any() == (mode == "train")  # dropout


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("order", ["ddp outside", "compile outside"])
def test_wrappers_are_taken_off(one_process, order):
    student = wrapped = network()
    wrappers = (DistributedDataParallel, partial(torch.compile, backend="eager"))
    for wrap in wrappers if order == "compile outside" else reversed(wrappers):
        wrapped = wrap(wrapped)
    assert wrapped is not student
    assert unwrapped(wrapped) is unwrapped(student) is student
    teacher = MeanTeacher(wrapped, TeacherConfig(warmup=None, alpha=0))
    assert list(teacher.module.state_dict()) == list(student.state_dict())
    constant(student, 5)
    teacher.update(0, 0)
    assert value(teacher.module) == 5


def test_a_module_without_buffers_or_with_integers_only():
    teacher = MeanTeacher(nn.Linear(2, 2), TeacherConfig())
    teacher.update(1, 1)
    counter = nn.Linear(1, 1)
    counter.register_buffer("count", torch.tensor(0))
    teacher = MeanTeacher(counter, TeacherConfig(buffers="average"))
    counter.count += 3
    teacher.update(5, 5)
    assert teacher.module.count.item() == 3


def test_a_frozen_copy_stays():
    student = constant(network(), 1)
    student(torch.randn(4, 3).double()).sum().backward()
    frozen = frozen_copy(student)
    constant(student, 2)
    assert value(frozen) == 1
    assert not frozen.training
    assert all(p.grad is None and not p.requires_grad for p in frozen.parameters())


RANK = """
import sys, torch, torch.distributed as dist
from torch import nn
from rw3d_train.teacher import MeanTeacher, TeacherConfig
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
for buffers in ("copy", "average"):
    student = nn.BatchNorm1d(4)
    teacher = MeanTeacher(student, TeacherConfig(alpha=0.7, buffers=buffers))
    torch.manual_seed(rank)
    for step in range(3):
        student(torch.randn(5, 4))
        teacher.update(step, step)
    for module in (student, teacher.module):
        found = [torch.empty(4) for _ in range(2)]
        dist.all_gather(found, module.running_mean)
        print("equal" if torch.equal(*found) else "different")
dist.destroy_process_group()
"""


def test_it_is_the_same_in_all_processes(tmp_path):
    """Although the running statistics of their students differ."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path / "rendezvous")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        output, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        assert output.split() == ["different", "equal"] * 2
