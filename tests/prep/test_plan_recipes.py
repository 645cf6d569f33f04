"""`plan` runs on every recipe, over a small tree in the dataset's own layout."""

from collections.abc import Callable
from pathlib import Path

import pytest

from builders import camvid_tree, kitti360_tree
from cityscapes_builder import cityscapes_tree
from nyuv2_builder import nyuv2_root
from rw3d_prep.config import load_config
from rw3d_prep.pipeline import find_batches
from rw3d_prep.plan import make_plan
from rw3d_prep.plan_table import plan_table
from s3dis_builder import s3dis_root
from scannet_builder import scannet_root
from waymo_builder import waymo_tree

TREES: dict[str, Callable[[Path], object]] = {
    "kitti360": kitti360_tree,
    "waymo": waymo_tree,
    "cityscapes": cityscapes_tree,
    "nyuv2": nyuv2_root,
    "scannet": scannet_root,
    "s3dis": s3dis_root,
    "camvid": camvid_tree,
    "demo": lambda root: kitti360_tree(root, val_sequences=(3,)),
}


@pytest.mark.parametrize("dataset", sorted(TREES))
def test_plan_runs_on_a_small_tree(dataset, tmp_path):
    build = TREES[dataset]
    root = tmp_path / dataset
    root.mkdir()
    build(root)
    config = load_config(dataset, None, None, None, [])
    batches, _ = find_batches(config, root)
    plan = make_plan(batches, config, root, workers=1)
    assert plan_table(plan, config, tmp_path / "stores").row_count > 3
