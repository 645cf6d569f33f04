"""`plan` runs on every recipe, over a small tree in the dataset's own layout."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from builders import kitti360_tree, save_image
from cityscapes_builder import cityscapes_tree
from nyuv2_builder import nyuv2_root
from rw3d_prep.config import load_config
from rw3d_prep.pipeline import find_batches
from rw3d_prep.plan import make_plan
from rw3d_prep.plan_table import plan_table
from s3dis_builder import s3dis_root
from scannet_builder import scannet_root
from waymo_builder import waymo_tree


def camvid_tree(root: Path) -> Path:
    """Sequence folders of images and labels, and the lists of the splits."""
    for split, sequence in (("train", "0001TP"), ("val", "0016E5")):
        for index in range(3):
            save_image(root / sequence / "image" / f"{index:05d}.jpg", np.zeros((36, 48, 3), np.uint8))
            save_image(root / sequence / "label" / f"{index:05d}.png", np.full((36, 48), 3, np.uint8))
        listing = root / "splits" / f"{split}.txt"
        listing.parent.mkdir(exist_ok=True)
        listing.write_text("".join(f"{sequence}/{index:05d}\n" for index in range(3)))
    return root


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
