"""Training: resumed runs and several processes give what one undisturbed process gives; bad input is told beforehand."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rw3d_common import UserError
from rw3d_train.checkpoint import best_checkpoint, checkpoints, read_state
from rw3d_train.config import save_train_config
from rw3d_train.engine import fit
from train_builders import tiny_config, training_stores

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Path:
    """Read only."""
    return training_stores(tmp_path_factory.mktemp("train"))


@pytest.fixture(autouse=True)
def one_thread():
    """As the other processes here: sums over several threads differ in the last digit, which training amplifies."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(run: Path, name: str = "student_2d") -> dict[str, torch.Tensor]:
    """Of the newest checkpoint."""
    return load_file(checkpoints(run)[-1] / f"{name}.safetensors")


def assert_same(left: Path, right: Path, name: str, tolerance: float) -> None:
    one, other = weights(left, name), weights(right, name)
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=tolerance, atol=tolerance, msg=f"{name} {key}")


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def selected(run: Path) -> list[float]:
    """The scores that the best checkpoint was chosen by."""
    return [line["select/student/miou"] for line in lines(run) if "select/student/miou" in line]


def recipe(config, path: Path) -> Path:
    save_train_config(config, path)
    return path


def command(*arguments: object, processes: int = 1) -> list[str]:
    """`rw3d-train run`, by torchrun where several processes are asked for."""
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    return [*start, "rw3d_train", "run", *map(str, arguments)]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize("method", ["supervised", "ema", "rewis3d"])
def test_every_method_learns_what_it_is_shown(stores, tmp_path, method):
    config = (
        tiny_config(stores, method, run__epochs=6, method__cross_modal__start=2)
        if method == "rewis3d"
        else tiny_config(stores, method, run__epochs=6)
    )
    best = fit(config, tmp_path / "run", CPU)
    name = "loss/2d" if method == "supervised" else "loss/supervised_2d"  # totals also hold terms that set in later
    losses = [line[name] for line in lines(tmp_path / "run") if name in line]
    assert len(losses) == 6
    assert losses[-1] < 0.8 * losses[0]
    assert read_state(best)["class_map_hash"]
    assert (tmp_path / "run" / "overlays" / "epoch_0001.png").is_file()
    if method == "rewis3d":
        cross_modal = [line.get("loss/cross_modal_2d") for line in lines(tmp_path / "run") if "loss/2d" in line]
        assert cross_modal[:2] == [None, None]
        assert all(value > 0 for value in cross_modal[2:])


@pytest.mark.parametrize("method", ["ema", "rewis3d"])
def test_killed_and_resumed_equals_undisturbed(stores, tmp_path, method):
    """Six steps, two per epoch; the other run is killed at some moment after its third."""
    cross_modal = {"method__cross_modal__start": 1, "method__cross_modal__sky_teacher": "true"}
    changes = cross_modal if method == "rewis3d" else {}
    config = tiny_config(stores, method, run__epochs=3, run__save_steps=1, run__keep=3, **changes)
    fit(config, tmp_path / "straight", CPU)
    path = recipe(config, tmp_path / "recipe.yaml")
    run = tmp_path / "killed"
    first = subprocess.Popen(command("--config", path, "--out", run, "--device", "cpu"), env=ENVIRONMENT)
    deadline = time.monotonic() + 240
    while not checkpoints(run) or read_state(checkpoints(run)[-1])["step"] < 3:
        assert time.monotonic() < deadline
        assert first.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert read_state(checkpoints(run)[-1])["step"] < 6
    fit(config, run, CPU, resume=True)
    more = ("student_3d", "teacher_3d", "sky_teacher") if method == "rewis3d" else ()
    for name in ("student_2d", "teacher_2d", *more):
        assert_same(tmp_path / "straight", run, name, 1e-6)
    assert selected(run)[-1] == selected(tmp_path / "straight")[-1]


def test_two_processes_equal_one_with_the_whole_batch(stores, tmp_path):
    """In 2D, until the 3D teacher speaks: the running statistics of the 3D network are each process's own."""
    config = tiny_config(stores, "rewis3d", run__epochs=2)
    fit(config, tmp_path / "one", CPU)
    path = recipe(config, tmp_path / "recipe.yaml")
    done = subprocess.run(
        command("--config", path, "--out", tmp_path / "two", "--device", "cpu", processes=2),
        env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for one, two in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        for key in one.keys() & {"loss/2d", "loss/supervised_2d", "loss/confident_share_2d", "select/student/miou"}:
            assert one[key] == pytest.approx(two[key], rel=1e-5, abs=1e-5), (key, one["step"])
    assert "3D teacher" in done.stdout


def test_accumulated_parts_cover_the_same_items(stores, tmp_path):
    fit(tiny_config(stores, "ema", run__accumulate=2), tmp_path / "run", CPU)
    assert read_state(best_checkpoint(tmp_path / "run"))["bad_steps"] == 0


def test_official_preset_trains(stores, tmp_path):
    config = tiny_config(
        stores,
        "rewis3d",
        "official",
        method__cross_modal__start=0,
        method__cross_modal__sky_teacher="true",
        run__epochs=1,
    )
    fit(config, tmp_path / "run", CPU)
    assert (checkpoints(tmp_path / "run")[-1] / "sky_teacher.safetensors").is_file()
    assert config.method.consistency_2d == "elements"
    assert config.method.teacher.warmup == "epoch"


def test_steps_that_are_not_finite_are_skipped_counted_and_end_the_run(stores, tmp_path):
    with pytest.raises(UserError, match=r"3 steps had losses or gradients that are not finite; train with"):
        fit(tiny_config(stores, "ema", optim__lr_2d=1e18, run__max_bad_steps=2, run__epochs=20), tmp_path / "run", CPU)


def test_a_folder_holds_one_run(stores, tmp_path):
    fit(tiny_config(stores, run__epochs=1), tmp_path / "run", CPU)
    with pytest.raises(UserError, match="holds a run already; continue it with --resume"):
        fit(tiny_config(stores, run__epochs=1), tmp_path / "run", CPU)
    with pytest.raises(UserError, match=r"another configuration \(optim\.lr_2d: 0\.003 → 0\.001\)"):
        fit(tiny_config(stores, run__epochs=1, optim__lr_2d=0.001), tmp_path / "run", CPU, resume=True)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"run__precision": "fp16"}, r"fp16 needs a CUDA GPU"),
        ({"run__batch_size": 400}, r"8 training items for run\.batch_size 400"),
        ({"run__batch_size": 3, "run__accumulate": 2}, r"batch_size 3 cannot be shared by 1 processes × 2 parts; take a multiple of 2"),
        ({"data__select": "val", "data__split": "val"}, r"no scene of split 'val' to choose the best checkpoint by"),
        ({"data__split": "test"}, r"no scene of split 'test', only of train, val"),
        ({"data__dataset": "waymo"}, r"a scene of 'kitti360', the run is for 'waymo'"),
        ({"data__stores": "nowhere"}, r"nowhere: no finished scene there; run `rw3d-prep reconstruct --dataset kitti360`"),
        ({"model_2d__name": "random:b9"}, r"random:b9: no such SegFormer"),
    ],
)  # fmt: skip
def test_bad_configuration_is_told_in_one_sentence(stores, tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        fit(tiny_config(stores, **changes), tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists(), "a mended command must not find a run to resume"


def test_stores_of_another_class_map_are_refused(stores, tmp_path, monkeypatch):
    from rw3d_common import manifest

    entry = manifest.dataset_entry("kitti360")
    classes = (entry.classes[0].model_copy(update={"name": "street"}), *entry.classes[1:])
    other = entry.model_copy(update={"classes": classes})
    monkeypatch.setattr("rw3d_train.training_data.dataset_entry", lambda _: other)
    with pytest.raises(UserError, match=r"made with another class map than data_manifest\.yaml has now"):
        fit(tiny_config(stores), tmp_path / "run", CPU)


def test_damaged_checkpoint_is_named(stores, tmp_path):
    config = tiny_config(stores, run__epochs=1)
    fit(config, tmp_path / "run", CPU)
    path = checkpoints(tmp_path / "run")[-1] / "student_2d.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"student_2d\.safetensors: cannot be read .*; take an older checkpoint"):
        fit(config, tmp_path / "run", CPU, resume=True)
