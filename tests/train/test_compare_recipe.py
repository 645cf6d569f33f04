"""Recipes of comparisons: what is refused, and which cells are one."""

import json
import shlex
from pathlib import Path

import pytest
import yaml

from compare_builders import ROWS, cells_in, recipe_file
from rw3d_common.errors import UserError
from rw3d_train.compare.cells import distinct, is_finished, write_json
from rw3d_train.compare.recipe import load_recipe, recipe_path
from rw3d_train.config import load_train_config

COLUMN = {"name": "points", "stores": "points"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"colums": []}, r"recipe\.yaml: unknown key 'colums' \(did you mean 'columns'\?\)"),
        ({"rows": [{**ROWS[1], "store": "a"}]}, r"unknown key 'rows\.0\.store' \(did you mean 'stores'\?\)"),
        ({"rows": [{"name": "a", "method": "mean teacher"}]}, r"rows\.0\.method = 'mean teacher': input should be 'superv"),
        ({"rows": [ROWS[1], ROWS[1]]}, r"two rows are called 'teacher'; give each a name of its own"),
        ({"reference": {"name": "teacher", "method": "ema"}}, r"two rows are called 'teacher'"),
        ({"baseline": "techer"}, r"baseline: no row 'techer' \(did you mean 'teacher'\?\); known: sparse, teacher"),
        ({"columns": [COLUMN]}, r"row 'full', column 'points': no set of stores 'points'.*; known: scribbles"),
        ({"columns": [{"name": "points"}]}, r"row 'full', column 'points': no scenes; give the row or the column `stores:`"),
        ({"rows": [{**ROWS[1], "stores": {"point": "scribbles"}}]}, r"stores of row 'teacher': no column 'point'"),
        ({"seeds": [0, 0]}, r"seeds = \[0, 0\]: one of them comes twice"),
        ({"seeds": []}, r"seeds = \[\]"),
        ({"dataset": "demo"}, r"say what the cells start from: `dataset:` or `config:`, one of the two"),
        ({"x": "length"}, r"column 'scribbles' has no `value:` on the axis 'length'; add it"),
        ({"published": {"source": "us", "miou": {"TEL": {"point": 3}}}}, r"published\.miou\.TEL: no column 'point'"),
        ({"stores": {"scribbles": {"folder": "a", "copy_of": "b"}}}, r"stores\.scribbles\.copy_of: no set of stores that"),
    ],
)  # fmt: skip
def test_a_recipe_that_does_not_fit_is_refused_with_one_sentence(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence) as refusal:
        load_recipe(recipe_file(tmp_path, **changes))
    assert "\n" not in str(refusal.value)


def test_an_assignment_that_does_not_fit_names_its_cell(tmp_path):
    path = recipe_file(tmp_path, rows=[{**ROWS[1], "set": ["run.epoch=3"]}], baseline=None)
    with pytest.raises(
        UserError, match=r"recipe\.yaml: row 'teacher', column 'scribbles': .*'run\.epoch' \(did you mean"
    ):
        cells_in(path, tmp_path / "runs")


def test_a_recipe_is_found_by_its_bare_name(tmp_path, monkeypatch):
    assert recipe_path("demo_table1").name == "demo_table1.yaml"
    assert recipe_path("demo_table1.yaml").parent.name == "experiments"
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("title: mine")
    assert recipe_path("mine.yaml") == Path("mine.yaml")
    with pytest.raises(UserError, match=r"demo_tabel1: no such recipe \(did you mean 'demo_table1'\?\)"):
        recipe_path("demo_tabel1")


def test_assignments_come_in_order_and_the_reference_takes_none_of_a_column(tmp_path):
    columns = [{"name": "scribbles", "stores": "scribbles", "set": ["run.epochs=3", "optim.lr_2d=0.5"]}]
    rows = [{**ROWS[1], "set": ["run.epochs=4"]}]
    cells = cells_in(
        recipe_file(tmp_path, set=["run.epochs=2"], columns=columns, rows=rows, seeds=[7]), tmp_path / "runs"
    )
    reference, teacher = cells
    assert (reference.config.run.epochs, reference.config.optim.lr_2d) == (2, 0.003)
    assert (teacher.config.run.epochs, teacher.config.optim.lr_2d) == (4, 0.5)
    assert [cell.config.run.seed for cell in cells] == [7, 7]
    assert {cell.config.data.stores for cell in cells} == {tmp_path / "stores"}


def test_equal_cells_are_one_within_a_recipe_and_across_recipes(tmp_path):
    stores = {"a": {"folder": "a"}, "b": {"folder": "b"}}
    columns = [{"name": name, "stores": name} for name in stores]
    fixed = {"name": "full", "method": "supervised", "stores": "a"}
    cells = cells_in(recipe_file(tmp_path, stores=stores, columns=columns, reference=fixed), tmp_path / "runs")
    assert len(cells) == 2 * 3 * 2  # seeds × rows × columns
    assert len(distinct(cells)) == 2 * (1 + 2 * 2)
    other = [{**ROWS[1], "name": "called otherwise", "stores": {"scribbles": "a"}}]
    again = cells_in(recipe_file(tmp_path, stores=stores, rows=other, columns=[{"name": "scribbles"}], reference=None, baseline=None), tmp_path / "runs")  # fmt: skip
    assert {cell.folder for cell in again} < {cell.folder for cell in cells}


def test_what_changes_no_score_changes_no_identity(tmp_path):
    first = cells_in(recipe_file(tmp_path), tmp_path / "runs")
    free = cells_in(
        recipe_file(tmp_path, set=["run.workers=3", "run.overlays=0", "run.save_steps=7"]), tmp_path / "runs"
    )
    bound = cells_in(recipe_file(tmp_path, set=["run.evaluate_every=2"]), tmp_path / "runs")
    assert [cell.folder for cell in first] == [cell.folder for cell in free]
    assert not {cell.folder for cell in first} & {cell.folder for cell in bound}
    assert len({cell.identity for cell in first}) == len(first)


def test_the_command_of_a_cell_makes_its_configuration(tmp_path):
    cell = cells_in(recipe_file(tmp_path, set=["augment.geometry.crop=[16, 24]"]), tmp_path / "runs")[1]
    words = shlex.split(cell.command)
    assert words[:2] == ["rw3d-train", "run"]
    given = {name: words[words.index(name) + 1] for name in ("--config", "--method", "--stores")}
    sets = [words[index + 1] for index, word in enumerate(words) if word == "--set"]
    stores = f"data.stores={json.dumps(given['--stores'])}"
    assert load_train_config(None, Path(given["--config"]), "paper", given["--method"], [stores, *sets]) == cell.config


def test_a_cell_is_finished_only_by_scores_of_its_own(tmp_path):
    cell, other = cells_in(recipe_file(tmp_path), tmp_path / "runs")[:2]
    cell.folder.mkdir(parents=True)
    scores = cell.folder / "evaluation-val.json"
    scores.write_text(json.dumps({"scores": {"2D student": {"miou": 0.5}}}))
    assert not is_finished(cell)  # someone evaluated a run that is not through
    write_json(cell.folder / "cell.json", {"identity": cell.identity, "finished": True})
    assert is_finished(cell)
    write_json(cell.folder / "cell.json", {"identity": other.identity, "finished": True})
    assert not is_finished(cell)
    write_json(cell.folder / "cell.json", {"identity": cell.identity, "finished": True})
    scores.write_text('{"scores": {"2D stu')  # killed while it was written
    assert not is_finished(cell)


def test_yaml_of_the_example_in_the_documentation_is_a_recipe(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "compare.md").read_text()
    example = text.split("```yaml\n")[1].split("```")[0]
    (tmp_path / "example.yaml").write_text(example)
    recipe = load_recipe(tmp_path / "example.yaml")
    assert cells_in(tmp_path / "example.yaml", tmp_path)
    assert yaml.safe_load(example).keys() <= type(recipe).model_fields.keys()
