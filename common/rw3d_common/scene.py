"""Opening a scene store: arrays with names and units, and one view at a time.

    scene = open_scene("stores/demo/train/…/0000000000-0000000019.zarr")
    view = scene.view(3)
    view.position, view.color, view.label      # numpy arrays, one row per point
    view.rows_columns                          # where each point lies in view.read_image()
    sample = scene.sample(3)                   # a training item, once `rw3d-prep sample-views` has run

notebooks/scene_tour.ipynb walks through it with pictures.
"""

from __future__ import annotations

import hashlib
import html
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import zarr

from rw3d_common.cameras import F32, F64, project
from rw3d_common.errors import UserError
from rw3d_common.images import LabelFile, read_image
from rw3d_common.labels import U8, ClassMap
from rw3d_common.manifest import default_root
from rw3d_common.remote import StorePath, as_store_path
from rw3d_common.scene_accumulated import POINT_ARRAY, SceneAccumulated, has_accumulated
from rw3d_common.scene_files import open_group, read_array, store_attributes
from rw3d_common.scene_sample import SceneSample, SceneSamples, has_samples
from rw3d_common.schema import STORE_SUFFIX, VIEWS

if TYPE_CHECKING:
    import open3d

NO_GEOMETRY = "images"  # the backend that computes none
Coloring = Literal["rgb", "label", "truth", "confidence", "view"]


@dataclass(frozen=True, repr=False, eq=False)
class View:
    """One view of a scene and the points that come from its pixels.

    `position` (n, 3) float32 metres in the scene's world; `color` (n, 3) uint8; `confidence` (n,) float32; `pixel` (n,)
    uint32 flat source pixels; `label` and `truth` (n,) uint8 train ids with 255 = none (`truth` is None where the
    dataset has no dense labels); `intrinsics` (3, 3) and `camera_to_world` (4, 4) float64.
    """

    frame_id: int
    camera: str
    image: Path
    image_size: tuple[int, int]
    has_label: bool
    intrinsics: F64
    camera_to_world: F64
    position: F32
    color: U8
    confidence: F32
    pixel: npt.NDArray[np.uint32]
    label: U8
    truth: U8 | None
    label_file: LabelFile | None
    truth_file: LabelFile | None
    embedded: Callable[[str], bytes | None]  # the encoded "image", "label" or "truth" file from the store itself

    @property
    def rows_columns(self) -> npt.NDArray[np.int64]:
        """(n, 2) int64 row and column of each point in the source image."""
        return np.stack(np.divmod(self.pixel.astype(np.int64), self.image_size[1]), axis=1)

    @property
    def depth(self) -> F32:
        """(n,) float32 metres of each point along the optical axis of this view."""
        return project(self.position, self.intrinsics, self.camera_to_world)[2].astype(np.float32)

    def read_image(self) -> U8:
        """The source image (H, W, 3) uint8.

        Raises:
            UserError: the file is neither embedded nor where it was when the scene was made.
        """
        return read_image(self.image, self.embedded("image"))

    def read_label(self) -> U8 | None:
        """The sparse label image as train ids (H, W) uint8, 255 = unlabelled; None where the view has none."""
        return self.label_file.read(self.image_size, self.embedded("label")) if self.label_file else None

    def read_truth(self) -> U8 | None:
        """The dense label image as train ids (H, W) uint8, 255 = ignored; None where the dataset has none."""
        return self.truth_file.read(self.image_size, self.embedded("truth")) if self.truth_file else None

    def paint(self, values: npt.NDArray[Any], background: Any) -> npt.NDArray[Any]:
        """`values` (n, …), one per point, as an image (H, W, …); pixels without a point hold `background`."""
        canvas = np.full((self.image_size[0] * self.image_size[1], *values.shape[1:]), background, values.dtype)
        canvas[self.pixel] = values
        return canvas.reshape(*self.image_size, *values.shape[1:])

    def __repr__(self) -> str:
        labelled = np.count_nonzero(self.label != 255)
        return f"View(frame {self.frame_id}, {len(self.position):,} points, {labelled:,} labelled, {self.image.name})"


class Scene:
    """A finished scene store, opened for reading. `points` and `views` are the Zarr groups themselves.

    Raises:
        UserError: no store at this path, one that was never finished, or one of another schema version.
    """

    def __init__(self, path: str | StorePath) -> None:
        self.path = as_store_path(path)
        self.attrs = store_attributes(self.path)
        self.group = open_group(self.path)
        self.points: zarr.Group = self.group["points"]  # type: ignore[assignment]
        self.views: zarr.Group = self.group["views"]  # type: ignore[assignment]
        self.files: zarr.Group | None = self.group.get("files")  # type: ignore[assignment]

    @property
    def folder(self) -> Path:
        """Where it lies on this machine.

        Raises:
            UserError: it lies on object storage, where it is read only.
        """
        if isinstance(self.path, Path):
            return self.path
        raise UserError(f"{self.path}: this works on local stores only; copy the store to a disk first")

    @property
    def name(self) -> str:
        """split/sequence/first-last: unique within a collection."""
        return f"{self.attrs['split']}/{self.attrs['sequence']}/{self.path.name.removesuffix(STORE_SUFFIX)}"

    @cached_property
    def classes(self) -> ClassMap:
        """Train ids with their names, colours and raw ids."""
        return ClassMap.from_json(self.attrs["classes"], self.attrs["ignored_ids"])

    @cached_property
    def view_table(self) -> dict[str, npt.NDArray[Any]]:
        """Every array of `views/` in memory, by name; those that an older store lacks hold fill values."""
        lost = {spec.name for spec in VIEWS if spec.lacking("views", self.attrs["complete"]["files"])}
        return {
            spec.name: spec.filled(len(self)) if spec.name in lost else self._array(self.views, spec.name)
            for spec in VIEWS
        }

    @property
    def root(self) -> Path:
        """The folder that image and label paths start from: where it was, else where the dataset now lies by default."""
        root, now = Path(self.attrs["root"]), default_root(self.attrs["dataset"])
        return now if now.is_dir() and not root.is_dir() else root

    @property
    def n_points(self) -> int:
        return int(self.attrs["complete"]["points"])

    @property
    def has_geometry(self) -> bool:
        """False for a scene of `--backend images`: views and labels for the 2D methods, and no point by choice."""
        return bool(self.attrs["backend"]["name"] != NO_GEOMETRY)

    @property
    def has_truth(self) -> bool:
        """The scene was made with dense labels; the completion record says so, since an array can get lost."""
        return "truth" in self.attrs["complete"]["class_points"]

    @property
    def world_offset(self) -> F64:
        """(3,) float64 metres: position + world_offset is in the dataset's world."""
        return np.asarray(self.attrs["world_offset"], np.float64)

    def __len__(self) -> int:
        """Number of views; 0 for a point cloud that was read as such, whose points belong to no view."""
        return int(self.attrs["complete"]["views"])

    def read(self, name: str, rows: slice = slice(None)) -> npt.NDArray[Any]:
        """An array of `points/` in memory, one row per point: the whole, or `rows` of it.

        Raises:
            UserError: this scene has no such array, or it cannot be read.
        """
        if name == POINT_ARRAY:
            return self.accumulated.point_labels()[rows]
        if name not in self.points:
            known = ", ".join(sorted(self.points.array_keys()))
            raise UserError(f"{self.path}: no array '{name}' in this scene's points; it has {known}")
        return self._array(self.points, name, rows)

    def view(self, index: int) -> View:
        """The view at `index` (0 ≤ index < len(scene)), with its points in memory.

        Raises:
            UserError: no view of this index, or its points cannot be read.
        """
        table = self.view_table
        if not 0 <= index < len(self):
            there = f"views 0 to {len(self) - 1}" if len(self) else "points only"
            raise UserError(f"{self.path}: no view {index}; this scene has {there}")
        rows = slice(int(table["point_offset"][index]), int(table["point_offset"][index + 1]))
        height, width = (int(n) for n in table["image_size"][index])
        strings: dict[str, Any] = dict(self.views.attrs)
        names = ("position", "color", "confidence", "pixel", "label")
        return View(
            frame_id=int(table["frame_id"][index]),
            camera=strings["cameras"][table["camera"][index]],
            image=self.root / strings["images"][index],
            image_size=(height, width),
            has_label=bool(table["has_label"][index]),
            intrinsics=table["intrinsics"][index],
            camera_to_world=table["camera_to_world"][index],
            truth=self._array(self.points, "truth", rows) if self.has_truth else None,
            label_file=self._label_file(strings["labels"][index], "label_encoding", self.classes),
            truth_file=self._label_file(
                strings["truths"][index], "truth_encoding", self.classes.ignoring(self.attrs["ignored_in_truth"])
            ),
            embedded=partial(self.embedded, index),
            **{name: self._array(self.points, name, rows) for name in names},
        )

    def embedded(self, index: int, kind: str) -> bytes | None:
        """The encoded `kind` ("image", "label" or "truth") file of a view, None where the store holds none.

        Raises:
            UserError: it cannot be read.
        """
        if self.files is None:
            return None
        first, last = (int(n) for n in self._array(self.files, f"{kind}_offset", slice(index, index + 2)))
        return self._array(self.files, kind, slice(first, last)).tobytes() if last > first else None

    def _label_file(self, name: str | None, encoding: str, classes: ClassMap) -> LabelFile | None:
        return None if name is None else LabelFile(self.root / name, self.attrs[encoding], classes)

    def read_label(self, index: int) -> U8 | None:
        """What `view(index).read_label()` gives, without reading the view's points."""
        strings: dict[str, Any] = dict(self.views.attrs)
        file = self._label_file(strings["labels"][index], "label_encoding", self.classes)
        height, width = (int(n) for n in self.view_table["image_size"][index])
        return file.read((height, width), self.embedded(index, "label")) if file else None

    @cached_property
    def accumulated(self) -> SceneAccumulated:
        """The labels that views gave each other in 3D.

        Raises:
            UserError: this scene has no finished accumulated labels.
        """
        return SceneAccumulated(self.path, self.classes)

    @cached_property
    def samples(self) -> SceneSamples:
        """The training items of this scene.

        Raises:
            UserError: this scene has no finished samples.
        """
        return SceneSamples(self.path)

    def sample(self, index: int) -> SceneSample:
        """The training item at `index`: rows are ordered by view, then by draw.

        Raises:
            UserError: this scene has no finished samples, none of this index, or it cannot be read.
        """
        return self.samples.sample(index)

    def samples_hash(self) -> str:
        """SHA-256 over the decoded arrays of `samples/` and the configuration that made them.

        Raises:
            UserError: this scene has no finished samples.
        """
        return self.samples.hash()

    def _array(self, group: zarr.Group, name: str, rows: slice = slice(None)) -> npt.NDArray[Any]:
        mend = f"run `rw3d-prep verify {self.path}`, then delete the store and reconstruct it again"
        files = self.attrs["complete"]["files"]
        array: npt.NDArray[Any] = read_array(self.path, f"{group.basename}/{name}", group, rows, files, mend)
        return array

    def colors(self, by: Coloring = "rgb") -> U8:
        """(N, 3) uint8 colour per point: photo colours, class colours, grey confidence ranks, or one per view.

        By view, points that belong to no view are black.

        Raises:
            UserError: an unknown `by`, or "truth" where the scene has no dense labels.
        """
        if by not in get_args(Coloring):
            raise UserError(f"colors(by={by!r}): points can be coloured by {', '.join(get_args(Coloring))}")
        if by == "rgb":
            return self.read("color")
        if by == "confidence":
            confidence = self.read("confidence")
            rank = np.searchsorted(np.sort(confidence), confidence, side="right") / max(len(confidence), 1)
            return np.repeat((255 * rank).astype(np.uint8)[:, None], 3, axis=1)
        if by == "view":
            hues = np.random.default_rng(0).integers(60, 255, (len(self), 3)).astype(np.uint8)
            offset = self.view_table["point_offset"]
            return np.repeat(np.insert(hues, 0, 0, axis=0), np.diff(offset, prepend=0), axis=0)
        colors: U8 = self.classes.palette[self.read(by)]
        return colors

    def to_open3d(self, by: Coloring = "rgb") -> open3d.geometry.PointCloud:
        """The scene as an Open3D point cloud (needs the extra `prep`).

        Raises:
            UserError: Open3D is not installed, or a system library that it needs is not.
        """
        try:
            import open3d
        except (ImportError, OSError) as error:
            raise UserError(
                f"to_open3d() needs Open3D ({error}): pip install 'rw3d[prep]', and ask `rw3d-prep doctor` if that is not all"
            ) from error
        cloud = open3d.geometry.PointCloud()
        cloud.points = open3d.utility.Vector3dVector(self.read("position").astype(np.float64))
        cloud.colors = open3d.utility.Vector3dVector(self.colors(by) / 255.0)
        return cloud

    def content_hash(self) -> str:
        """SHA-256 over the decoded arrays and the attributes that describe them; free of times, paths and codecs."""
        digest = hashlib.sha256()
        for key in ("schema_version", "dataset", "split", "sequence", "config_hash", "classes", "world_offset"):
            digest.update(repr((key, self.attrs[key])).encode())
        for group in filter(None, (self.points, self.views, self.files)):
            for name in sorted(set(group.array_keys()) - {POINT_ARRAY}):  # was added later
                values = self._array(group, name)
                digest.update(repr((name, values.dtype.str, values.shape)).encode())
                digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    def _facts(self) -> dict[str, str]:
        counts = self.attrs["complete"]
        share = counts["labelled_points"] / max(counts["points"], 1)
        return {
            "scene": self.name,
            "dataset": f"{self.attrs['dataset']} ({self.attrs['backend']['name'] if self.has_geometry else 'no'} geometry)",
            "views": f"{len(self):,} ({int(self.view_table['has_label'].sum())} with sparse labels)",
            "points": f"{self.n_points:,} ({share:.1%} labelled, {len(self.classes)} classes)",
            "arrays": ", ".join(sorted(self.points.array_keys())) + " · views/*",
            "samples": self._samples_fact(),
            **({"accumulated": self._accumulated_fact()} if has_accumulated(self.path) else {}),
            "path": str(self.path),
        }

    def _samples_fact(self) -> str:
        if not has_samples(self.path):
            return "none; `rw3d-prep sample-views` makes them"
        try:
            return repr(self.samples)
        except UserError:
            return "damaged or unfinished; `rw3d-prep verify` says more"

    def __repr__(self) -> str:
        return "Scene\n" + "\n".join(f"  {key:8} {value}" for key, value in self._facts().items())

    def _accumulated_fact(self) -> str:
        try:
            return repr(self.accumulated)
        except UserError:
            return "damaged or unfinished; `rw3d-prep verify` says more"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{key}</th><td style='text-align:left'>{html.escape(value)}</td></tr>"
            for key, value in self._facts().items()
        )
        swatches = " ".join(
            f"<span style='white-space:nowrap;margin-right:1em' title='train id {item.train_id:d}'>"
            f"<span style='background:#{bytes(item.color).hex()};padding:0 .6em;margin-right:.4em'></span>"
            f"{html.escape(item.name)}</span>"
            for item in self.classes.classes
        )
        legend = f"<tr><th style='text-align:left'>classes</th><td style='text-align:left'>{swatches}</td></tr>"
        return f"<table>{rows}{legend if swatches else ''}</table>"


def open_scene(path: str | StorePath) -> Scene:
    """Open a finished scene store for reading, from a folder or an s3:// URL.

    Raises:
        UserError: no store at this path, one that was never finished, or one of another schema version.
    """
    return Scene(path)
