"""The training items of a scene: what `rw3d-prep sample-views` wrote into the group `samples` of its store."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from rw3d_common.cameras import F32
from rw3d_common.errors import UserError
from rw3d_common.labels import U8
from rw3d_common.remote import StorePath
from rw3d_common.scene_files import finished_attributes, open_group, read_array
from rw3d_common.schema import SAMPLE_TABLES, SAMPLES_PER_SHARD

GROUP = "samples"


@dataclass(frozen=True, repr=False, eq=False)
class SceneSample:
    """One training item: points drawn for one view, the view's own points first, without the padding of the store.

    `view` is the index of the view, `draw` which of its samples this is. n rows each: `position` (n, 3) float32 metres
    in the scene's world; `color` (n, 3) uint8; `confidence` (n,) float32; `label` and `truth` (n,) uint8 train ids with
    255 = none (`truth` is None where the dataset has no dense labels); `index` (n,) uint32 rows of the points in
    `points/`. `pixel` (n_own,) int32 is the flat source pixel of the own points. `center` (3,) float32 and `radius`,
    metres, are the sphere that the other points come from; the radius is infinite for the whole scene.
    """

    view: int
    draw: int
    position: F32
    color: U8
    confidence: F32
    label: U8
    truth: U8 | None
    index: npt.NDArray[np.uint32]
    pixel: npt.NDArray[np.int32]
    n_own: int
    center: F32
    radius: float

    def __repr__(self) -> str:
        labelled = np.count_nonzero(self.label != 255)
        return (
            f"SceneSample(view {self.view}, draw {self.draw}, {len(self.position):,} points, "
            f"{self.n_own:,} of the view's own, {labelled:,} labelled)"
        )


class SceneSamples:
    """The finished samples of one scene store, opened for reading. `group` is the Zarr group itself.

    Raises:
        UserError: the scene has no samples, or some that were never finished or are of another schema version.
    """

    def __init__(self, store: StorePath) -> None:
        self.store, self.path = store, store / GROUP
        self.attrs = finished_attributes(store, GROUP, "samples", "sample-views")
        self.group = open_group(self.path)

    def __len__(self) -> int:
        """Number of samples."""
        return int(self.record["samples"])

    @property
    def record(self) -> dict[str, Any]:
        """The completion record."""
        record: dict[str, Any] = self.attrs["complete"]
        return record

    @property
    def has_truth(self) -> bool:
        """The samples were made with dense labels; the completion record says so, since an array can get lost."""
        return f"{GROUP}/truth/zarr.json" in self.record["files"]

    @cached_property
    def table(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays with one row per sample in memory, by name."""
        return {spec.name: self.read(spec.name) for spec in SAMPLE_TABLES}

    def read(self, name: str, rows: slice = slice(None)) -> npt.NDArray[Any]:
        """Rows of one array in memory, padding included.

        Raises:
            UserError: it cannot be read.
        """
        mend = f"run `rw3d-prep verify {self.store}`, then delete {self.path} and run `rw3d-prep sample-views` again"
        array: npt.NDArray[Any] = read_array(
            self.store, f"{GROUP}/{name}", self.group, rows, self.record["files"], mend
        )
        return array

    def sample(self, index: int) -> SceneSample:
        """The sample at `index`, 0 ≤ index < len.

        Raises:
            UserError: no sample of this index, or it cannot be read.
        """
        if not 0 <= index < len(self):
            raise UserError(f"{self.store}: no sample {index}; this scene has samples 0 to {len(self) - 1}")
        table = {name: values[index] for name, values in self.table.items()}
        points, own = int(table["n_points"]), int(table["n_own"])
        names = ["position", "color", "confidence", "label", "index", *(["truth"] if self.has_truth else [])]
        arrays = {name: self.read(name, slice(index, index + 1))[0, :points] for name in names}
        return SceneSample(
            view=int(table["view"]),
            draw=int(table["draw"]),
            truth=arrays.pop("truth", None),
            pixel=self.read("pixel", slice(index, index + 1))[0, :own],
            n_own=own,
            center=table["center"],
            radius=float(table["radius"]),
            **arrays,
        )

    def hash(self) -> str:
        """SHA-256 over the decoded arrays and the configuration that made them; free of times, paths and codecs."""
        digest = hashlib.sha256(repr((self.attrs["schema_version"], self.attrs["config_hash"])).encode())
        for name in sorted(self.group.array_keys()):
            array: Any = self.group[name]
            digest.update(repr((name, array.dtype.str, array.shape)).encode())
            for start in range(0, array.shape[0], SAMPLES_PER_SHARD):
                rows = self.read(name, slice(start, start + SAMPLES_PER_SHARD))
                digest.update(np.ascontiguousarray(rows).tobytes())
        return digest.hexdigest()

    def __repr__(self) -> str:
        mean = self.record["correspondences"]["mean"]
        return f"{len(self):,} ({self.record['points'] / len(self):,.0f} points each, {mean:,.0f} of the view's own)"


def has_samples(store: StorePath) -> bool:
    """True where a scene store holds samples, whatever their state."""
    return (store / GROUP).exists()
