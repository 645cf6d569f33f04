"""What `rw3d-prep accumulate` shows: a table per scene and per class, and a picture of one view."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Group
from rich.table import Table

from rw3d_common.errors import UserError
from rw3d_common.labels import IGNORE, U8
from rw3d_common.scene import Scene
from rw3d_common.scene_accumulated import SceneAccumulated, has_accumulated


def accumulated_tables(scenes: Sequence[Scene]) -> Group:
    """One row per scene that has accumulated labels, and one per class over all of them."""
    there = [scene for scene in scenes if has_accumulated(scene.path)]
    return Group(_scenes_table(there), _classes_table(there))


def unusable(scenes: Sequence[Scene]) -> list[str]:
    """Names of the scenes whose accumulated labels were measured and are not precise enough."""
    return [scene.name for scene, labels in _readable(scenes) if labels.usable is False]


def write_picture(scenes: Sequence[Scene], path: Path) -> str:
    """Write a PNG of the view whose labels grew most, and return its name.

    Raises:
        UserError: no scene has accumulated labels.
    """
    from PIL import Image

    readable = _readable(scenes)
    if not readable:
        raise UserError(f"{path}: no scene has accumulated labels to show")
    scene, labels = max(readable, key=lambda pair: pair[1].report["carried"])
    view = int(np.flatnonzero(labels.has_label)[np.count_nonzero(labels.has_label) // 2])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(view_picture(scene, view)).save(path)
    return f"view {view} of {scene.name}"


def view_picture(scene: Scene, index: int) -> U8:
    """Image, own labels, accumulated labels and, where it exists, truth of a view, one below the other, (k·H, W, 3)."""
    view = scene.view(index)
    image = view.read_image()
    grey = (image.mean(axis=2, keepdims=True) * 0.5).astype(np.uint8).repeat(3, axis=2)
    labels = [view.read_label(), scene.accumulated.label_image(index, view.image_size)]
    layers = [np.full(view.image_size, IGNORE, np.uint8) if label is None else label for label in labels]
    truth = view.read_truth()
    layers += [] if truth is None else [truth]
    palette = scene.classes.palette
    return np.vstack([image, *(np.where((layer != IGNORE)[..., None], palette[layer], grey) for layer in layers)])


def _readable(scenes: Sequence[Scene]) -> list[tuple[Scene, SceneAccumulated]]:
    there = [scene for scene in scenes if has_accumulated(scene.path)]
    return [(scene, SceneAccumulated(scene.path, scene.classes)) for scene in there]


def _scenes_table(scenes: Sequence[Scene]) -> Table:
    table = Table(title="Accumulated labels", title_justify="left", header_style="bold")
    for name in (
        "scene",
        "labelled before",
        "after",
        "×",
        "right",
        "own contradicted",
        "contested",
        "withheld",
        "usable",
    ):
        table.add_column(name, justify="left" if name in ("scene", "withheld", "usable") else "right")
    for scene, labels in _readable(scenes):
        report = labels.report
        before, after = report["labelled_before"], report["labelled_after"]
        table.add_row(
            scene.name,
            f"{before / max(report['pixels'], 1):.2%}",
            f"{after / max(report['pixels'], 1):.2%}",
            f"{after / max(before, 1):.1f}",
            _percent(report["precision"]),
            f"{report['own_points_contradicted']:,} of {report['own_points_voted_on']:,}",
            f"{report['contested_points']:,}",
            ", ".join(report["withheld"]) or "–",
            {True: "yes", False: "NO", None: "unknown"}[labels.usable],
        )
    return table


def _classes_table(scenes: Sequence[Scene]) -> Table:
    """Carried pixels and their precision per class, of the scenes that do not withhold it."""
    table = Table(title="Carried classes", title_justify="left", header_style="bold")
    for name in ("class", "carried pixels", "right", "withheld in"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for name in dict.fromkeys(name for scene in scenes for name in scene.classes.names):
        carried = measured = right = withheld = 0
        for _, labels in _readable(scenes):
            entry = labels.report["classes"].get(name)
            if entry and name in labels.report["withheld"]:
                withheld += 1
            elif entry:
                carried, measured = carried + entry["carried"], measured + entry["measured"]
                right += round((entry["precision"] or 0) * entry["measured"])
        if carried or withheld:
            share = _percent(right / measured if measured else None)
            table.add_row(name, f"{carried:,}", share, f"{withheld} of {len(scenes)}" if withheld else "–")
    return table


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.2%}"
