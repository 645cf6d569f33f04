"""`rw3d-train compare` as it is typed: one real comparison of two small trainings, and how it ends otherwise."""

import json
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest

from compare_builders import ROWS, recipe_file
from rw3d_common.images import read_image
from rw3d_common.log import log
from rw3d_train import cli
from rw3d_train.compare import plots, runner
from train_builders import training_stores

FAKE = str(Path(__file__).parents[1] / "fake_trainer.py")
TWO = [{"name": "Rewis3d", "method": "rewis3d"}]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    training_stores(folder, frames=3)
    return folder


@pytest.fixture
def rw3d_train(workplace, monkeypatch, capsys):
    """Runs a command in the workplace; gives its exit code, output and messages."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    logging = (log.handlers[:], log.propagate, log.level)
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

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


def test_a_comparison_trains_and_reports(workplace, rw3d_train):
    recipe = recipe_file(workplace, rows=TWO, baseline=None, seeds=[3], set=["run.epochs=1"], pictures=2)
    code, shown, said = rw3d_train("compare", recipe, "--plan")
    assert (code, "2 trainings, 0 finished, 2 to do" in said) == (0, True)
    code, shown, said = rw3d_train("compare", recipe, "--device", "cpu")
    assert code == 0, said
    assert re.search(r"done Rewis3d · scribbles · seed 3 in \d+ s: mIoU 2D student \d+\.\d", said)
    out = workplace / "reports" / "recipe"
    entries = json.loads((out / "summary.json").read_text())["entries"]
    (cell,) = (workplace / "runs" / "compare").glob("kitti360-rewis3d-seed3-*")
    scores = json.loads((cell / "evaluation-val.json").read_text())["scores"]["2D student"]
    assert entries[1]["miou"]["mean"] == pytest.approx(100 * scores["miou"], abs=0.006)
    report, page = (out / "report.md").read_text(), (out / "report.html").read_text()
    number = f"{100 * scores['miou']:.1f}"
    assert f"| Rewis3d | {number} |" in report
    assert f">{number}</td>" in page
    assert re.search(rf"Rewis3d.*{number}", shown)
    pictures = re.findall(r"\]\((pictures/[^)]+)\)", report)
    assert {Path(name).stem for name in pictures} >= {"scores", "predictions_0", "losses_0", "held_out"}
    assert all((out / name).stat().st_size > 1000 for name in pictures)
    assert read_image(out / "pictures" / "predictions_0.jpg").shape[1] == 170 + 2 * 446
    assert page.count("data:image/") == len(pictures)
    assert not re.search(r'src="(?!data:)|<script|href="http', page)
    for words in ("rw3d-train run --config", "labelled pixels", "torch", "| road |", "seed 3"):
        assert words in report, words
    assert json.loads((cell / "cell.json").read_text())["versions"]["device"] == "cpu, 1 thread"


def test_scores_of_before_are_enough_for_another_report(workplace, rw3d_train, monkeypatch):
    monkeypatch.setattr(runner, "TRAINER", ("false",))
    recipe = recipe_file(workplace, rows=[*TWO, *ROWS], seeds=[3], set=["run.epochs=1"], pictures=0, baseline=None)
    code, shown, said = rw3d_train("compare", recipe, "--report", "--out", "again")
    assert code == 0, said
    assert re.search(r"teacher +│ scribbles │ +– │", shown)
    assert re.search(r"Rewis3d +│ scribbles │ +\d+\.\d │", shown)
    assert "4 trainings, 2 of them finished; seeds 3" in (workplace / "again" / "report.md").read_text()


def test_a_failed_training_is_reported_and_ends_with_3(workplace, rw3d_train, monkeypatch):
    monkeypatch.setattr(runner, "TRAINER", (sys.executable, FAKE))
    Path("fake.json").write_text(json.dumps({"ema 0": "fail"}))
    recipe = recipe_file(workplace, seeds=[0], pictures=0)
    code, _, said = rw3d_train("compare", recipe, "--runs", "fake", "--out", "failed")
    assert code == 3
    assert "1 trainings failed: failed/failures.jsonl; the same command tries them again" in said
    (line,) = (workplace / "failed" / "failures.jsonl").read_text().splitlines()
    assert (json.loads(line)["row"], json.loads(line)["code"]) == ("teacher", 2)
    report = (workplace / "failed" / "report.md").read_text()
    assert "| teacher | failed |" in report
    assert "rw3d-train: stores/x: no scene; make some" in report
    Path("fake.json").unlink()
    code, _, said = rw3d_train("compare", recipe, "--runs", "fake", "--out", "failed", "--only", "Teacher")
    assert code == 0, said
    assert not (workplace / "failed" / "failures.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nothing"], r"nothing: no such recipe.*; give a YAML file, or one of .*demo_points3d"),
        (["recipe.yaml", "--seeds", "0,x"], r"--seeds 0,x: expected numbers such as 0,1,2"),
        (["recipe.yaml", "--only", "techer"], r"--only techer: no row or column has this in its name"),
        (["recipe.yaml", "--jobs", "2", "--gpus", "0"], r"--jobs 2: only 1 GPUs are named"),
        (
            ["lacking/recipe.yaml"],
            r"lacking/stores: the scenes 'scribbles' are not there or not complete; give --prepare",
        ),
    ],
)
def test_bad_commands_end_with_2_and_one_sentence(workplace, rw3d_train, arguments, sentence):
    recipe_file(workplace)
    recipe_file(workplace / "lacking")
    code, _, said = rw3d_train("compare", *arguments, "--runs", "none")
    assert code == 2
    assert re.search(sentence, said.splitlines()[-1])
    assert not (workplace / "none").exists()


def test_missing_matplotlib_is_said_before_anything_is_trained(workplace, rw3d_train, monkeypatch):
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    code, _, said = rw3d_train("compare", recipe_file(workplace), "--runs", "none")
    assert (code, said) == (2, "rw3d-train: the report's plots need matplotlib: pip install 'rw3d[report]'\n")
    assert rw3d_train("compare", recipe_file(workplace), "--plan")[0] == 0


def test_scenes_without_truth_to_score_by_are_refused(workplace, rw3d_train):
    shutil.copytree(workplace / "stores" / "train", workplace / "lacking" / "stores" / "train")
    code, _, said = rw3d_train("compare", recipe_file(workplace / "lacking"), "--runs", "none")
    assert code == 2
    assert re.search(r"lacking/stores: no scene of split val with dense labels to score by; reconstruct", said)
