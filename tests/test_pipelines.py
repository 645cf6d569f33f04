"""Every recipe in pipelines/ is complete, valid and about the dataset it is named after."""

from pathlib import Path

import pytest

from rw3d_common.config import read_yaml
from rw3d_common.manifest import load_manifest
from rw3d_prep.config import load_config, save_config
from rw3d_train.config import SECTIONS, load_train_config

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
    assert load_config("camvid", None, "images", None, []).backend.kind == "images"


TRAINED = [(path, preset) for path in RECIPES for preset, section in SECTIONS.items() if section in read_yaml(path)]

# What methods.md §1.7–1.9 lists for each dataset, by preset.
EPOCHS = {"kitti360": (50, 35), "waymo": (50, 50), "cityscapes": (50, 100), "nyuv2": (250, 250)}
CMC_START = {"kitti360": (15, 15), "waymo": (15, 100), "cityscapes": (15, 25), "nyuv2": (150, 100)}
RAMP = {"kitti360": (5, 5), "waymo": (5, 15), "cityscapes": (5, 5), "nyuv2": (5, 50)}
WEIGHTS = {"kitti360": (0.075, 0.125), "waymo": (0.075, 0.15), "cityscapes": (0.1, 0.2), "nyuv2": (0.075, 0.25)}
BATCH = {"kitti360": (12, 14), "waymo": (12, 12), "cityscapes": (12, 12), "nyuv2": (12, 8)}
LR_2D = {"kitti360": 3e-5, "waymo": 3e-5, "cityscapes": 5e-5, "nyuv2": 3e-5}
CROP = {"kitti360": (376, 512), "waymo": (640, 640), "cityscapes": (512, 512), "nyuv2": (480, 480)}
RESIZE = {"kitti360": 1.0, "waymo": 0.5, "cityscapes": 0.5, "nyuv2": 1.0}
LEFTS = {"kitti360": (0, 192, 448, 704, 896), "waymo": (0, 320), "cityscapes": (0, 256, 512), "nyuv2": (0, 160)}
CLAMP = {"kitti360": (70, 30, 130), "waymo": (70, 30, 130), "cityscapes": (30, 30, 90), "nyuv2": (15, 10, 20)}
PUBLISHED = sorted(EPOCHS)


def shown(tree: object) -> object:
    """The keys of a section, those of its sections below them."""
    return {key: shown(value) for key, value in tree.items()} if isinstance(tree, dict) else None


@pytest.mark.parametrize(("path", "preset"), TRAINED, ids=lambda value: getattr(value, "stem", value))
def test_training_section_is_valid_complete_and_about_its_dataset(path, preset):
    config = load_train_config(None, path, preset, None, [])
    assert config.data.dataset == path.stem
    assert config.data.stores == Path("stores") / path.stem
    assert shown(read_yaml(path)[SECTIONS[preset]]) == shown(config.model_dump())


def test_the_datasets_of_the_paper_have_both_presets():
    found = {preset: {path.stem for path, other in TRAINED if other == preset} for preset in SECTIONS}
    assert found == {"paper": {*PUBLISHED, "demo", "camvid"}, "official": set(PUBLISHED)}


@pytest.mark.parametrize("dataset", PUBLISHED)
def test_presets_hold_the_values_of_paper_and_released_code(dataset):
    paper, official = (load_train_config(dataset, None, preset, None, []) for preset in SECTIONS)
    both = (paper, official)
    assert tuple(c.run.epochs for c in both) == EPOCHS[dataset]
    assert tuple(c.run.batch_size for c in both) == BATCH[dataset]
    assert tuple(c.method.cross_modal.start for c in both) == CMC_START[dataset]
    assert tuple(c.method.cross_modal.ramp for c in both) == RAMP[dataset]
    weights = [(c.method.cross_modal.weight_2d, c.method.cross_modal.weight_3d) for c in both]
    assert weights == [(0.1, 0.1), WEIGHTS[dataset]]
    assert [c.method.teacher.alpha for c in both] == [0.99, 0.999]
    assert [c.method.teacher.warmup for c in both] == [None, "epoch"]
    assert [c.method.teacher.mode for c in both] == ["eval", "train"]
    assert [(c.optim.lr_2d, c.optim.lr_3d) for c in both] == [(5e-5, 1e-3), (LR_2D[dataset], 2e-3)]
    assert [c.optim.lr_blocks for c in both] == [None, 2e-4]
    assert [c.run.precision for c in both] == ["bf16", "fp16"]
    assert [c.data.select for c in both] == ["held_out", "val"]
    assert [c.evaluate.combine for c in both] == ["average", "sum"]
    assert [c.evaluate.absent for c in both] == ["nan", "zero"]
    assert [c.evaluate.label_scale for c in both] == [1.0, RESIZE[dataset]]
    assert [c.augment.points.clamp for c in both] == [None, CLAMP[dataset]]
    assert [c.augment.points.center for c in both] == [True, dataset != "cityscapes"]
    assert official.evaluate.lefts == LEFTS[dataset]
    for config in both:
        assert config.model_2d.name == "nvidia/mit-b4"
        assert (config.method.beta, config.method.threshold) == (0.5, 0.95)
        assert not config.method.cross_modal.sky_teacher
        assert config.augment.geometry.crop == config.evaluate.window == CROP[dataset]
        assert config.augment.geometry.resize == config.evaluate.scale == RESIZE[dataset]
        assert (config.augment.geometry.scale, config.augment.geometry.distortion) == ((0.5, 1.2), (0.9, 1.1))
        assert config.augment.photometric.cutout == (1.0, 0.5)
        assert (config.optim.weight_decay_2d, config.optim.weight_decay_3d) == (1e-8, 5e-3)
        assert config.run.clip is None
        assert config.run.accumulate == 1
