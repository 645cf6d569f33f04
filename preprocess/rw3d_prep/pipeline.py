"""`rw3d-prep reconstruct`: frames → batches → geometry → fused points → scene stores."""

from __future__ import annotations

import json
import os
import platform
import traceback
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from rw3d_common.collection import store_paths
from rw3d_common.config import difference
from rw3d_common.errors import DiskFull, Exit, UserError, disk_errors
from rw3d_common.images import ImageSource
from rw3d_common.labels import IGNORE
from rw3d_common.log import Metrics, log, progress
from rw3d_common.manifest import dataset_entry
from rw3d_common.scene import open_scene
from rw3d_common.schema import STORE_SUFFIX
from rw3d_prep.batching import Batch, make_batches
from rw3d_prep.config import PrepConfig, save_config
from rw3d_prep.datasets import read_frames
from rw3d_prep.frames import Frame
from rw3d_prep.fuse import FusedView, fuse_view
from rw3d_prep.health import view_health
from rw3d_prep.label_folders import label_encoding
from rw3d_prep.publish import MANIFEST, write_manifest
from rw3d_prep.reconstruct import make_backend, usable_frames
from rw3d_prep.reconstruct.base import ViewGeometry
from rw3d_prep.sources import read_sources
from rw3d_prep.workers import run_in_processes, step
from rw3d_prep.write import SceneWriter, sweep_orphans

backend_of = lru_cache(maxsize=1)(make_backend)  # one model per process, however many batches


@dataclass
class Outcome:
    """What a run did: scenes written and skipped now, and a sentence per batch that failed."""

    written: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    bad_input_only: bool = True

    def record(self, scene: str, error: Exception, failures: Path, **more: Any) -> None:
        """Note that a scene failed, here, in the log, and as a line of `failures`; bugs with their traceback."""
        user_error = isinstance(error, UserError)
        self.failed[scene] = str(error) if user_error else f"{type(error).__name__}: {error}"
        self.bad_input_only &= user_error
        log.error(f"{scene} failed: {self.failed[scene]}")
        trace = None if user_error else "".join(traceback.format_exception(error))
        line = {"scene": scene, "error": self.failed[scene], **more, "traceback": trace}
        with failures.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def exit_code(self) -> Exit:
        """0 when everything is there, 2 when bad input left nothing at all, 3 when the rest went on."""
        if not self.failed:
            return Exit.COMPLETE
        nothing = not self.written and not self.skipped
        return Exit.BAD_INPUT if nothing and self.bad_input_only else Exit.PARTIAL


def find_batches(config: PrepConfig, root: Path) -> tuple[list[Batch], list[str]]:
    """The batches of a configuration, and one sentence for each kind of frame that was left out.

    Raises:
        UserError: the data cannot be read, no frame is usable, or the backend cannot run here.
    """
    found = read_frames(root, config.dataset)
    frames, dropped = usable_frames(found.frames, backend_of(config.backend).needs)
    if not frames:
        raise UserError(f"{root}: {'; '.join(dropped)}; choose another --backend")
    return make_batches(frames, config.batching), [*found.notes, *dropped]


def reconstruct(config: PrepConfig, root: Path, out: Path, workers: int) -> Outcome:
    """Make every scene that is not there yet; safe to kill and to call again.

    Raises:
        UserError: bad input found before work starts, scenes of another configuration in `out`, or a full disk.
    """
    batches, notes = find_batches(config, root)
    for note in notes:
        log.warning(note)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        sweep_orphans(out)
        refuse_other_config(config, out)
        save_config(config, out / "config.yaml")
    outcome = Outcome(skipped=[batch.name for batch in batches if store_path(out, batch).is_dir()])
    todo = [batch for batch in batches if batch.name not in set(outcome.skipped)]
    if outcome.skipped:
        log.info(f"{len(outcome.skipped)} of {len(batches)} scenes are finished and kept")
    if todo:
        backend_of(config.backend).require()
    with disk_errors(out):
        if todo:
            (out / MANIFEST).unlink(missing_ok=True)  # a run that dies must not leave one that lacks its scenes
        try:
            _run(todo, config, root, out, workers, outcome)
        finally:
            sweep_orphans(out)
        write_manifest(out)
    return outcome


def _run(todo: Sequence[Batch], config: PrepConfig, root: Path, out: Path, workers: int, outcome: Outcome) -> None:
    """Work through the batches; a failed one is recorded and the others go on."""
    failures = out / "failures.jsonl"
    failures.unlink(missing_ok=True)
    metrics = Metrics(out / "metrics.jsonl")
    views = sum(len(batch.frames) for batch in todo)
    arguments = [(batch, config, root, out) for batch in todo]
    with (
        progress("reconstruct", views, "views") as advance,
        closing(run_in_processes(reconstruct_batch, arguments, min(workers, len(todo)), advance)) as finished,
    ):
        for index, future in finished:
            batch = todo[index]
            try:
                counts = future.result()
            except DiskFull:
                raise
            except Exception as error:  # noqa: BLE001 - one batch must not take the others with it; nothing is hidden
                outcome.record(batch.name, error, failures, frames=[str(frame) for frame in batch.frames])
            else:
                outcome.written.append(batch.name)
                metrics.write(scene=batch.name, **counts)


def store_path(out: Path, batch: Batch) -> Path:
    """Where the scene of a batch is stored."""
    return out / f"{batch.name}{STORE_SUFFIX}"


def refuse_other_config(config: PrepConfig, out: Path) -> None:
    """Raise UserError when `out` holds a scene that another configuration made."""
    for store in store_paths(out):
        attrs = open_scene(store).attrs
        if attrs["config_hash"] != config.hash():
            changed = difference(attrs["config"], config.identity())
            raise UserError(
                f"{store}: made with another configuration ({changed}); choose another --out, "
                "repeat with the old values, or delete the old scenes"
            )


def reconstruct_batch(batch: Batch, config: PrepConfig, root: Path, out: Path) -> dict[str, Any]:
    """Make one scene: a pure function of its arguments and the files they name. Returns its counts.

    Raises:
        UserError: an input file that cannot be used; DiskFull when the disk is full.
    """
    backend = backend_of(config.backend)
    entry = dataset_entry(config.dataset.name)
    world_offset = _world_offset(batch, backend.needs)
    rows = _ViewRows(root)
    with_truth = any(frame.truth for frame in batch.frames)
    with SceneWriter(store_path(out, batch), with_truth, config.embed_images or _any_packed(batch)) as writer:
        previous = None
        for frame, geometry in zip(batch.frames, backend.reconstruct(batch.frames, world_offset), strict=True):
            fused = _fuse(frame, geometry, config, with_truth)
            writer.append(fused, _files_to_store(frame, config.embed_images))
            rows.add(frame, geometry, fused, previous)
            previous = geometry
            step()
        identity = config.identity()
        attributes = {
            "dataset": config.dataset.name,
            "split": batch.split,
            "sequence": batch.sequence,
            "root": str(rows.root),
            "backend": backend.identity(),
            "config": identity,
            "config_hash": config.hash(),
            "classes": entry.class_map().to_json(),
            "class_map_hash": entry.class_map().hash,
            "ignored_ids": entry.ignored_ids,
            "ignored_in_truth": entry.ignored_in_truth,
            "label_encoding": label_encoding(config.dataset.labels, entry),
            "truth_encoding": entry.truth_encoding,
            "world_offset": world_offset.tolist(),
            "axes": "OpenCV camera axes: x right, y down, z forward; metres",
            "tools": tool_versions(),
        }
        writer.publish(*rows.tables(), attributes)
        return {"views": len(batch.frames), "points": writer.offsets[-1]}


def _world_offset(batch: Batch, needs: Sequence[str]) -> np.ndarray:
    """The first camera's position, for backends that work in the dataset's world; it keeps float32 exact to microns."""
    pose = batch.frames[0].camera_to_world
    return np.zeros(3) if "camera_to_world" not in needs or pose is None else pose[:3, 3].copy()


def _fuse(frame: Frame, geometry: ViewGeometry, config: PrepConfig, with_truth: bool) -> FusedView:
    entry = dataset_entry(config.dataset.name)
    size = geometry.pixel_map.image_size
    sources = read_sources(frame, entry, label_encoding(config.dataset.labels, entry), size)
    truth = np.full(size, IGNORE, np.uint8) if sources.truth is None and with_truth else sources.truth
    percentile = config.fuse.confidence_percentile
    return fuse_view(geometry, sources.image, sources.label, truth, entry.class_map(), percentile, sources.excluded)


def _files_to_store(frame: Frame, embed: bool) -> dict[str, ImageSource | None]:
    """What a scene stores of a frame's images: all with `embed`, else those that are no files of their own."""
    files: dict[str, ImageSource | None] = {"image": frame.image, "label": frame.label, "truth": frame.truth}
    return {kind: None if isinstance(source, Path) and not embed else source for kind, source in files.items()}


def _any_packed(batch: Batch) -> bool:
    return any(any(_files_to_store(frame, embed=False).values()) for frame in batch.frames)


class _ViewRows:
    """Collects the rows of `views/` as the views stream past."""

    def __init__(self, root: Path) -> None:
        self.root = (root if root.is_dir() else root.parent).resolve()  # a video's frames lie beside it
        self.rows: list[dict[str, Any]] = []
        self.cameras: list[str] = []
        self.images: list[str] = []
        self.labels: list[str | None] = []
        self.truths: list[str | None] = []

    def _relative(self, source: ImageSource) -> str:
        if isinstance(source, Path):
            return os.path.relpath(source.resolve(), self.root)
        return f"{os.path.relpath(source.path.resolve(), self.root)}#{source.member}"

    def add(self, frame: Frame, geometry: ViewGeometry, fused: FusedView, previous: ViewGeometry | None) -> None:
        if frame.camera not in self.cameras:
            self.cameras.append(frame.camera)
        self.images.append(self._relative(frame.image))
        self.labels.append(self._relative(frame.label) if frame.label else None)
        self.truths.append(self._relative(frame.truth) if frame.truth else None)
        pixel_map = geometry.pixel_map
        health = view_health(geometry, fused.position, previous)
        self.rows.append(
            {
                "frame_id": frame.id,
                "camera": self.cameras.index(frame.camera),
                "image_size": pixel_map.image_size,
                "grid_size": pixel_map.grid_size,
                "pixel_map": (
                    pixel_map.column_scale,
                    pixel_map.column_offset,
                    pixel_map.row_scale,
                    pixel_map.row_offset,
                ),
                "intrinsics": geometry.intrinsics,
                "camera_to_world": geometry.camera_to_world,
                "has_label": frame.label is not None,
                "confidence_threshold": fused.confidence_threshold,
                "covered": pixel_map.covered_fraction(),
                "finite_share": fused.finite_share,
                **asdict(health),
            }
        )

    def tables(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The columns of `views/`, and the strings that go into its attributes."""
        columns = {key: np.stack([np.asarray(row[key]) for row in self.rows]) for key in self.rows[0]}
        strings = {"cameras": self.cameras, "images": self.images, "labels": self.labels, "truths": self.truths}
        return columns, strings


def tool_versions() -> dict[str, str]:
    """Versions of what made a scene."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("rw3d", "numpy", "zarr", "numcodecs")},
    }
