"""Class maps: raw label id → train id, name and colour. 255 means unlabelled or ignored, everywhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from rw3d_common.errors import UserError

IGNORE = 255
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class LabelClass:
    """One train id: the raw ids that become it, its colour (0..255), and whether it can exist as 3D points."""

    train_id: int
    name: str
    raw_ids: tuple[int, ...]
    color: tuple[int, int, int]
    in_3d: bool = True


@dataclass(frozen=True)
class ClassMap:
    """The label codes of a dataset. Raw ids in neither `classes` nor `ignored_ids` are errors, never guesses."""

    classes: tuple[LabelClass, ...]
    ignored_ids: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> list[str]:
        return [item.name for item in self.classes]

    @cached_property
    def train_id_of(self) -> U8:
        """(256,) uint8: raw id → train id; ignored and unknown ids hold 255."""
        table = np.full(256, IGNORE, np.uint8)
        for item in self.classes:
            table[list(item.raw_ids)] = item.train_id
        return table

    @cached_property
    def is_known(self) -> npt.NDArray[np.bool_]:
        """(256,) bool: raw ids that the dataset defines."""
        known = np.zeros(256, bool)
        known[list(self.ignored_ids)] = True
        for item in self.classes:
            known[list(item.raw_ids)] = True
        return known

    @cached_property
    def palette(self) -> U8:
        """(256, 3) uint8 colours by train id; 255 is a dark grey."""
        colors = np.full((256, 3), 40, np.uint8)
        for item in self.classes:
            colors[item.train_id] = item.color
        return colors

    @cached_property
    def in_3d(self) -> npt.NDArray[np.bool_]:
        """(256,) bool by train id: False for classes without surface, such as sky; True for 255."""
        keep = np.ones(256, bool)
        keep[[item.train_id for item in self.classes if not item.in_3d]] = False
        return keep

    def to_train_ids(self, raw: U8, source: str) -> U8:
        """Raw label ids of any shape, uint8, as train ids of the same shape.

        Raises:
            UserError: a raw id that the dataset does not define; `source` (the file) and the ids are named.
        """
        if not self.is_known.take(raw).all():
            unknown = np.flatnonzero(np.bincount(raw.ravel(), minlength=256).astype(bool) & ~self.is_known)
            raise UserError(
                f"{source}: unknown label id {', '.join(map(str, unknown))}; ids must be those of the dataset's classes "
                "in data_manifest.yaml (ids in between often mean that the label was resized with interpolation)"
            )
        return self.train_id_of.take(raw)

    def to_json(self) -> list[dict[str, Any]]:
        """The map as stored in every scene's attributes."""
        return [
            {
                "train_id": item.train_id,
                "name": item.name,
                "raw_ids": list(item.raw_ids),
                "color": list(item.color),
                "in_3d": item.in_3d,
            }
            for item in self.classes
        ]

    @classmethod
    def from_json(cls, items: list[dict[str, Any]], ignored_ids: Sequence[int] = ()) -> ClassMap:
        """The inverse of `to_json`, which leaves out the ignored ids."""
        return cls(
            tuple(
                LabelClass(item["train_id"], item["name"], tuple(item["raw_ids"]), tuple(item["color"]), item["in_3d"])
                for item in items
            ),
            tuple(ignored_ids),
        )

    def ignoring(self, raw_ids: Sequence[int]) -> ClassMap:
        """The same map with these raw ids taken from their classes: they become 255."""
        classes = (
            LabelClass(c.train_id, c.name, tuple(i for i in c.raw_ids if i not in raw_ids), c.color, c.in_3d)
            for c in self.classes
        )
        return ClassMap(tuple(classes), (*self.ignored_ids, *raw_ids))

    def of_train_ids(self) -> ClassMap:
        """The map of label images that hold train ids already: id n is class n, 255 is unlabelled."""
        classes = (LabelClass(c.train_id, c.name, (c.train_id,), c.color, c.in_3d) for c in self.classes)
        return ClassMap(tuple(classes), (IGNORE,))

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the map: stores and checkpoints with different hashes must not be mixed."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()
