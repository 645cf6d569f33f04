"""Views with dense labels, for evaluation in 2D: no samples are needed, whole images only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rw3d_common.errors import UserError
from rw3d_common.images import LabelFile, read_image
from rw3d_common.labels import U8
from rw3d_common.remote import StorePath
from rw3d_common.scene import Scene, open_scene


@dataclass(frozen=True, eq=False)
class LabelledView:
    """`image` (H, W, 3) uint8 RGB and `label` (H, W) uint8 train ids, 255 = not counted; `key` names the frame."""

    key: str
    image: U8
    label: U8


class ViewDataset(torch.utils.data.Dataset[LabelledView]):  # type: ignore[misc]
    """The views of some stores that have dense labels ("truth") or sparse ones ("label"), one item each.

    Holds paths only; every process opens the stores it reads.
    """

    def __init__(self, stores: Sequence[StorePath], kind: str = "truth") -> None:
        """Index the views.

        Raises:
            UserError: a store that cannot be opened, or no view with such labels.
        """
        self.kind, self.stores = kind, list(stores)
        self.items: list[tuple[int, int]] = []
        for number, path in enumerate(self.stores):
            scene = open_scene(path)
            names: Any = scene.views.attrs[f"{kind}s"]
            shared = scene.view_table["shared"]  # in overlapping scenes: frames that an earlier scene has as well
            self.items += [(number, v) for v, name in enumerate(names) if name is not None and not shared[v]]
        if not self.items:
            raise UserError(
                f"{self.stores[0] if self.stores else 'no store'}: none of {len(self.stores)} scenes has a {kind} image; "
                "evaluate on scenes that were reconstructed with dense labels"
            )
        self._open: tuple[int, Scene] | None = None

    def __len__(self) -> int:
        return len(self.items)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": None}

    def __getitem__(self, index: int) -> LabelledView:
        """The view at `index`.

        Raises:
            UserError: its image or label file is missing or damaged.
        """
        number, view = self.items[index]
        scene = self._scene(number)
        strings: dict[str, Any] = dict(scene.views.attrs)
        table = scene.view_table
        size = (int(table["image_size"][view, 0]), int(table["image_size"][view, 1]))
        classes = scene.classes.ignoring(scene.attrs["ignored_in_truth"]) if self.kind == "truth" else scene.classes
        file = LabelFile(scene.root / strings[f"{self.kind}s"][view], scene.attrs[f"{self.kind}_encoding"], classes)
        camera = strings["cameras"][table["camera"][view]]
        return LabelledView(
            key=f"{scene.attrs['split']}/{scene.attrs['sequence']}/{int(table['frame_id'][view]):010d}/{camera}",
            image=read_image(scene.root / strings["images"][view], scene.embedded(view, "image")),
            label=np.ascontiguousarray(file.read(size, scene.embedded(view, self.kind))),
        )

    def _scene(self, number: int) -> Scene:
        if self._open is None or self._open[0] != number:
            self._open = (number, open_scene(self.stores[number]))
        return self._open[1]
