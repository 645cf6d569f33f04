"""Images of split val side by side: the image, its truth, and what every row predicts there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from rw3d_common.collection import local_stores
from rw3d_common.labels import U8, ClassMap
from rw3d_common.scene import open_scene
from rw3d_train.compare.cells import Cell, is_finished
from rw3d_train.data.views import LabelledView, ViewDataset
from rw3d_train.predict import overlay
from rw3d_train.trained import load

PANEL = 440  # pixels that an image is wide
NAMES = 170  # pixels of the names at the left
GAP, LINE, TEXT = 6, 20, 13
OPACITY = 0.65


def write_pictures(cells: Sequence[Cell], count: int, device: torch.device, file: Path) -> list[str]:
    """One picture: a column per image, lines for the image, its truth, and every cell; classes below.

    Args:
        cells: finished ones of different rows, of one column and seed; the first one's scenes give the images.
        count: how many images, spread evenly over split val whatever they show.
        device: where the networks predict.
        file: the picture to write.

    Returns:
        The names of the images.
    """
    shown = [cell for cell in cells if is_finished(cell)]
    if not shown or count == 0:
        return []
    scenes = [open_scene(path) for path in local_stores(Path(str(shown[0].config.data.stores)))]
    val = [scene for scene in scenes if scene.attrs["split"] == "val" and scene.has_truth]
    views = ViewDataset([scene.path for scene in val], "truth")
    count = min(count, len(views))
    chosen = [views[int((index + 0.5) * len(views) / count)] for index in range(count)]
    classes = val[0].classes
    lines = [("image", [_shrunk(view.image) for view in chosen])]
    lines.append(("truth", [_shrunk(overlay(view.image, view.label, classes, OPACITY)) for view in chosen]))
    lines += [(cell.row, _predicted(cell, chosen, device)) for cell in shown]
    width = NAMES + count * (PANEL + GAP)
    parts = [*(_line(name, panels, width) for name, panels in lines), _legend(classes, width)]
    Image.fromarray(np.concatenate(parts)).save(file, quality=88)
    return [view.key for view in chosen]


def _predicted(cell: Cell, views: Sequence[LabelledView], device: torch.device) -> list[U8]:
    segmenter = load(cell.folder, "student", str(device))
    return [_shrunk(overlay(view.image, segmenter.predict(view.image), segmenter.classes, OPACITY)) for view in views]


def _shrunk(image: U8) -> U8:
    height = round(image.shape[0] * PANEL / image.shape[1])
    return np.asarray(Image.fromarray(image).resize((PANEL, height), Image.Resampling.LANCZOS))


def _line(name: str, panels: Sequence[U8], width: int) -> U8:
    height = max(len(panel) for panel in panels)
    canvas = Image.new("RGB", (width, height + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    text = "\n".join(_wrapped(draw, name, NAMES - 2 * GAP))
    draw.multiline_text((0, height / 2), text, fill="black", font=_font(), anchor="lm")
    for index, panel in enumerate(panels):
        canvas.paste(Image.fromarray(panel), (NAMES + index * (PANEL + GAP), 0))
    return np.asarray(canvas)


def _wrapped(draw: ImageDraw.ImageDraw, text: str, width: int) -> list[str]:
    """The words of a text in lines that are not wider than `width` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and draw.textlength(longer, font=_font()) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _legend(classes: ClassMap, width: int) -> U8:
    """The colour of every class, with its name."""
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    wide = max(int(draw.textlength(name, font=_font())) for name in classes.names) + LINE + 3 * GAP
    across = max((width - NAMES) // wide, 1)
    canvas = Image.new("RGB", (width, -(-len(classes) // across) * LINE + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for index, item in enumerate(classes.classes):
        x, y = NAMES + index % across * wide, GAP + index // across * LINE
        draw.rectangle((x, y + 2, x + 12, y + 14), fill=item.color, outline="#999999")
        draw.text((x + 18, y + 8), item.name, fill="black", font=_font(), anchor="lm")
    return np.asarray(canvas)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(TEXT)
