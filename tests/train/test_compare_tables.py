"""Means, deviations and ratios of a comparison, against numbers worked out by hand."""

import csv
import json

import pytest

from compare_builders import cells_in, recipe_file
from rw3d_train.compare.cells import write_json
from rw3d_train.compare.recipe import load_recipe
from rw3d_train.compare.tables import Number, shown, signed, summarize, summary_table, write_summary


def finish(cell, miou: float | None, road: float | None = 0.5, name: str = "2D student") -> None:
    """Make a cell look trained."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    write_json(cell.folder / "cell.json", {"identity": cell.identity, "finished": True, "seconds": 60.0})
    scores = {"miou": miou, "macc": 0.5, "all_acc": 0.9, "iou": {"road": road, "train": None}}
    write_json(cell.folder / "evaluation-val.json", {"scores": {name: scores}})


@pytest.fixture
def three_seeds(tmp_path):
    published = {
        "source": "theirs",
        "miou": {"full": {"scribbles": 80.0}, "teacher": {"scribbles": 60}, "TEL": {"scribbles": 50}},
    }
    path = recipe_file(tmp_path, seeds=[0, 1, 2], published=published)
    return load_recipe(path), cells_in(path, tmp_path / "runs")


def test_mean_deviation_and_shares_are_those_worked_out_by_hand(three_seeds):
    recipe, cells = three_seeds
    mious = {"full": (0.8, 0.8, 0.5), "sparse": (0.4, 0.2, 0.4), "teacher": (0.5, 0.4, 0.3)}
    for cell in cells:
        finish(cell, mious[cell.row][cell.seed])
    full, sparse, teacher, tel = summarize(recipe, cells)
    assert (teacher.miou.mean, teacher.miou.std, teacher.miou.n) == (pytest.approx(40), pytest.approx(10), 3)
    assert str(teacher.miou) == "40.0 ± 10.0"
    assert sparse.miou.mean == pytest.approx(100 / 3)
    assert sparse.miou.std == pytest.approx(20 / 3**0.5)  # (6.67² + 13.33² + 6.67²) / 2 = 133.3
    assert (teacher.ss_fs.mean, teacher.ss_fs.std) == (
        pytest.approx((62.5 + 50 + 60) / 3),
        pytest.approx(6.614, abs=1e-3),
    )
    assert (full.ss_fs.mean, full.ss_fs.std) == (100, 0)
    assert sparse.gain.mean == pytest.approx((-10 - 20 + 10) / 3)
    assert (signed(sparse.gain), signed(full.gain)) == ("-6.7 ± 15.3", "+30.0 ± 10.0")
    assert teacher.gain is None
    assert (teacher.published, teacher.published_ss_fs, tel.published_ss_fs) == (60, 75, 62.5)
    assert (tel.row, tel.miou, tel.state, shown(tel)) == ("TEL", None, "", "–")
    assert teacher.iou["road"].mean == 50
    assert teacher.iou["train"] is None


def test_shares_take_the_seeds_that_both_have(three_seeds):
    recipe, cells = three_seeds
    for cell in cells:
        if (cell.row, cell.seed) in {("full", 0), ("teacher", 0), ("teacher", 1)}:
            finish(cell, {"full": 0.8, "teacher": 0.4}[cell.row] + 0.1 * cell.seed)
    _, sparse, teacher, _ = summarize(recipe, cells, [cells[1].folder])
    assert (teacher.ss_fs, str(teacher.ss_fs)) == (Number(50, None, 1), "50.0")
    assert teacher.seeds == (0, 1)
    assert shown(teacher) == "45.0 ± 7.1 (2 of 3 seeds)"
    assert (sparse.state, shown(sparse)) == ("failed", "failed")


def test_networks_that_a_method_lacks_and_missing_scores_are_left_out(three_seeds):
    recipe, cells = three_seeds
    finish(cells[2], 0.5, name="3D student")
    finish(cells[5], None)
    teacher = summarize(recipe, cells)[2]
    assert (teacher.miou, teacher.gain, shown(teacher)) == (None, None, "–")


def test_files_hold_what_the_table_shows(three_seeds, tmp_path):
    recipe, cells = three_seeds
    for cell in cells:
        finish(cell, 0.4)
    entries = summarize(recipe, cells)
    write_summary(recipe, entries, tmp_path)
    tree = json.loads((tmp_path / "summary.json").read_text())
    assert tree["entries"][2]["miou"] == {"mean": 40.0, "std": 0.0, "n": 3}
    assert tree["entries"][3]["miou"] is None
    lines = list(csv.DictReader((tmp_path / "summary.csv").read_text().splitlines()))
    assert (lines[2]["row"], lines[2]["n"], lines[2]["miou_mean"], lines[2]["published"]) == (
        "teacher",
        "3",
        "40.0",
        "60.0",
    )
    classes = list(csv.DictReader((tmp_path / "classes.csv").read_text().splitlines()))
    assert [line["class"] for line in classes[:2]] == ["road", "train"]
    assert (classes[0]["iou_mean"], classes[1]["iou_mean"]) == ("50.0", "")
    assert len(summary_table(recipe, entries).rows) == 4
