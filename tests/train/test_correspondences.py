"""From a real store to the augmented item: the pixel of every own point shows that point's colour, all the way."""

from pathlib import Path

import numpy as np
import pytest

from rw3d_prep.config import load_config
from rw3d_prep.pipeline import reconstruct
from rw3d_prep.samples import make_samples
from rw3d_prep.sampling import SampleConfig
from rw3d_train.data.augment import AugmentConfig, GeometryConfig, augment, item_generator
from rw3d_train.data.dataset import SceneDataset

SEVEN_SCENES = Path(__file__).parents[2].parent / "shared" / "data" / "7scenes_rgbd_seq"
AUGMENTATIONS = 1000


def make_demo(folder: Path) -> Path:
    pytest.importorskip("open3d", reason="the built-in street is rendered with Open3D, which is in the extra prep")
    from rw3d_prep.demo.generate import DemoConfig, generate

    street = DemoConfig(train_sequences=1, val_sequences=0, train_frames=4, val_frames=2, width=352, height=94)
    generate(folder / "street", street)
    config = load_config("demo", None, None, None, ["dataset.splits=[train]"])
    reconstruct(config, folder / "street", folder / "stores", workers=1)
    return folder / "stores"


def make_seven_scenes(folder: Path) -> Path:
    if not SEVEN_SCENES.is_dir():
        pytest.skip("the recorded 7-Scenes sequence is not beside this checkout")
    reconstruct(load_config("rgbd", None, None, None, ["dataset.stride=50"]), SEVEN_SCENES, folder, workers=1)
    return folder


@pytest.fixture(scope="module", params=[make_demo, make_seven_scenes], ids=["demo", "7scenes"])
def dataset(request, tmp_path_factory) -> SceneDataset:
    stores = request.param(tmp_path_factory.mktemp("stores"))
    for store in stores.rglob("*.zarr"):
        make_samples(store, SampleConfig(points=20_000, views="all"))
    return SceneDataset(stores)


def test_pixels_show_the_points_colours_exactly(dataset):
    assert len(dataset) >= 4
    for sample in (dataset[index] for index in range(len(dataset))):
        assert sample.n_own > 1_000
        rows, columns = sample.pixel.astype(int).T
        np.testing.assert_array_equal(sample.image[rows, columns], sample.color[: sample.n_own])


def test_augmented_pixels_show_them_within_interpolation(dataset):
    """Bilinear interpolation stays within the colours around a pixel; a shift by more than one pixel would not."""
    for index in range(len(dataset)):
        sample = dataset[index]
        height, width = sample.image.shape[:2]
        config = AugmentConfig(geometry=GeometryConfig(crop=(height // 2, width // 2)))
        low, high = color_range(sample.image)
        rows, columns = sample.pixel.astype(int).T
        low, high = low[rows, columns] - 1, high[rows, columns] + 1  # one level of rounding
        for epoch in range(AUGMENTATIONS // len(dataset)):
            _, teacher = augment(sample, config, item_generator(0, epoch, index))
            assert len(teacher.position) == len(sample.position)
            inner = ((teacher.pixel >= 1) & (teacher.pixel <= np.array(teacher.image.shape[:2]) - 2)).all(axis=1)
            assert inner.any()
            y, x = np.rint(teacher.pixel[inner]).astype(int).T
            shown = teacher.image[y, x].astype(int)
            assert ((shown >= low[inner]) & (shown <= high[inner])).all()


def color_range(image: np.ndarray, reach: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest value (H, W, 3) in the square of ±`reach` pixels around each pixel."""
    padded = np.pad(image.astype(int), ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * reach + 1, 2 * reach + 1), axis=(0, 1))
    return windows.min(axis=(-2, -1)), windows.max(axis=(-2, -1))
