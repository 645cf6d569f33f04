"""The one way to open an image or a label file, so that a stored pixel means the same place everywhere.

Image coordinates are those of the picture as displayed: EXIF orientation applied. `points/pixel` indexes that picture.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from rw3d_common.errors import UserError
from rw3d_common.labels import U8, ClassMap

if TYPE_CHECKING:
    from PIL.Image import Image

LabelEncoding = Literal["gray8", "palette8", "rgb_equal", "train_ids"]
_TRANSPOSING = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_MODES = {"gray8": ("L",), "palette8": ("P",), "rgb_equal": ("RGB", "L"), "train_ids": ("P", "L")}
_MEND = {
    "gray8": "one 8-bit channel holding the raw id",
    "palette8": "an 8-bit palette image whose indices are the raw ids",
    "rgb_equal": "three equal 8-bit channels holding the raw id",
    "train_ids": "an 8-bit palette image whose indices are train ids, as `rw3d-prep make-labels` writes it",
}


class Packed(Protocol):
    """An image that is no file of its own: a cell of a table, a slice of an array, or a file in another encoding.

    `path` is the file that holds it, `member` says where in it. Scenes store the bytes of such images.
    """

    @property
    def path(self) -> Path: ...

    @property
    def member(self) -> str: ...

    def read_bytes(self) -> bytes:
        """The image in an encoding that Pillow reads, such as PNG or JPEG.

        Raises:
            UserError: the file is missing, truncated or of another format.
        """
        ...


ImageSource = Path | Packed


def read_image(path: ImageSource, content: bytes | None = None) -> U8:
    """An image as (H, W, 3) uint8 RGB, EXIF orientation applied.

    `content` is the file's bytes where they are at hand; `path` then only names them in errors.

    Raises:
        UserError: the file is missing, truncated or no image.
    """
    from PIL import ImageOps

    with _opened(path, content) as image:
        try:
            upright = ImageOps.exif_transpose(image)
            return np.asarray(upright.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{path}: cannot be decoded ({error}); copy the file again") from error


def image_size(path: ImageSource) -> tuple[int, int]:
    """(height, width) of an image as displayed, read from its header only.

    Raises:
        UserError: the file is missing or no image.
    """
    with _opened(path) as image:
        width, height = image.size
        # Pillow decodes a whole PNG in search of EXIF data that is not in its header.
        exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
        turned = exif.get(0x0112) in _TRANSPOSING
    return (width, height) if turned else (height, width)


def read_label(path: ImageSource, encoding: LabelEncoding, size: tuple[int, int], content: bytes | None = None) -> U8:
    """Raw label ids (H, W) uint8 of a label image stored in `encoding`; `size` is its picture's (height, width).

    `content` is the file's bytes where they are at hand; `path` then only names them in errors.

    Raises:
        UserError: missing, truncated, of another bit depth or mode than `encoding`, or of another size.
    """
    with _opened(path, content) as image:
        if image.mode not in _MODES[encoding]:
            raise UserError(
                f"{path}: label of mode {image.mode} where this dataset's labels are {_MEND[encoding]}; "
                "convert it, or set label_encoding in data_manifest.yaml"
            )
        if (image.height, image.width) != size:
            raise UserError(
                f"{path}: label of {image.width}×{image.height} for an image of {size[1]}×{size[0]}; "
                "labels must have their image's size (resize with nearest neighbour)"
            )
        try:
            raw = np.asarray(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{path}: cannot be decoded ({error}); copy the file again") from error
    if raw.ndim == 2:
        return raw
    if (raw != raw[..., :1]).any():
        raise UserError(f"{path}: its channels differ, so it is a colour picture; labels are {_MEND[encoding]}")
    return np.ascontiguousarray(raw[..., 0])


def read_uint16(source: ImageSource, what: str) -> npt.NDArray[np.uint16]:
    """A 16-bit single-channel PNG (H, W) as stored; `what` it is, such as "depth image", is named in errors.

    Raises:
        UserError: missing, truncated, or not 16-bit.
    """
    with _opened(source) as image:
        if image.mode not in ("I;16", "I;16B", "I"):
            raise UserError(
                f"{source}: {what} of mode {image.mode} where a 16-bit single-channel PNG belongs; replace it"
            )
        try:
            return np.asarray(image).astype(np.uint16)
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{source}: cannot be decoded ({error}); copy the file again") from error


@dataclass(frozen=True)
class LabelFile:
    """A label image on disk, with all that is needed to read it as train ids."""

    path: ImageSource
    encoding: LabelEncoding
    classes: ClassMap

    def read(self, size: tuple[int, int], content: bytes | None = None) -> U8:
        """Train ids (H, W) uint8 with 255 = unlabelled, for a picture of `size` (height, width).

        `content` is the file's bytes where they are at hand, for example embedded in a store.

        Raises:
            UserError: what `read_label` refuses, and raw ids that no class has.
        """
        classes = self.classes.of_train_ids() if self.encoding == "train_ids" else self.classes
        return classes.to_train_ids(read_label(self.path, self.encoding, size, content), str(self.path))


def encode_train_ids(train_ids: U8, classes: ClassMap) -> bytes:
    """Train ids (H, W) uint8 as the PNG that the encoding "train_ids" reads: indices into the classes' colours."""
    from PIL import Image

    image = Image.fromarray(train_ids)
    image.putpalette(classes.palette.tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", optimize=False)
    return file.getvalue()


def _opened(path: ImageSource, content: bytes | None = None) -> Image:
    from PIL import Image, UnidentifiedImageError

    if content is None and not isinstance(path, Path):
        content = path.read_bytes()
    try:
        return Image.open(path if isinstance(path, Path) and content is None else io.BytesIO(content or b""))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; restore it, or remove its frame from the lists") from None
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{path}: cannot be read as an image ({error}); copy the file again") from error
