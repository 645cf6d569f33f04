"""`accumulated/` of one scene: every view's own labels and those that other views give it, and how right these are.

    make_accumulated(Path("stores/…/0000000000-0000000199.zarr"), AccumulateConfig())

Labels are carried, measured against truth where the scene is of the split train and has some, withheld per class, and
written beside the original ones. A scene is judged alone, so its bytes depend on nothing but itself and the options.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from rw3d_common.config import config_hash, did_you_mean, difference
from rw3d_common.errors import UserError
from rw3d_common.images import encode_train_ids
from rw3d_common.labels import IGNORE, U8
from rw3d_common.manifest import dataset_entry
from rw3d_common.scene import Scene, open_scene
from rw3d_common.scene_accumulated import GROUP, SceneAccumulated, has_accumulated
from rw3d_common.schema import SCHEMA_VERSION
from rw3d_prep.accumulate_writer import AccumulatedWriter
from rw3d_prep.carry import CarriedView, CarryConfig, carry_labels
from rw3d_prep.precision import Counts, Verdict, judge
from rw3d_prep.votes import paint, paint_cells, with_own
from rw3d_prep.workers import step


class AccumulateConfig(CarryConfig):
    no_accumulate: tuple[str, ...] | None = None
    """Classes whose labels are carried only between views of the same time. Default: those that data_manifest.yaml
    marks as movable."""
    min_precision: float = Field(0.97, ge=0, le=1)
    """Share of carried pixels that must be right for the labels to be usable."""
    min_class_precision: float = Field(0.9, ge=0, le=1)
    """Classes with a smaller share of right pixels are withheld."""


def identity(scene: Scene, config: AccumulateConfig) -> dict[str, Any]:
    """All that decides the bytes, beside the scene itself.

    Raises:
        UserError: a class of `no_accumulate` that the scene has not, or a dataset that the manifest does not know.
    """
    names = config.no_accumulate
    if names is None:
        names = tuple(item.name for item in dataset_entry(scene.attrs["dataset"]).classes if item.movable)
    for name in names:
        if name not in scene.classes.names:
            raise UserError(
                f"{scene.path}: no class '{name}'{did_you_mean(name, scene.classes.names)} to leave out; "
                f"its classes are {', '.join(scene.classes.names)}"
            )
    return {**config.model_dump(mode="json"), "no_accumulate": sorted(names), "schema_version": SCHEMA_VERSION}


def is_accumulated(scene: Scene, config: AccumulateConfig, overwrite: bool = False) -> bool:
    """True where the scene holds accumulated labels of this very configuration.

    Raises:
        UserError: it holds those of another configuration, or damaged ones, that may not be overwritten.
    """
    wanted = identity(scene, config)
    if not has_accumulated(scene.path):
        return False
    try:
        there = SceneAccumulated(scene.path, scene.classes).attrs
    except UserError:
        if overwrite:
            return False
        raise
    if there["config_hash"] == config_hash(wanted):
        return True
    if overwrite:
        return False
    raise UserError(
        f"{scene.path / GROUP}: made with another configuration ({difference(there['config'], wanted)}); "
        "repeat with the old values, or replace these labels with --overwrite"
    )


def make_accumulated(store: Path, config: AccumulateConfig, overwrite: bool = False) -> SceneAccumulated:
    """Accumulate the labels of one finished scene; those of the same configuration are kept as they are.

    Raises:
        UserError: no finished scene, no labelled view, labels of another configuration, or an unreadable file.
        DiskFull: no space left.
    """
    scene = open_scene(store)
    if not len(scene) or not scene.view_table["has_label"].any():
        raise UserError(f"{store}: no view has a sparse label, so there is none to carry")
    if not is_accumulated(scene, config, overwrite):
        chosen = identity(scene, config)
        movable = [scene.classes.names.index(name) for name in chosen["no_accumulate"]]
        images, points, counts = _carry(scene, config, movable)
        verdict = judge(counts, scene.classes.names, config.min_precision, config.min_class_precision)
        with AccumulatedWriter(store) as writer:
            for view in range(len(scene)):
                writer.append(_final_image(scene, view, images[view], verdict))
            labels = _final_points(scene, points, verdict)
            writer.publish(labels, chosen, {"usable": verdict.usable, "report": verdict.report}, overwrite)
    done = SceneAccumulated(store, scene.classes)
    is_accumulated(scene, config)  # another process may have been first: its labels are the same, or this raises
    return done


def _carry(scene: Scene, config: AccumulateConfig, movable: list[int]) -> tuple[list[bytes], U8, Counts]:
    """PNGs of carried labels per view, carried labels per point, and their counts, before any class is withheld."""
    images, counts = [b""] * len(scene), Counts()
    points, offset = np.full(scene.n_points, IGNORE, np.uint8), scene.view_table["point_offset"]
    with_truth = scene.has_truth and scene.attrs["split"] == "train"
    for carried in carry_labels(scene, config, movable):
        view = scene.view(carried.index)
        image = carried_image(scene, carried, view.pixel)
        images[carried.index] = encode_train_ids(image, scene.classes)
        points[offset[carried.index] : offset[carried.index + 1]] = carried.label
        counts.add_image(carried.own, image, view.read_truth() if with_truth else None)
        counts.add_points(view.label, carried.label, carried.contested)
        step()
    return images, points, counts


def carried_image(scene: Scene, carried: CarriedView, pixel: Any) -> U8:
    """Carried labels as train ids (H, W): every point's at its own pixel, or, on a coarser grid, around it.

    A scene with excluded masks gets them at the points' own pixels only: those are known not to be excluded.
    """
    height, width = (int(n) for n in scene.view_table["image_size"][carried.index])
    if scene.attrs["config"].get("dataset", {}).get("exclude_masks"):
        return paint(carried.label, pixel, (height, width))
    maps, cell = carried.maps, carried.points.cell
    return paint_cells(carried.label, cell, maps.depth.shape, maps.to_image, (height, width))


def _final_image(scene: Scene, view: int, png: bytes, verdict: Verdict) -> bytes:
    """The label image to store: own labels, and the carried ones of classes that are not withheld; empty for none."""
    from rw3d_common.images import LabelFile

    height, width = (int(n) for n in scene.view_table["image_size"][view])
    carried = LabelFile(scene.folder / GROUP, "train_ids", scene.classes).read((height, width), png)
    image = with_own(scene.read_label(view), _without(carried, verdict))
    return encode_train_ids(image, scene.classes) if (image != IGNORE).any() else b""


def _final_points(scene: Scene, carried: U8, verdict: Verdict) -> U8:
    return with_own(scene.read("label"), _without(carried, verdict))


def _without(label: U8, verdict: Verdict) -> U8:
    """Labels of any shape with those of withheld classes at 255."""
    keep = np.arange(256, dtype=np.uint8)
    keep[list(verdict.withheld)] = IGNORE
    return keep.take(label)
