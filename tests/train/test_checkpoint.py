"""Checkpoints are whole or not there, whatever moment a run is killed at; damaged ones are named; nothing runs code."""

import socket
from pathlib import Path

import pytest
import torch
from torch import nn

from rw3d_common import UserError
from rw3d_train import checkpoint
from rw3d_train.checkpoint import (
    best_checkpoint,
    checkpoints,
    load_networks,
    load_training,
    prune,
    read_state,
    save_checkpoint,
    step_folder,
)
from rw3d_train.models.segmenter import segmenter
from rw3d_train.networks import rebuild_2d
from rw3d_train.trained import load, load_3d
from train_builders import SEGFORMER, kitti_classes, saved_run, tiny_config

STATE = dict.fromkeys(checkpoint.REQUIRED, 0)


class Killed(BaseException):
    """Stands for the process's end."""


def network(value: float) -> nn.Module:
    made = nn.Linear(2, 1)
    nn.init.constant_(made.weight, value)
    return made


def save(folder: Path, value: float) -> None:
    save_checkpoint(folder, {"net": network(value)}, {"n": torch.tensor(value)}, {**STATE, "step": value})


def value_in(folder: Path) -> float:
    found = network(0)
    load_networks(folder, {"net": found})
    assert read_state(folder)["step"] == float(load_training(folder)["n"])
    return float(found.weight[0, 0].detach())


def test_a_checkpoint_is_read_as_it_was_saved(tmp_path):
    save(tmp_path / "c", 3)
    assert value_in(tmp_path / "c") == 3
    assert {path.name for path in tmp_path.iterdir()} == {"c"}


@pytest.mark.parametrize("moment", range(8))
def test_a_kill_at_any_moment_leaves_a_usable_best(tmp_path, monkeypatch, moment):
    """Killed before the n-th change of the folder: the best is the old or the new one, and can be replaced again."""
    best = tmp_path / "checkpoints" / "best"
    save(best, 1)
    count = iter(range(100))

    def killing(function):
        def act(*arguments, **keywords):
            if next(count) == moment:
                raise Killed
            return function(*arguments, **keywords)

        return act

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", killing(checkpoint.shutil.rmtree))
        patch.setattr(Path, "rename", killing(Path.rename))
        patch.setattr(checkpoint, "_sync", killing(checkpoint._sync))
        try:
            save(best, 2)
            finished = True
        except Killed:
            finished = False
    found = value_in(best_checkpoint(tmp_path))
    assert found == 2 if finished else found in (1, 2)
    with monkeypatch.context() as patch:  # a second kill, at the rename that would leave nothing
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            save(best, 3)
    assert value_in(best_checkpoint(tmp_path)) in (1, 2)
    save(best, 4)
    assert value_in(best_checkpoint(tmp_path)) == 4


def test_the_newest_are_kept_and_halves_are_removed(tmp_path):
    for step in (1, 2, 10, 9):
        save(step_folder(tmp_path, step), step)
    (tmp_path / "checkpoints" / "step_00000011.tmp").mkdir()
    (tmp_path / "checkpoints" / "step_00000002.old").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == [f"step_{step:08d}" for step in (1, 2, 9, 10)]
    prune(tmp_path, 2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_00000009", "step_00000010"]
    assert best_checkpoint(tmp_path) == step_folder(tmp_path, 10)  # no best was chosen


def test_a_run_without_checkpoint_is_told(tmp_path):
    with pytest.raises(
        UserError, match=r"no finished checkpoint there; start or resume it with `rw3d-train run --resume`"
    ):
        best_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "damage", "read", "sentence"),
    [
        ("net.safetensors", lambda p: p.write_bytes(p.read_bytes()[:20]), value_in, r"net\.safetensors: cannot be read"),
        ("net.safetensors", Path.unlink, value_in, r"net\.safetensors: no such file; the checkpoint lacks 'net'"),
        ("training.pt", lambda p: p.write_bytes(p.read_bytes()[:100]), load_training, r"training\.pt: cannot be read"),
        ("training.pt", Path.unlink, load_training, r"training\.pt: cannot be read .*; take an older checkpoint"),
        ("checkpoint.json", lambda p: p.write_text('{"step": 1'), read_state, r"checkpoint\.json: damaged \("),
        ("checkpoint.json", lambda p: p.write_text('{"step": 1}'), read_state, r"checkpoint\.json: lacks epoch, position"),
        ("checkpoint.json", lambda p: p.write_text("[]"), read_state, r"checkpoint\.json: lacks step, epoch"),
        ("checkpoint.json", Path.unlink, read_state, r"checkpoint\.json: no such file; .* is no checkpoint"),
    ],
)  # fmt: skip
def test_damage_is_named(tmp_path, name, damage, read, sentence):
    save(tmp_path / "c", 1)
    damage(tmp_path / "c" / name)
    with pytest.raises(UserError, match=sentence):
        read(tmp_path / "c")


def test_weights_of_another_network_are_refused(tmp_path):
    save(tmp_path / "c", 1)
    with pytest.raises(UserError, match=r"net\.safetensors: does not fit the configured network \(.*size mismatch"):
        load_networks(tmp_path / "c", {"net": nn.Linear(3, 1)})


class Code:
    """What a tampered file would run when it is unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('the file ran code')",))


def test_a_tampered_file_runs_no_code(tmp_path):
    save(tmp_path / "c", 1)
    torch.save({"n": Code()}, tmp_path / "c" / "training.pt")
    with pytest.raises(UserError, match=r"training\.pt: cannot be read"):
        load_training(tmp_path / "c")


def test_wrapped_networks_are_saved_by_their_own_names(tmp_path):
    compiled = nn.Module()
    compiled._orig_mod = network(5)  # as torch.compile wraps it, whose import warns of torch's own use of TorchScript
    save_checkpoint(tmp_path / "c", {"net": compiled}, {}, STATE)
    found = network(0)
    load_networks(tmp_path / "c", {"net": found})
    assert float(found.weight[0, 0].detach()) == 5


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_arguments, **_keywords):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("name", ["unet", "segformer", "random:eomt-tiny"])
def test_a_run_is_loaded_without_the_hub(tmp_path, no_network, name):
    """Even where the recipe names weights of the hub: the checkpoint describes its own network."""
    classes = kitti_classes()
    if name == "segformer":
        labels = {"id2label": dict(enumerate(classes.names)), "label2id": {}}
        net = rebuild_2d({"kind": "segformer", "config": {**SEGFORMER, **labels}})
    else:
        net = segmenter(name, classes.names).eval()
    config = tiny_config(tmp_path / "stores", "ema", model_2d__name="nvidia/mit-b4")
    run = saved_run(tmp_path / "run", {"student_2d": net}, config, classes)
    loaded = load(run)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(image), net(image))
    assert loaded.classes.names == classes.names
    with pytest.raises(UserError, match=r"teacher_2d\.safetensors: no such file; the checkpoint lacks 'teacher_2d'"):
        load(run, "teacher")
    with pytest.raises(UserError, match=r"student_3d\.safetensors: no such file; the checkpoint lacks 'student_3d'"):
        load_3d(run)


def test_an_unknown_network_is_told():
    with pytest.raises(UserError, match=r"unknown kind of network 'vit'; use the rw3d that wrote this checkpoint"):
        rebuild_2d({"kind": "vit"})
