"""What training knows of its stores before it reads a sample: one row per training item, in arrays and not in objects.

Lists of Python objects grow in every worker, because counting references copies their memory pages; arrays do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rw3d_common.collection import store_paths
from rw3d_common.errors import UserError
from rw3d_common.images import LabelEncoding
from rw3d_common.labels import ClassMap
from rw3d_common.log import log
from rw3d_common.remote import RemotePath, StorePath, as_store_path
from rw3d_common.scene import Scene, open_scene
from rw3d_common.scene_accumulated import Labels
from rw3d_common.scene_sample import GROUP, has_samples
from rw3d_train.data.reader import Shards, open_array

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
TABLES = ("view", "draw", "n_points", "n_own")
VIEW_TABLES = ("frame_id", "camera", "image_size", "camera_to_world")


class Strings:
    """A list of strings as two arrays; None is kept as the empty string."""

    def __init__(self, items: Iterable[str | None]) -> None:
        encoded = [(item or "").encode() for item in items]
        self.data = np.frombuffer(b"".join(encoded), np.uint8)
        self.offset = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __getitem__(self, index: int) -> str:
        return self.data[self.offset[index] : self.offset[index + 1]].tobytes().decode()


@dataclass(frozen=True)
class Store:
    """What the samples of one store share. `root` is where its image paths start."""

    path: StorePath
    split: str
    sequence: str
    dataset: str
    root: Path
    cameras: tuple[str, ...]
    classes: ClassMap
    truth_classes: ClassMap
    label_encoding: LabelEncoding
    truth_encoding: LabelEncoding
    embedded: bool
    has_truth: bool


@dataclass(frozen=True, eq=False)
class Index:
    """Every training item of some stores: S rows, ordered by store, view and draw.

    `store` (S,) int32 index into `stores`, `row` (S,) int32 row in that store's samples; `table` the columns view, draw,
    n_points, n_own, frame_id, camera, image_size (S, 2) px and camera_to_world (S, 4, 4) float64; `paths` the image,
    label and truth file of each row, relative to the store's root, "" where there is none.
    """

    stores: tuple[Store, ...]
    store: I32
    row: I32
    table: dict[str, npt.NDArray[Any]]
    paths: dict[str, Strings]

    def __len__(self) -> int:
        return len(self.store)

    def key(self, item: int) -> str:
        """The frame's key and the draw: split/sequence/frame id/camera#draw."""
        store, table = self.stores[self.store[item]], self.table
        camera = store.cameras[table["camera"][item]]
        return f"{store.split}/{store.sequence}/{table['frame_id'][item]:010d}/{camera}#{table['draw'][item]}"


def find_stores(stores: str | StorePath | Sequence[str | StorePath]) -> list[StorePath]:
    """The finished stores of a collection folder, of one store, or of a list of either; each once.

    Raises:
        UserError: none at all.
    """
    several = [stores] if isinstance(stores, str | Path | RemotePath) else stores
    given = [as_store_path(one) for one in several]
    for path in given:
        if not store_paths(path):
            raise UserError(f"{path}: no finished scene here; make some with `rw3d-prep reconstruct --out {path}`")
    if not given:
        raise UserError("no store was given; name a *.zarr scene or a folder of them")
    return list(dict.fromkeys(store for path in given for store in store_paths(path)))


def build_index(paths: Sequence[StorePath], split: str | None, root: Path | None, labels: Labels = "own") -> Index:
    """The index of all samples in the stores at `paths` that belong to `split` (None: to any), made with `labels`.

    A store without samples is left out when none of its views has a sparse label: there was nothing to sample.

    Raises:
        UserError: a store that cannot be opened or lacks finished samples, samples made with other labels than
            `labels`, class maps or sample sizes that differ between stores, or no sample left.
    """
    scenes = [open_scene(path) for path in paths]
    chosen = [scene for scene in scenes if split in (None, scene.attrs["split"]) and _is_sampled(scene)]
    if not chosen:
        splits = ", ".join(sorted({scene.attrs["split"] for scene in scenes}))
        raise UserError(f"{paths[0]}: no sample of split '{split}' among {len(scenes)} scenes (they are of {splits})")
    _refuse_mixture(
        chosen, "class maps", lambda scene: scene.attrs["class_map_hash"], "reconstruct them with one class map"
    )
    for scene in chosen:
        _refuse_other_labels(scene, labels)
    points = _refuse_mixture(
        chosen,
        "sample sizes",
        lambda scene: scene.samples.attrs["config"]["points"],
        "sample them anew with one --points",
    )
    log.debug(f"{len(chosen)} scenes with samples of up to {points:,} points")
    parts = [_rows(scene) for scene in chosen]
    counts = [len(table["view"]) for table, _ in parts]
    return Index(
        stores=tuple(_store(scene, root) for scene in chosen),
        store=np.repeat(np.arange(len(parts), dtype=np.int32), counts),
        row=np.concatenate([np.arange(count, dtype=np.int32) for count in counts]),
        table={name: np.concatenate([table[name] for table, _ in parts]) for name in (*TABLES, *VIEW_TABLES)},
        paths={
            kind: Strings(path for _, strings in parts for path in strings[kind])
            for kind in ("image", "label", "truth")
        },
    )


def _is_sampled(scene: Scene) -> bool:
    if has_samples(scene.path) or scene.view_table["has_label"].any():
        return bool(scene.samples)  # raises where they are missing or unfinished
    why = "no view of this scene has a sparse label" if len(scene) else "a point cloud without views"
    log.info(f"{scene.path}: {why}, so it has no samples; left out")
    return False


def _refuse_other_labels(scene: Scene, labels: Labels) -> None:
    config = scene.samples.attrs["config"]
    made_with = config.get("labels", "own")
    again = f"run `rw3d-prep sample-views {scene.path} --labels {labels} --overwrite`"
    if made_with != labels:
        raise UserError(f"{scene.path}: its samples hold {made_with} labels, {labels} ones were asked for; {again}")
    if labels == "accumulated":
        scene.accumulated.require_usable()
        if config["accumulated"] != scene.accumulated.attrs["config_hash"]:
            raise UserError(f"{scene.path}: its labels were accumulated anew after its samples were made; {again}")


def _refuse_mixture(scenes: Sequence[Scene], what: str, value_of: Any, mend: str) -> Any:
    """The one value that all scenes share.

    Raises:
        UserError: two scenes differ.
    """
    first = value_of(scenes[0])
    for scene in scenes[1:]:
        if (value := value_of(scene)) != first:
            short = [f"{one:,}" if isinstance(one, int) else str(one)[:12] for one in (first, value)]
            raise UserError(
                f"{scene.path}: its {what} differ from those of {scenes[0].path} ({short[1]} here, {short[0]} there); "
                f"train on one kind at a time, or {mend}"
            )
    return first


def _rows(scene: Scene) -> tuple[dict[str, npt.NDArray[Any]], dict[str, list[str | None]]]:
    """Columns and paths of one scene's samples, one row each."""
    files = Shards()
    table = {name: _whole(scene.path / GROUP / name, files) for name in TABLES}
    view = table["view"]
    if len(view) and not 0 <= view.min() <= view.max() < len(scene):
        raise UserError(f"{scene.path}: its samples name views that it has not; run `rw3d-prep verify {scene.path}`")
    table |= {name: _whole(scene.path / "views" / name, files)[view] for name in VIEW_TABLES}
    strings: dict[str, Any] = dict(scene.views.attrs)
    return table, {kind: [strings[f"{kind}s"][v] for v in view] for kind in ("image", "label", "truth")}


def _whole(folder: StorePath, files: Shards) -> npt.NDArray[Any]:
    array = open_array(folder, files)
    return array.rows(0, array.shape[0])


def _store(scene: Scene, root: Path | None) -> Store:
    attrs: dict[str, Any] = scene.attrs
    cameras: Any = scene.views.attrs["cameras"]
    return Store(
        path=scene.path.resolve(),
        root=scene.root if root is None else root,
        cameras=tuple(cameras),
        classes=scene.classes,
        truth_classes=scene.classes.ignoring(attrs["ignored_in_truth"]),
        embedded=scene.files is not None,
        has_truth=scene.samples.has_truth,
        **{name: attrs[name] for name in ("split", "sequence", "dataset", "label_encoding", "truth_encoding")},
    )
