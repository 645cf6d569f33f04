"""`rw3d-prep make-labels`: sparse labels of every frame with a dense one, into a folder that `--labels` takes.

Per frame one palette PNG of train ids, and for points and scribbles a JSON of their geometry; `labels.json` comes last.
A frame's labels depend on its dense label, the settings, the seed and its key alone: workers and restarts do not
change a byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from rw3d_common.errors import UserError, disk_errors
from rw3d_common.images import LabelFile, encode_train_ids, image_size
from rw3d_common.labels import U8, ClassMap
from rw3d_common.log import progress
from rw3d_prep.frames import Frame
from rw3d_prep.label_folders import image_of
from rw3d_prep.sparse_labels.coarse import make_coarse
from rw3d_prep.sparse_labels.counts import Counts
from rw3d_prep.sparse_labels.dense import DenseFrame
from rw3d_prep.sparse_labels.folder import as_json, begin, claim, finish, write_whole
from rw3d_prep.sparse_labels.instances import read_instances
from rw3d_prep.sparse_labels.points import draw_points, make_points
from rw3d_prep.sparse_labels.scribbles import Curve, Preset, draw_scribbles, make_curves
from rw3d_prep.sparse_labels.settings import CoarseSettings, PointSettings, ScribbleSettings, Settings
from rw3d_prep.workers import run_in_processes, step

CHUNK = 16  # frames per call of a worker: few enough to share out evenly and to hold few results in memory


def make_labels(
    frames: Sequence[DenseFrame], dataset: str, settings: Settings, out: Path, seed: int, workers: int
) -> dict[Path, Counts]:
    """Make the labels that are not there yet; returns what each folder holds. Safe to kill and to call again.

    Raises:
        UserError: `out` holds labels made otherwise, or a dense label cannot be used.
        DiskFull: no space left.
    """
    classes = frames[0][1].classes
    folders = {
        folder: _identity(dataset, classes, settings, seed, how) for folder, how in settings.folders(out).items()
    }
    with disk_errors(out):
        if isinstance(settings, ScribbleSettings):
            curves = _identity(dataset, classes, settings, seed, asdict(settings.preset))
            claim(out / "curves.json", curves)
        for folder, identity in folders.items():
            begin(folder, identity, [frame for frame, _ in frames])
        counts = _run(frames, settings, out, seed, workers)
        for folder, identity in folders.items():
            finish(folder, {**identity, **counts[folder].to_json(classes)})
    return counts


def _identity(dataset: str, classes: ClassMap, settings: Settings, seed: int, how: dict[str, Any]) -> dict[str, Any]:
    """All that decides the bytes of a folder of labels, beside the dense labels themselves; as JSON gives it back."""
    about = {"dataset": dataset, "kind": settings.kind, "class_map_hash": classes.hash, "seed": seed, "settings": how}
    return json.loads(json.dumps(about))


def _run(frames: Sequence[DenseFrame], settings: Settings, out: Path, seed: int, workers: int) -> dict[Path, Counts]:
    chunks = [(frames[start : start + CHUNK], settings, out, seed) for start in range(0, len(frames), CHUNK)]
    with (
        progress(f"make-labels {settings.kind}", len(frames), "images") as advance,
        closing(run_in_processes(label_frames, chunks, min(workers, len(chunks)), advance)) as finished,
    ):
        return _total(future.result() for _, future in finished)


def label_frames(frames: Sequence[DenseFrame], settings: Settings, out: Path, seed: int) -> dict[Path, Counts]:
    """Make the labels of some frames; returns what they add to each folder."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)  # processes share the cores
    try:
        return _total(label_frame(frame, dense, settings, out, seed) for frame, dense in frames)
    finally:
        cv2.setNumThreads(before)


def _total(parts: Iterable[dict[Path, Counts]]) -> dict[Path, Counts]:
    total: dict[Path, Counts] = {}
    for part in parts:
        for folder, counts in part.items():
            total[folder] = total[folder] + counts if folder in total else counts
    return total


def label_frame(frame: Frame, file: LabelFile, settings: Settings, out: Path, seed: int) -> dict[Path, Counts]:
    """Make the labels of one frame, unless they are there, and count what then lies in each folder.

    Raises:
        UserError: the dense label, its instances, or a label that is there already cannot be used.
    """
    size = image_size(file.path)
    dense = file.read(size)
    places = {folder: image_of(folder, frame) for folder in settings.folders(out)}
    if not all(path.is_file() for path in places.values()):
        for path, label in zip(places.values(), _labels(frame, file, dense, settings, out, seed), strict=True):
            if not path.is_file():
                write_whole(path, encode_train_ids(label, file.classes))
    step()
    return {
        folder: Counts.of(LabelFile(path, "train_ids", file.classes).read(size), dense)
        for folder, path in places.items()
    }


def _labels(frame: Frame, file: LabelFile, dense: U8, settings: Settings, out: Path, seed: int) -> Iterator[U8]:
    """Sparse labels (H, W) of one frame, one per folder of the settings; writes their geometry first."""
    rng = keyed_generator(seed, frame)
    match settings:
        case PointSettings(per_instance, scale):
            instances = read_instances(file.path, (dense.shape[0], dense.shape[1])) if per_instance else None
            points = make_points(dense, rng, scale, instances)
            named = [{"class": file.classes.names[point.train_id], **asdict(point)} for point in points]
            write_whole(_geometry(out, "points", frame), as_json({"size": dense.shape, "points": named}))
            yield draw_points(points, dense.shape)
        case ScribbleSettings(preset, lengths):
            curves = _stored_curves(_geometry(out, "curves", frame), file, dense, preset, rng)
            for length in lengths:
                yield draw_scribbles(curves, dense, length, preset.thickness)
        case CoarseSettings(margin):
            yield make_coarse(dense, margin)


def _stored_curves(path: Path, file: LabelFile, dense: U8, preset: Preset, rng: np.random.Generator) -> list[Curve]:
    """The curves in `path`; where it is not there, they are made and written."""
    if not path.is_file():
        curves = make_curves(dense, preset, rng)
        named = [
            {"class": file.classes.names[curve.train_id], "train_id": curve.train_id, "points": curve.points.tolist()}
            for curve in curves
        ]
        write_whole(path, as_json({"size": dense.shape, "curves": named}))
    return read_curves(path)


def read_curves(path: Path) -> list[Curve]:
    """The whole curves of one frame, as `make-labels scribbles` stores them in `curves/`.

    Raises:
        UserError: no such file, or a damaged one.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))["curves"]
        return [Curve(int(one["train_id"]), np.array(one["points"], np.float64).reshape(-1, 2)) for one in stored]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: holds no curves ({error!r}); delete it and make the scribbles again") from None


def keyed_generator(seed: int, frame: Frame) -> np.random.Generator:
    """Random numbers that depend on the seed and the frame's key alone; Philox keyed by BLAKE2b, as in `sampling`."""
    key = json.dumps([seed, frame.split, frame.sequence, frame.id, frame.camera]).encode()
    digest = hashlib.blake2b(key, digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def _geometry(out: Path, kind: str, frame: Frame) -> Path:
    return image_of(out / kind, frame).with_suffix(".json")
