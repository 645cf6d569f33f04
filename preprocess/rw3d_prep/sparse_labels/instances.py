"""Instance images beside dense labels: which pixels belong to one thing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from rw3d_common.errors import UserError
from rw3d_common.images import ImageSource

U16 = npt.NDArray[np.uint16]
CITYSCAPES_DENSE = ("_labelIds.png", "_labelTrainIds.png")
PER_CLASS = 1000  # an instance is stored as id · 1000 + number


def read_instances(dense: ImageSource, size: tuple[int, int]) -> U16:
    """Instances (H, W) uint16 as stored, 0 where there is none, of the image whose dense label is `dense`.

    KITTI-360: `instance/` beside `semantic/`, number 0 means none (kitti360Scripts). Cityscapes: `*_instanceIds.png`
    beside `*_labelIds.png`, values below 1000 mean none (cityscapesScripts).

    Raises:
        UserError: this dataset has no instances, or the file is missing, unreadable or of another bit depth or size.
    """
    path = instance_file(dense)
    stored = _read_16_bit(path, size)
    is_thing = stored >= PER_CLASS if path.name.endswith("_instanceIds.png") else stored % PER_CLASS > 0
    return np.where(is_thing, stored, 0).astype(np.uint16)


def instance_file(dense: ImageSource) -> Path:
    """The instance image of a dense label.

    Raises:
        UserError: neither KITTI-360's nor Cityscapes' rule names one.
    """
    if isinstance(dense, Path):
        if dense.parent.name == "semantic":
            return dense.parent.parent / "instance" / dense.name
        for ending in CITYSCAPES_DENSE:
            if dense.name.endswith(ending):
                return dense.with_name(dense.name.removesuffix(ending) + "_instanceIds.png")
    raise UserError(
        f"{dense}: no instance image belongs to it (KITTI-360 has instance/ beside semantic/, Cityscapes *_instanceIds.png "
        "beside *_labelIds.png); draw one point per class with --per class"
    )


def _read_16_bit(path: Path, size: tuple[int, int]) -> U16:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            mode, stored = image.mode, np.asarray(image)
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; get the dataset's instance images, or draw one point per class with --per class"
        ) from None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise UserError(f"{path}: cannot be decoded ({error}); copy the file again") from error
    if mode not in ("I;16", "I;16B", "I"):
        raise UserError(f"{path}: instance image of mode {mode}; instances are a 16-bit single-channel PNG")
    if stored.shape != size:
        raise UserError(
            f"{path}: instances of {stored.shape[1]}×{stored.shape[0]} for a label of {size[1]}×{size[0]}; copy the official file again"
        )
    return stored.astype(np.uint16)
