"""`rw3d-prep verify`: re-read a store, on a disk or on object storage, and compare everything with what was promised."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from rw3d_common.cameras import NO_PIXEL, is_rigid
from rw3d_common.collection import store_paths
from rw3d_common.errors import UserError
from rw3d_common.labels import IGNORE
from rw3d_common.remote import RemotePath, StorePath, Unreachable, as_store_path
from rw3d_common.scene import Scene, open_scene
from rw3d_common.scene_accumulated import GROUP as ACCUMULATED
from rw3d_common.scene_accumulated import POINT_ARRAY, has_accumulated
from rw3d_common.scene_sample import GROUP, has_samples
from rw3d_common.schema import FILE_KINDS, FILE_OFFSETS, VIEWS, ArraySpec, point_arrays
from rw3d_prep import verify_accumulated, verify_remote, verify_samples
from rw3d_prep.publish import MANIFEST
from rw3d_prep.write import file_table


def verify(path: StorePath, advance: Callable[..., None] = lambda amount=1, note="": None) -> list[str]:
    """Every fault of the store or folder of stores at `path`, one sentence each; empty when all is well.

    Raises:
        UserError: nothing to verify at this path.
        Unreachable: object storage does not answer.
    """
    path = as_store_path(path)
    stores = store_paths(path)
    unfinished = verify_remote.unfinished_uploads(path) if isinstance(path, RemotePath) and path not in stores else []
    if not unfinished and (not stores or not (path.is_dir() or path.exists())):
        raise UserError(f"{path}: no scene store here; make some with `rw3d-prep reconstruct --out {path}`")
    faults = [*unfinished, *_manifest_faults(path, stores)]
    for store in stores:
        faults += [f"{store}: {fault}" for fault in verify_store(store)]
        advance(1, store.name)
    return faults


def verify_store(path: StorePath) -> list[str]:
    """Every fault of one store: files, array declarations, then values (only when all files are intact).

    Raises:
        Unreachable: object storage does not answer, which says nothing of the store.
    """
    try:
        scene = open_scene(path)
    except Unreachable:
        raise
    except UserError as error:
        return [str(error)]
    unreadable = verify_samples.record_faults(scene)
    sampled = has_samples(path) and not unreadable
    lost = verify_accumulated.record_faults(scene)
    accumulated = has_accumulated(path) and not lost
    faults = [*_file_faults(scene, sampled, accumulated), *_schema_faults(scene), *unreadable, *lost]
    if isinstance(scene.path, RemotePath):
        faults += verify_remote.record_faults(scene.path)
    if sampled:
        faults += verify_samples.declaration_faults(scene)
    if faults:
        return faults
    try:
        return [
            *_count_faults(scene),
            *_view_faults(scene),
            *_embedded_faults(scene),
            *(verify_accumulated.value_faults(scene) if accumulated else []),
            *(verify_samples.value_faults(scene) if sampled else []),
        ]
    except Unreachable:
        raise
    except UserError as error:
        return [str(error)]


def _manifest_faults(path: StorePath, stores: list[StorePath]) -> list[str]:
    """Differences between a collection's manifest.json and what lies there."""
    manifest = path / MANIFEST
    if not manifest.is_file():
        return []
    try:
        promised = json.loads(manifest.read_bytes())["scenes"]
    except (ValueError, KeyError, TypeError) as error:
        return [f"{manifest}: cannot be read ({error}); `rw3d-prep reconstruct` writes it anew"]
    there = {_below(store, path) for store in stores}
    faults = [f"{path / name}: listed in {MANIFEST} but not there" for name in sorted(promised.keys() - there)]
    faults += [f"{path / name}: not listed in {MANIFEST}" for name in sorted(there - promised.keys())]
    for name in sorted(there & promised.keys()):
        root = path / name / "zarr.json"
        if (
            not root.is_file()
            or hashlib.sha256(root.read_bytes()).hexdigest() != promised[name]["files"]["zarr.json"]["sha256"]
        ):
            faults.append(f"{root}: differs from the SHA-256 in {MANIFEST}")
    return faults


def _below(store: StorePath, folder: StorePath) -> str:
    """The name of a store in a collection."""
    return str(store)[len(str(folder)) :].strip("/")


def _file_faults(scene: Scene, sampled: bool, accumulated: bool) -> list[str]:
    """Files that are missing, altered or foreign; those of groups added later count where their record can be read."""
    place = scene.path
    promised = dict(scene.attrs["complete"]["files"])
    there = verify_remote.object_table(place) if isinstance(place, RemotePath) else file_table(place)
    added = {
        GROUP: verify_samples.sample_files(scene) if sampled else None,
        ACCUMULATED: verify_accumulated.accumulated_files(scene) if accumulated else None,
    }
    for group, files in added.items():
        if files is not None:
            promised.update(files)
            del there[f"{group}/zarr.json"]  # holds that record
        else:
            there = {name: facts for name, facts in there.items() if not name.startswith(f"{group}/")}
    if not accumulated:
        there = {name: facts for name, facts in there.items() if not name.startswith(f"points/{POINT_ARRAY}/")}
    faults = [f"{name} is missing" for name in sorted(promised.keys() - there.keys())]
    faults += [f"{name} does not belong to the store" for name in sorted(there.keys() - promised.keys())]
    for name in sorted(promised.keys() & there.keys()):
        if promised[name] != there[name]:
            sizes = f"{there[name]['size']:,} bytes, {promised[name]['size']:,} when written"
            faults.append(f"{name} was altered ({sizes}; SHA-256 differs)")
    return faults


def _schema_faults(scene: Scene) -> list[str]:
    views, points = len(scene), scene.n_points
    faults = []
    for group, specs, rows in (("points", point_arrays(scene.has_truth), points), ("views", VIEWS, views)):
        for spec in specs:
            extra = int(spec.name == "point_offset")
            if not spec.lacking(group, scene.attrs["complete"]["files"]):
                faults += _declaration_faults(scene, group, spec, rows + extra)
    if scene.files is not None:
        for spec in FILE_OFFSETS:
            faults += _declaration_faults(scene, "files", spec, views + 1)
    return faults


def _declaration_faults(scene: Scene, group: str, spec: ArraySpec, rows: int) -> list[str]:
    container = getattr(scene, group)
    if spec.name not in container:
        return [f"array {group}/{spec.name} is missing"]
    array: Any = container[spec.name]
    expected = ((rows, *spec.row), np.dtype(spec.dtype))
    if (array.shape, array.dtype) != expected:
        return [f"{group}/{spec.name} is {array.shape} {array.dtype}, expected {expected[0]} {expected[1]}"]
    return []


def _count_faults(scene: Scene) -> list[str]:
    """Counts per class against the completion record, and ids outside the class map."""
    record = scene.attrs["complete"]
    faults = []
    for name, promised in record["class_points"].items():
        counts = np.bincount(scene.read(name), minlength=256)
        there = {str(i): int(counts[i]) for i in np.flatnonzero(counts)}
        if there != promised:
            faults.append(f"points/{name} holds other class counts than when it was written")
        if counts[len(scene.classes) : IGNORE].any():
            faults.append(f"points/{name} holds train ids that no class has")
    if record["labelled_points"] != sum(n for i, n in record["class_points"]["label"].items() if int(i) != IGNORE):
        faults.append("labelled_points contradicts class_points in the completion record")
    return faults


def _embedded_faults(scene: Scene) -> Iterator[str]:
    """Offsets of embedded files against the bytes and counts that were written."""
    promised = scene.attrs["complete"].get("embedded")
    if promised is None or scene.files is None:
        return
    for kind, spec in zip(FILE_KINDS, FILE_OFFSETS, strict=True):
        files: Any = scene.files
        offset = files[spec.name][:]
        if offset[0] != 0 or offset[-1] != files[kind].shape[0] or (np.diff(offset) < 0).any():
            yield f"files/{spec.name} does not lead from 0 to the number of bytes in rising order"
        elif np.count_nonzero(np.diff(offset)) != promised[kind]:
            yield f"files/ holds another number of {kind} files than when it was written"


def _view_faults(scene: Scene) -> Iterator[str]:
    table = scene.view_table
    offsets = table["point_offset"]
    if not len(scene) and offsets[0] == scene.n_points:
        yield from _cloud_faults(scene)
        return
    if offsets[0] != 0 or offsets[-1] != scene.n_points or (np.diff(offsets) < 0).any():
        yield "views/point_offset does not lead from 0 to the number of points in rising order"
        return
    for index in range(len(scene)):
        yield from (
            f"view {index} (frame {table['frame_id'][index]}): {fault}" for fault in _one_view_faults(scene, index)
        )


def _cloud_faults(scene: Scene) -> Iterator[str]:
    """Faults of points that belong to no view."""
    if not np.isfinite(scene.read("position")).all():
        yield "points that are not finite"
    if (scene.read("confidence") != 1).any():
        yield "confidences other than 1 although the points were measured"
    if (scene.read("pixel") != NO_PIXEL).any():
        yield "source pixels although the points belong to no view"
    if (scene.read("label") != IGNORE).any():
        yield "sparse labels although the points belong to no view"


def _one_view_faults(scene: Scene, index: int) -> Iterator[str]:
    view, threshold = scene.view(index), scene.view_table["confidence_threshold"][index]
    if not is_rigid(view.camera_to_world):
        yield "camera_to_world is not a rigid transform"
    if not np.isfinite(view.position).all():
        yield "points that are not finite"
    if np.isnan(view.confidence).any() or (view.confidence < threshold).any():
        yield "confidences that are NaN or below the view's threshold"
    if (view.pixel >= view.image_size[0] * view.image_size[1]).any():
        yield "source pixels outside the image"
    if not view.has_label and (view.label != IGNORE).any():
        yield "sparse labels although the view has no label image"
    if not scene.classes.in_3d[view.label].all():
        yield "points of a class without surface (in_3d: false)"
