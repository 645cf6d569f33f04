"""`rw3d-prep labels check`: what the sparse and the dense labels of a dataset really hold."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.table import Table

from rw3d_common.errors import UserError
from rw3d_common.images import ImageSource, LabelEncoding, LabelFile, image_size
from rw3d_common.labels import IGNORE, ClassMap
from rw3d_common.log import progress
from rw3d_common.manifest import DatasetEntry
from rw3d_prep.frames import Frame
from rw3d_prep.workers import run_in_processes, step

READ_AS: dict[str, tuple[LabelEncoding, ...]] = {  # by Pillow's mode; the natural one first
    "L": ("gray8", "rgb_equal", "train_ids"),
    "P": ("palette8", "train_ids"),
    "RGB": ("rgb_equal",),
}
WHAT_IS = {
    "1": "1-bit",
    "L": "one 8-bit channel",
    "P": "an 8-bit palette image",
    "RGB": "three 8-bit channels",
    "RGBA": "four 8-bit channels",
    "LA": "8 bits with transparency",
    "I;16": "one 16-bit channel",
    "I;16B": "one 16-bit channel",
    "I": "one 16-bit or 32-bit channel",
}
SHOWN = 3


@dataclass(frozen=True)
class LabelCheck:
    """Labels of one kind, such as sparse: (256,) int64 `pixels` and `images` by train id, 255 = unlabelled."""

    kind: str
    encoding: LabelEncoding
    pixels: npt.NDArray[np.int64]
    images: npt.NDArray[np.int64]
    files: int
    frames: int
    empty: Sequence[str]
    """Label images in which nothing is labelled."""

    @property
    def share(self) -> float:
        """Labelled share of the pixels of all label images."""
        return float(1 - self.pixels[IGNORE] / max(self.pixels.sum(), 1))


def check_labels(
    frames: Sequence[Frame], entry: DatasetEntry, sparse: LabelEncoding, workers: int = 1
) -> list[LabelCheck]:
    """Read every label image of the frames and count: sparse labels stored as `sparse` says, then dense ones.

    Raises:
        UserError: no frame has labels, or the first file that is missing or damaged, stored otherwise than
            data_manifest.yaml says, of another size than its image, or holds ids that no class has.
    """
    kinds = (
        ("sparse", sparse, entry.class_map(), [(frame, frame.label) for frame in frames if frame.label]),
        ("dense", entry.truth_encoding, entry.truth_map(), [(frame, frame.truth) for frame in frames if frame.truth]),
    )
    checks = [
        _check(kind, [(frame, LabelFile(path, encoding, classes)) for frame, path in found], len(frames), workers)
        for kind, encoding, classes, found in kinds
        if found
    ]
    if not checks:
        raise UserError(
            f"none of the {len(frames):,} frames has a label; `rw3d-prep datasets check` says where they belong"
        )
    return checks


def _check(kind: str, files: list[tuple[Frame, LabelFile]], frames: int, workers: int) -> LabelCheck:
    key = "truth_encoding" if kind == "dense" else "label_encoding"
    arguments = [(frame, label, key) for frame, label in files]
    pixels, images, empty = np.zeros(256, np.int64), np.zeros(256, np.int64), []
    with (
        progress(f"{kind} labels", len(files), "images") as advance,
        closing(run_in_processes(count_label, arguments, min(workers, len(files)), advance)) as finished,
    ):
        for index, future in finished:
            count = future.result()
            pixels += count
            images += count > 0
            if not count[:IGNORE].any():
                empty.append(str(files[index][0]))
    return LabelCheck(kind, files[0][1].encoding, pixels, images, len(files), frames, sorted(empty))


def count_label(frame: Frame, label: LabelFile, key: str) -> npt.NDArray[np.int64]:
    """Pixels of one label image by train id, (256,) int64.

    Raises:
        UserError: what `check_labels` says.
    """
    _refuse_other_encoding(label.path, label.encoding, key)
    train_ids = label.read(image_size(frame.image))
    step()
    return np.bincount(train_ids.ravel(), minlength=256)


def _refuse_other_encoding(path: ImageSource, declared: LabelEncoding, key: str) -> None:
    """Say how a file is really stored where that is not what `key` of data_manifest.yaml declares."""
    from PIL import Image, UnidentifiedImageError

    try:
        content = path if isinstance(path, Path) else io.BytesIO(path.read_bytes())
        with Image.open(content) as image:
            mode, equal = image.mode, image.mode == "RGB" and _channels_equal(np.asarray(image))
    except (UnidentifiedImageError, OSError, SyntaxError):
        return  # reading it as a label says what is wrong
    usable = READ_AS.get(mode, ()) if mode != "RGB" or equal else ()
    if declared in usable:
        return
    found = WHAT_IS.get(mode, f"an image of mode {mode}") + (", all equal" if equal else "")
    mend = f"set {key}: {usable[0]} in data_manifest.yaml" if usable else "convert it to one 8-bit channel of ids"
    if declared == "train_ids":
        mend = "make the labels again with `rw3d-prep make-labels`"
    raise UserError(f"{path}: is {found}, where {key} declares {declared}; {mend}")


def _channels_equal(pixels: npt.NDArray[np.uint8]) -> bool:
    return bool((pixels == pixels[..., :1]).all())


def labels_table(check: LabelCheck, classes: ClassMap) -> Table:
    """Pixels and images per class, and what has no label."""
    title = f"{check.kind} labels: {check.files:,} images stored as {check.encoding}, {100 * check.share:.3g} % of their pixels labelled"
    table = Table("id", "class", "pixels", "of labelled", "images", title=title, title_justify="left")
    labelled = max(int(check.pixels[:IGNORE].sum()), 1)
    for item in classes.classes:
        pixels = int(check.pixels[item.train_id])
        images = f"{check.images[item.train_id]:,}"
        table.add_row(str(item.train_id), item.name, f"{pixels:,}", f"{pixels / labelled:.2%}", images)
    table.add_row(str(IGNORE), "unlabelled", f"{check.pixels[IGNORE]:,}", "", f"{check.images[IGNORE]:,}")
    table.add_row("", "frames without a label image", "", "", f"{check.frames - check.files:,}")
    shown = f" ({', '.join(check.empty[:SHOWN])}{', …' if len(check.empty) > SHOWN else ''})" if check.empty else ""
    table.add_row("", f"images in which nothing is labelled{shown}", "", "", f"{len(check.empty):,}")
    return table
