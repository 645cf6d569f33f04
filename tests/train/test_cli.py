"""`rw3d-train` as it is typed: bare run, resume, exit codes, and every command on a finished run."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from builders import save_image
from rw3d_common import open_scene
from rw3d_common.collection import store_paths
from rw3d_common.config import read_yaml
from rw3d_common.images import read_image
from rw3d_common.log import log
from rw3d_train import cli
from rw3d_train.checkpoint import checkpoints, read_state
from train_builders import tiny_config, training_stores


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """stores/kitti360, and a recipe of that name with small networks; read only."""
    folder = tmp_path_factory.mktemp("cli")
    training_stores(folder, frames=3).rename(folder / "kitti360-stores")
    (folder / "stores").mkdir()
    (folder / "kitti360-stores").rename(folder / "stores" / "kitti360")
    small = {"method__cross_modal__start": 0, "run__batch_size": 3, "run__epochs": 1}
    recipe = {
        section: tiny_config(Path("stores/kitti360"), "rewis3d", preset, **small).model_dump(mode="json")
        for section, preset in (("train", "paper"), ("train_official", "official"))
    }
    (folder / "pipelines").mkdir()
    (folder / "pipelines" / "kitti360.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture
def folder(workplace, tmp_path, monkeypatch) -> Path:
    """The working folder of a test, with the stores of the workplace."""
    monkeypatch.setattr("rw3d_common.config.PIPELINES", (workplace / "pipelines",))
    (tmp_path / "stores").symlink_to(workplace / "stores")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def rw3d_train(monkeypatch, capsys):
    """Runs a command; gives its exit code, output and messages."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    logging = (log.handlers[:], log.propagate, log.level)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rw3d-train", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        return (end.value.code or 0, *capsys.readouterr())

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)
    log.handlers[:], log.propagate, log.level = logging


@pytest.fixture(scope="module")
def trained(workplace) -> Path:
    """A finished run of rewis3d, made by the command; read only but for evaluations."""
    code = (
        "import sys, pathlib, rw3d_common.config as c; c.PIPELINES = (pathlib.Path('pipelines'),);"
        "from rw3d_train.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, "run", "--device", "cpu", "--out", "runs/first"],
        cwd=workplace, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "mIoU" in done.stdout
    return workplace / "runs" / "first"


def test_bare_run_trains_the_dataset_that_is_there(folder, rw3d_train):
    code, shown, said = rw3d_train("run", "--method", "ema")
    assert code == 0, said
    (run,) = (folder / "runs").iterdir()
    assert re.fullmatch(r"kitti360-ema-\d{8}-\d{6}", run.name)
    assert said.startswith(
        f"train ema on stores/kitti360 (train), unet, 1 epochs of batches of 3, into runs/{run.name}"
    )
    assert re.search(r"2D student.*2D teacher", shown)
    assert "mIoU" in shown
    assert json.loads((run / "evaluation-val.json").read_text())["split"] == "val"
    written = read_yaml(run / "config.yaml")["train"]["method"]
    assert written["kind"] == "ema"
    assert written["teacher"]["alpha"] == 0.99
    assert "cross_modal" not in written


def test_preset_and_set_change_the_recipe(folder, rw3d_train):
    code, _, said = rw3d_train(
        "run", "--preset", "official", "--method", "ema", "--set", "run.precision=fp32", "--set", "run.seed=3",
        "--out", "there",
    )  # fmt: skip
    assert code == 0, said
    assert "chosen on split val (official): the score to be reported there is biased" in said
    written = read_yaml(folder / "there" / "config.yaml")["train"]
    assert (written["method"]["teacher"]["warmup"], written["run"]["seed"]) == ("epoch", 3)


def test_stores_that_leave_the_dataset_open(folder, rw3d_train, tmp_path):
    code, _, said = rw3d_train("run", "--stores", tmp_path / "empty")
    assert code == 2
    assert re.search(r"empty: no scene with samples; run `rw3d-prep reconstruct --dataset NAME` and", said)
    shutil.copytree(store_paths(folder / "stores")[0], tmp_path / "several" / "a.zarr")
    shutil.copytree(store_paths(folder / "stores")[0], tmp_path / "several" / "b.zarr")
    meta = tmp_path / "several" / "b.zarr" / "zarr.json"
    document = json.loads(meta.read_text())
    document["attributes"]["dataset"] = "waymo"
    meta.write_text(json.dumps(document))
    code, _, said = rw3d_train("run", "--stores", tmp_path / "several")
    assert code == 2
    assert "several: scenes of kitti360, waymo; choose one with --dataset kitti360" in said
    assert not (folder / "runs").exists()


def test_a_store_of_another_schema_is_refused_before_anything_is_made(folder, rw3d_train, tmp_path):
    shutil.copytree(store_paths(folder / "stores")[0], tmp_path / "old" / "a.zarr")
    meta = tmp_path / "old" / "a.zarr" / "zarr.json"
    document = json.loads(meta.read_text())
    document["attributes"]["schema_version"] = 99
    meta.write_text(json.dumps(document))
    code, _, said = rw3d_train("run", "--dataset", "kitti360", "--stores", tmp_path / "old", "--out", "there")
    assert code == 2
    assert re.search(r"a\.zarr: .*99", said)
    assert not list((folder / "there").glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "--dataset", "kitty360"], r"no recipe for dataset 'kitty360' \(did you mean 'kitti360'\?\)"),
        (["run", "--set", "run.epoch=3"], r"unknown key 'run\.epoch' \(did you mean 'epochs'\?\)"),
        (["run", "--device", "gpu"], r"device gpu: not on this machine; take --device cpu or auto"),
        (["run", "--resume"], r"runs: no run to resume; name its folder with --out, or start one without --resume"),
        (["run", "--resume", "--method", "ema"], r"--method ema: --resume goes on as the run began; leave it out"),
        (["run", "--config", "mine.yaml"], r"mine\.yaml: no such file; give an existing YAML file"),
        (["run", "--wandb", "--method", "ema"], r"--wandb needs its package: pip install wandb; or leave the flag out"),
        (["evaluate", "nowhere"], r"nowhere: no such folder; give a run folder"),
        (["predict", "stores", "a.png"], r"stores: no finished checkpoint there"),
        (["export", "nowhere", "--out", "x"], r"nowhere: no such folder"),
    ],
)
def test_bad_commands_end_with_2_and_one_sentence(folder, rw3d_train, monkeypatch, arguments, sentence):
    monkeypatch.setitem(sys.modules, "wandb", None)
    code, _, said = rw3d_train(*arguments)
    assert code == 2
    assert re.search(sentence, said.splitlines()[-1])
    assert "Traceback" not in said


def test_resume_goes_on_with_the_newest_run(folder, rw3d_train):
    for name in ("older", "newer"):
        assert rw3d_train("run", "--method", "ema", "--out", f"runs/{name}")[0] == 0
    os.utime(folder / "runs" / "older" / "config.yaml", (1, 1))
    code, _, said = rw3d_train("run", "--resume")
    assert code == 0
    assert re.search(r"resumed from runs/newer/checkpoints/step_\d+: epoch 1, step 2 of 2", said)
    os.utime(folder / "runs" / "newer" / "config.yaml", (0, 0))
    code, _, said = rw3d_train("run", "--resume", "--set", "run.epochs=2")
    assert code == 2  # the schedule would be another
    assert re.search(r"runs/older: began with another configuration \(run\.epochs: 1 → 2\); resume with the old", said)
    config = folder / "runs" / "older" / "config.yaml"
    config.write_text(re.sub(r"\n +confident_over: unlabelled", "", config.read_text()))
    code, _, said = rw3d_train("run", "--resume", "--out", "runs/older")
    assert code == 0, said  # an option newer than the run has its default


def test_sigterm_ends_with_75_and_resume_finishes(folder, workplace, rw3d_train):
    changes = {"run__epochs": 25, "run__batch_size": 3, "run__save_steps": 1, "run__evaluate_every": 25}
    recipe = tiny_config(Path("stores/kitti360"), "ema", **changes)
    Path("mine.yaml").write_text(yaml.safe_dump({"train": recipe.model_dump(mode="json")}))
    process = subprocess.Popen(
        [sys.executable, "-m", "rw3d_train", "run", "--config=mine.yaml", "--out=runs/r", "--device=cpu"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while not checkpoints(Path("runs/r")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1]
    assert process.returncode == 75, said
    assert "stopped by SIGTERM; `rw3d-train run --resume` goes on with a run from its last checkpoint" in said
    assert "Traceback" not in said
    assert rw3d_train("run", "--resume", "--set", "run.save_steps=1000")[0] == 0
    assert read_state(checkpoints(Path("runs/r"))[-1])["step"] == 50


def test_evaluate_prints_a_table_and_writes_files(trained, folder, rw3d_train):
    code, shown, said = rw3d_train("evaluate", trained, "--workers", 0, "--stores", folder / "stores" / "kitti360")
    assert code == 0, said
    for column in ("2D student", "2D teacher", "3D student", "3D teacher", "road", "mIoU", "mAcc", "allAcc"):
        assert column in shown
    rows = (trained / "evaluation-val.csv").read_text().splitlines()
    assert rows[0] == "class,2D student,2D teacher,3D student,3D teacher"
    assert rows[-1].startswith("all_acc,")


def test_predict_and_export_use_the_run(trained, folder, rw3d_train):
    scene = open_scene(store_paths(folder / "stores")[0])
    image = save_image(folder / "a.png", read_image(scene.root / scene.views.attrs["images"][0]))
    code, _, said = rw3d_train("predict", trained, image, "--out", "out", "--who", "teacher")
    assert code == 0, said
    assert "1 images: out/ids, out/color, out/overlay" in said
    assert (folder / "out" / "ids" / "a.png").is_file()
    code, _, said = rw3d_train("export", trained, "--out", "hf")
    assert code == 2
    assert "its network is not one of transformers; take --format onnx" in said


def test_overlays_and_metrics_are_there(trained, workplace):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    step = next(line for line in lines if "loss/2d" in line)
    for name in (
        "loss/3d", "loss/supervised_2d", "loss/consistency_2d", "loss/confident_share_2d", "loss/cross_modal_2d",
        "loss/cross_modal_3d", "labelled_pixels", "labelled_points", "correspondences_per_pixel", "lr/2d", "lr/3d",
        "samples_per_s", "data_wait_share", "bad_steps", "step", "time",
    ):  # fmt: skip
        assert isinstance(step[name], float | int), name
    assert 0 < step["labelled_pixels"] < 1
    assert lines[-1]["epoch"] == 1
    picture = read_image(trained / "overlays" / "epoch_0001.png")
    assert picture.shape == (32 + 4, 5 * 48 + 4 * 4, 3)  # image, label, teacher, student, target; one item


def test_scenes_lists_what_training_reads(folder, rw3d_train):
    code, shown, _ = rw3d_train("scenes", "stores/kitti360")
    assert code == 0
    assert "drive_0002" in shown


@pytest.mark.parametrize("command", ["run", "evaluate", "predict", "export", "scenes"])
def test_help_teaches(rw3d_train, command):
    code, shown, _ = rw3d_train(command, "--help")
    assert code == 0
    assert len(shown) > 300
