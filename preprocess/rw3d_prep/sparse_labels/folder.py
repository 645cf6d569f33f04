"""A folder of labels in the making: whose it is, what is there already, and when it is finished."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rw3d_common.config import difference
from rw3d_common.errors import UserError
from rw3d_common.log import log
from rw3d_prep.frames import Frame
from rw3d_prep.label_folders import DESCRIPTION, image_of

UNFINISHED = "labels.unfinished.json"  # what `labels.json` is called while images are missing


def begin(folder: Path, identity: dict[str, Any], frames: Sequence[Frame]) -> None:
    """Claim a folder for labels that `identity` describes; it counts as unfinished while a frame lacks its image.

    Raises:
        UserError: it holds labels made otherwise, or images of unknown making.
    """
    there = sum(image_of(folder, frame).is_file() for frame in frames)
    known = [path for path in (folder / DESCRIPTION, folder / UNFINISHED) if path.is_file()]
    for path in known:
        claim(path, identity)
    if there and not known:
        raise UserError(
            f"{folder}: holds label images but no {DESCRIPTION}, so how they were made is not known; choose another --out"
        )
    if there < len(frames):
        claim(folder / UNFINISHED, identity)
        (folder / DESCRIPTION).unlink(missing_ok=True)
    if there:
        log.info(f"{folder}: {there:,} of {len(frames):,} images are there already and are kept")


def claim(path: Path, identity: dict[str, Any]) -> None:
    """Write `identity` to `path`, or see that what stands there is the same.

    Raises:
        UserError: it is another, or damaged.
    """
    if not path.is_file():
        write_whole(path, as_json(identity))
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        changed = difference({key: there[key] for key in identity}, identity)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: damaged ({error!r}); delete the folder {path.parent} and make its labels again"
        ) from None
    if changed:
        raise UserError(
            f"{path.parent}: holds labels made otherwise ({changed}); choose another --out, or delete that folder"
        )


def finish(folder: Path, description: dict[str, Any]) -> None:
    """Describe a folder in which every frame has its image."""
    write_whole(folder / DESCRIPTION, as_json(description))
    (folder / UNFINISHED).unlink(missing_ok=True)


def as_json(tree: dict[str, Any]) -> bytes:
    """One line of JSON."""
    return (json.dumps(tree, ensure_ascii=False) + "\n").encode()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that under its name it is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
