"""Labels of a scene carried in 3D to the views that see the same surface: what `rw3d-prep accumulate` wrote.

Per point they are `points/label_accumulated`, per view an image in the group `accumulated`; both hold the own sparse
labels too. They count as there once the group is: it is moved into the store after the array.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rw3d_common.errors import UserError
from rw3d_common.images import LabelFile
from rw3d_common.labels import U8, ClassMap
from rw3d_common.log import log
from rw3d_common.remote import StorePath
from rw3d_common.scene_files import finished_attributes, open_group, read_array

GROUP = "accumulated"
POINT_ARRAY = "label_accumulated"
Labels = Literal["own", "accumulated"]


class SceneAccumulated:
    """The finished accumulated labels of one scene store, opened for reading.

    Raises:
        UserError: the scene has none, or some that were never finished or are of another schema version.
    """

    def __init__(self, store: StorePath, classes: ClassMap) -> None:
        self.store, self.path, self.classes = store, store / GROUP, classes
        self.attrs = finished_attributes(store, GROUP, "accumulated labels", "accumulate")
        self.group = open_group(self.path)

    @property
    def usable(self) -> bool | None:
        """They are precise enough to train with; None where no truth could tell."""
        usable: bool | None = self.attrs["usable"]
        return usable

    @property
    def report(self) -> dict[str, Any]:
        """Pixels labelled before and after, precision overall and per class, withheld classes, conflicts."""
        report: dict[str, Any] = self.attrs["report"]
        return report

    @property
    def record(self) -> dict[str, Any]:
        """The completion record."""
        record: dict[str, Any] = self.attrs["complete"]
        return record

    @cached_property
    def has_label(self) -> npt.NDArray[np.bool_]:
        """(V,) bool: the view has labels, own or carried."""
        return np.diff(self._read("label_offset")) > 0

    def label_image(self, view: int, size: tuple[int, int]) -> U8 | None:
        """Own and carried labels of a view as train ids (H, W) uint8, 255 = unlabelled; None where it has none.

        Raises:
            UserError: it cannot be read.
        """
        first, last = (int(n) for n in self._read("label_offset", slice(view, view + 2)))
        if first == last:
            return None
        content = self._read("label", slice(first, last)).tobytes()
        return LabelFile(Path(str(self.path / "label")), "train_ids", self.classes).read(size, content)

    def point_labels(self) -> U8:
        """(N,) uint8 train ids of the scene's points, 255 = unlabelled.

        Raises:
            UserError: they cannot be read.
        """
        points = open_group(self.store / "points")
        labels: U8 = read_array(
            self.store, f"points/{POINT_ARRAY}", points, slice(None), self.record["files"], self._mend
        )
        return labels

    def require_usable(self) -> None:
        """Warn where nobody knows how precise these labels are.

        Raises:
            UserError: they were measured, and are not precise enough.
        """
        if self.usable is None:
            log.warning(f"{self.store}: no truth has told how precise its accumulated labels are; look at some first")
        elif not self.usable:
            raise UserError(
                f"{self.store}: its accumulated labels are not precise enough ({_percent(self.report)} of their pixels are "
                "right); use the own labels (labels own), or make better ones with `rw3d-prep accumulate --overwrite`"
            )

    @property
    def _mend(self) -> str:
        return f"run `rw3d-prep verify {self.store}`, then `rw3d-prep accumulate {self.store} --overwrite`"

    def _read(self, name: str, rows: slice = slice(None)) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = read_array(
            self.store, f"{GROUP}/{name}", self.group, rows, self.record["files"], self._mend
        )
        return array

    def __repr__(self) -> str:
        report, state = self.report, {True: "usable", False: "NOT usable", None: "precision unknown"}[self.usable]
        before, after = (report[f"labelled_{when}"] / max(report["pixels"], 1) for when in ("before", "after"))
        return f"{before:.2%} → {after:.2%} of pixels labelled, {_percent(report)} right, {state}"


def has_accumulated(store: StorePath) -> bool:
    """True where a scene store holds accumulated labels, whatever their state."""
    return (store / GROUP).exists()


def _percent(report: dict[str, Any]) -> str:
    precision = report["precision_with_withheld"]
    return "an unknown share" if precision is None else f"{precision:.2%}"
