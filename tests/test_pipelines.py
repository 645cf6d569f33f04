"""Every recipe in pipelines/ is complete, valid and about the dataset it is named after."""

from pathlib import Path

import pytest

from rw3d_common.config import read_yaml
from rw3d_common.manifest import load_manifest
from rw3d_prep.config import load_config, save_config

RECIPES = sorted((Path(__file__).parents[1] / "pipelines").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_valid_and_complete(path):
    config = load_config(None, path, None, None, [])
    assert config.dataset.name == path.stem
    written = read_yaml(path)["prep"]
    for section in ("dataset", "batching", "fuse"):
        assert written[section].keys() == config.model_dump()[section].keys(), f"{section} does not show every option"


def test_every_dataset_has_a_recipe():
    assert {path.stem for path in RECIPES} == set(load_manifest().datasets)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_saved_configuration_is_the_same_configuration(path, tmp_path):
    config = load_config(None, path, None, 7, ["fuse.confidence_percentile=3"])
    save_config(config, tmp_path / "config.yaml")
    again = load_config(None, tmp_path / "config.yaml", None, None, [])
    assert again == config
    assert again.hash() == config.hash() != load_config(None, path, None, 8, []).hash()


def test_another_backend_brings_its_own_defaults():
    assert load_config("kitti360", None, "stereo", None, []).backend.kind == "stereo"
    assert load_config("demo", None, "sensor", None, ["backend.farthest=30"]).backend.farthest == 30
