"""Training from scenes without geometry: the 2D methods do, those with a 3D network refuse before they begin."""

from pathlib import Path

import numpy as np
import pytest
import torch

from builders import camvid_tree
from rw3d_common.collection import store_paths
from rw3d_common.errors import UserError
from rw3d_prep.config import load_config
from rw3d_prep.pipeline import reconstruct
from rw3d_prep.samples import make_samples
from rw3d_prep.sampling import SampleConfig
from rw3d_train.config import load_train_config
from rw3d_train.data.collate import collate
from rw3d_train.data.dataset import SceneDataset
from rw3d_train.engine import fit
from rw3d_train.score import evaluate_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Path:
    """Four training views and four of val, with dense labels for sparse ones. Read only."""
    folder = tmp_path_factory.mktemp("bare")
    reconstruct(load_config("camvid", None, "images", None, []), camvid_tree(folder / "camvid", 4), folder / "s", 1)
    for store in store_paths(folder / "s"):
        make_samples(store, SampleConfig(points=100))
    return folder / "s"


def settings(stores: Path, method: str, *assignments: str):
    small = (
        "run.epochs=1",
        "run.batch_size=2",
        "run.workers=0",
        "augment.geometry.crop=[16, 16]",
        "evaluate.scale=1.0",
    )
    return load_train_config("camvid", None, "paper", method, [f"data.stores={stores}", *small, *assignments])


def test_items_have_images_labels_and_no_points(stores):
    items = SceneDataset(stores, split="train")
    assert len(items) == 4
    sample = items[2]
    assert sample.image.shape == (36, 48, 3)
    assert set(np.unique(sample.label)) == {0, 2, 255}
    np.testing.assert_array_equal(sample.truth, sample.label)
    assert (sample.position.shape, sample.pixel.shape, sample.point_truth.shape) == ((0, 3), (0, 2), (0,))
    batch = collate([items[0], items[1]], n_classes=11)
    assert (batch.offset.tolist(), len(batch.correspondences)) == ([0, 0], 0)


@pytest.mark.parametrize("method", ["ema", "supervised"])
def test_two_steps_and_scores(stores, tmp_path, method):
    run = tmp_path / method
    fit(settings(stores, method), run, CPU)
    assert (run / "checkpoints" / "step_00000002").is_dir()
    assert list((run / "overlays").iterdir())
    scores = evaluate_run(run, CPU, workers=0)
    assert set(scores) == {"2D student", "2D teacher"} if method == "ema" else {"2D student"}
    assert np.isfinite([one.miou for one in scores.values()]).all()


@pytest.mark.parametrize(("method", "more"), [("rewis3d", ()), ("supervised", ("method.points=true",))])
def test_methods_with_a_3d_network_refuse_before_the_first_step(stores, tmp_path, method, more):
    with pytest.raises(UserError) as caught:
        fit(settings(stores, method, *more), tmp_path / "run", CPU)
    sentence = str(caught.value)
    assert sentence.startswith(f"{stores}: 2 of 2 scenes have no geometry")
    assert all(word in sentence for word in (method, *more, "--method ema", "--backend mapanything"))
    assert not (tmp_path / "run").exists()
