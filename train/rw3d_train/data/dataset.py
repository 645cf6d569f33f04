"""Training items by number: a map-style torch dataset over scene stores with samples.

dataset = SceneDataset("stores/kitti360", split="train")
sample = dataset[0]                    # rw3d_train.data.sample.Sample
loader = DataLoader(dataset, batch_size=8, shuffle=True, num_workers=4, collate_fn=collate, persistent_workers=True)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from rw3d_common.errors import UserError
from rw3d_common.images import LabelFile, read_image
from rw3d_common.labels import IGNORE, U8, ClassMap
from rw3d_common.remote import StorePath
from rw3d_common.scene_accumulated import GROUP as ACCUMULATED
from rw3d_common.scene_accumulated import Labels
from rw3d_common.scene_sample import GROUP
from rw3d_train.data.augment import item_generator
from rw3d_train.data.index import Store, build_index, find_stores
from rw3d_train.data.reader import Array, Shards, open_array
from rw3d_train.data.sample import F32, Sample

POINT_ARRAYS = ("position", "color", "confidence", "label", "pixel")


class Augment(Protocol):
    """What turns a sample into an item, such as `functools.partial(rw3d_train.data.augment.augment, config=…)`."""

    def __call__(self, sample: Sample, /, *, generator: np.random.Generator) -> Any: ...


class SceneDataset(Dataset):  # type: ignore[misc]
    """The samples of a collection folder, of one store, or of a list of either, ordered by store, view and draw.

    A pickle or a fork of it holds paths and index arrays only; every process opens its own files, lazily and at most
    256 at a time. So it works with any number of workers under fork, forkserver and spawn.
    """

    def __init__(
        self,
        stores: str | StorePath | Sequence[str | StorePath],
        split: str | None = None,
        augment: Augment | None = None,
        seed: int = 0,
        *,
        root: str | Path | None = None,
        truth: bool = True,
        verify: bool = True,
        labels: Labels = "own",
    ) -> None:
        """Build the index; no sample is read.

        Args:
            stores: a folder of scenes, a `*.zarr` scene, or several of either; folders or s3:// URLs.
            split: take only scenes of this split, such as "train"; None takes all.
            augment: called as augment(sample, generator=…) with random numbers that depend on (seed, epoch, item)
                alone; what it returns becomes the item. Must be picklable for workers that are not forked.
            seed: of those generators.
            root: where image paths start, when the data no longer lie where the scenes were made from.
            truth: read dense labels, where there are any. Only metrics need them: without, items are read faster.
            verify: compare every chunk that is read with its checksum.
            labels: "own" for the images' own sparse labels, "accumulated" for those that `rw3d-prep accumulate` carried
                to them as well; the samples must have been made with the same.

        Raises:
            UserError: no stores, stores without finished samples, samples made with other labels, accumulated labels that
                are not precise enough, or stores that do not go together.
        """
        self.index = build_index(find_stores(stores), split, None if root is None else Path(root), labels)
        self.labels = labels
        self.augment, self.seed, self.truth = augment, seed, truth
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # persistent workers see it change
        self._shards = Shards(verify=verify)
        self._arrays: dict[tuple[int, str], Array] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_arrays": {}}

    def __len__(self) -> int:
        """Number of training items."""
        return len(self.index)

    @property
    def classes(self) -> ClassMap:
        """The class map that all stores share."""
        return self.index.stores[0].classes

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins, before its first batch is asked for; running persistent workers follow."""
        self._epoch[0] = epoch

    def generator(self, item: int) -> np.random.Generator:
        """The random numbers of one item in this epoch: the same in every process, whatever was drawn before."""
        return item_generator(self.seed, int(self._epoch[0]), item)

    def with_truth(self) -> SceneDataset:
        """The same items, read with their dense labels, where there are any."""
        other = copy.copy(self)
        other.truth, other._arrays = True, {}
        return other

    def __getitem__(self, item: int) -> Any:
        """The sample at `item`, or what `augment` makes of it.

        Raises:
            UserError: a file that is missing or damaged.
            IndexError: no such item.
        """
        sample = self.sample(item)
        return sample if self.augment is None else self.augment(sample, generator=self.generator(item % len(self)))

    def sample(self, item: int) -> Sample:
        """The sample at `item` as stored, without augmentation; see `__getitem__`."""
        if not -len(self) <= item < len(self):
            raise IndexError(f"no item {item} in a dataset of {len(self)}")
        item %= len(self)
        points, table = self.points(item), self.index.table
        size = (int(table["image_size"][item, 0]), int(table["image_size"][item, 1]))
        label = self._label(item, "label", size)
        return Sample(
            key=self.index.key(item),
            image=self._image(item, size),
            label=np.full(size, IGNORE, np.uint8) if label is None else label,
            truth=self._label(item, "truth", size) if self.truth else None,
            position=points["position"],
            color=points["color"],
            confidence=points["confidence"],
            point_label=points["label"],
            point_truth=points.get("truth"),
            pixel=_rows_columns(points["pixel"], size[1]),
            camera_to_world=table["camera_to_world"][item].copy(),
        )

    def points(self, item: int) -> dict[str, npt.NDArray[Any]]:
        """The arrays of the point part by their names in the store, without padding; `pixel` is flat, (n_own,) int32.

        Raises:
            UserError: a chunk that is missing or damaged.
        """
        number, row = int(self.index.store[item]), int(self.index.row[item])
        n_points, n_own = int(self.index.table["n_points"][item]), int(self.index.table["n_own"][item])
        names = (*POINT_ARRAYS, "truth") if self.truth and self.index.stores[number].has_truth else POINT_ARRAYS
        return {
            name: self._array(number, f"{GROUP}/{name}").rows(row, row + 1)[0, : n_own if name == "pixel" else n_points]
            for name in names
        }

    def _array(self, store: int, name: str) -> Array:
        if (store, name) not in self._arrays:
            self._arrays[store, name] = open_array(self.index.stores[store].path / name, self._shards)
        return self._arrays[store, name]

    def _image(self, item: int, size: tuple[int, int]) -> U8:
        path, content = self._source(item, "image")
        image = read_image(path, content)
        if image.shape[:2] != size:
            raise UserError(
                f"{path}: is {image.shape[1]}×{image.shape[0]}, but the scene was made from {size[1]}×{size[0]}; "
                "restore the original image, or reconstruct the scene again"
            )
        return image

    def _label(self, item: int, kind: str, size: tuple[int, int]) -> U8 | None:
        """Train ids (H, W) of the "label" or "truth" image; None where the view has none."""
        if kind == "label" and self.labels == "accumulated":
            return self._accumulated(item, size)
        if not self.index.paths[kind][item]:
            return None
        store = self._store(item)
        path, content = self._source(item, kind)
        if kind == "label":
            return LabelFile(path, store.label_encoding, store.classes).read(size, content)
        return LabelFile(path, store.truth_encoding, store.truth_classes).read(size, content)

    def _accumulated(self, item: int, size: tuple[int, int]) -> U8 | None:
        content = self._ragged(item, ACCUMULATED, "label")
        file = LabelFile(
            Path(str(self._store(item).path), ACCUMULATED, "label"), "train_ids", self._store(item).classes
        )
        return file.read(size, content) if content else None

    def _store(self, item: int) -> Store:
        return self.index.stores[int(self.index.store[item])]

    def _source(self, item: int, kind: str) -> tuple[Path, bytes | None]:
        """Where a view's file lies, and its bytes where the store holds them."""
        store = self._store(item)
        path = store.root / self.index.paths[kind][item]
        if store.embedded and (content := self._embedded(item, kind)):
            return path, content
        if not path.is_file():
            raise UserError(
                f"{path}: no such file; where the data were moved, say so with root=FOLDER or RW3D_DATA=FOLDER (which "
                f"holds {store.dataset}/), or make scenes that need no data with `rw3d-prep reconstruct --embed-images`"
            )
        return path, None

    def _embedded(self, item: int, kind: str) -> bytes:
        return self._ragged(item, "files", kind)

    def _ragged(self, item: int, group: str, kind: str) -> bytes:
        """The bytes that a view has of an array that holds those of all views one after another."""
        number, view = int(self.index.store[item]), int(self.index.table["view"][item])
        first, last = self._array(number, f"{group}/{kind}_offset").rows(view, view + 2)
        return self._array(number, f"{group}/{kind}").rows(int(first), int(last)).tobytes()


def _rows_columns(pixel: npt.NDArray[np.int32], width: int) -> F32:
    """(n, 2) float32 row and column of flat pixels: exact, since both are far below 2^24."""
    out = np.empty((len(pixel), 2), np.float32)
    row = pixel // np.int32(width)
    out[:, 0], out[:, 1] = row, pixel - row * np.int32(width)
    return out
