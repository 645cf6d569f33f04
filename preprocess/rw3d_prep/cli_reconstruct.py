"""The commands `rw3d-prep reconstruct` and `plan`, and the options that commands share. Heavy packages load inside."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rw3d_common.log import console, log
from rw3d_common.manifest import default_root

if TYPE_CHECKING:
    from rw3d_prep.config import PrepConfig

CORES = os.cpu_count() or 1


class BackendKind(StrEnum):
    mapanything = "mapanything"
    stereo = "stereo"
    sensor = "sensor"


Dataset = Annotated[
    str | None,
    typer.Option(help="A dataset of data_manifest.yaml (`rw3d-prep datasets`); its recipe is pipelines/DATASET.yaml."),
]
Root = Annotated[Path | None, typer.Option(help="Where its files lie. Default: $RW3D_DATA/DATASET, else data/DATASET.")]
Out = Annotated[Path | None, typer.Option(help="Where scenes go. Default: stores/DATASET.")]
Backend = Annotated[
    BackendKind | None,
    typer.Option(
        help="What makes the geometry: mapanything (GPU and weights), stereo (rectified pairs, CPU), sensor (depth or LiDAR)."
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(min=1, help="Most frames per scene; 1 reconstructs each image alone. Default: the recipe's, 200."),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="A recipe of your own instead of pipelines/DATASET.yaml.")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one value of the recipe, e.g. --set fuse.confidence_percentile=20. Repeatable.",
    ),
]
MinBatch = Annotated[
    int | None,
    typer.Option(min=1, help="Fewest frames to which a batch is halved where GPU memory runs out. Default: 10."),
]
Workers = Annotated[
    int,
    typer.Option(min=1, help="Scenes made at a time on this machine's cores. The bytes do not depend on it."),
]
SceneWorkers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes: each makes scenes of its own (default 1), or, beside a GPU, finishes what it has computed "
        "(default: one per core, at most 8). The bytes do not depend on it.",
    ),
]
Model = Annotated[str | None, typer.Option(help="MapAnything's hub id, e.g. facebook/map-anything-apache.")]
Revision = Annotated[str | None, typer.Option(help="Commit hash of the weights; ids get repointed, hashes do not.")]
Weights = Annotated[
    Path | None, typer.Option(help="Folder with config.json and model.safetensors, for machines without internet.")
]
Resize = Annotated[
    str | None,
    typer.Option(
        help="MapAnything's input: fixed_mapping (crops to a fixed aspect ratio, the paper's) or longest_side (keeps nearly all)."
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        help="Sparse labels: a folder by `rw3d-prep make-labels`, or the name of the dataset's own label folder."
    ),
]
Stride = Annotated[int | None, typer.Option(min=1, help="Every n-th frame, and all with a sparse label.")]
ExcludeMask = Annotated[
    Path | None, typer.Option(help="A folder of 8-bit masks; their non-zero pixels never become points.")
]


def reconstruct(
    dataset: Dataset = None,
    root: Root = None,
    out: Out = None,
    backend: Backend = None,
    batch_size: BatchSize = None,
    min_batch: MinBatch = None,
    config: ConfigFile = None,
    assignments: Set = None,
    labels: Labels = None,
    stride: Stride = None,
    exclude_mask: ExcludeMask = None,
    workers: SceneWorkers = None,
    model: Model = None,
    revision: Revision = None,
    weights: Weights = None,
    resize: Resize = None,
    embed_images: Annotated[
        bool, typer.Option("--embed-images", help="Store image and label files too: the scenes then train anywhere.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again only the batches that failures.jsonl lists.")
    ] = False,
) -> None:
    """Reconstruct every batch of frames into one scene store.

    Finished scenes are kept: after a crash or Ctrl-C, the same command goes on where it stopped. Exit codes: 0 all
    done, 2 bad input, 3 some batches failed (failures.jsonl says why), 75 stopped by a signal.
    """
    from rw3d_prep.pipeline import reconstruct as run

    named = {
        **_named(labels, stride, exclude_mask, resize),
        "backend.model": model,
        "backend.revision": revision,
        "backend.weights": weights,
        "batching.min_size": min_batch,
        "embed_images": embed_images or None,
    }
    settings = _settings(dataset, config, backend, batch_size, named, assignments)
    source, target = _folders(settings.dataset.name, root, out)
    log.info(
        f"reconstruct {settings.dataset.name} ({', '.join(settings.dataset.splits)}) in {source} with {settings.backend.kind}, "
        f"up to {settings.batching.size} frames per scene, into {target}"
    )
    outcome = run(settings, source, target, workers or _usual_workers(settings), retry_failed)
    _show_scenes(target)
    if outcome.failed:
        log.error(
            f"{len(outcome.failed)} of {len(outcome.failed) + len(outcome.written) + len(outcome.skipped)} batches failed: {target / 'failures.jsonl'}; --retry-failed tries only these again"
        )
    else:
        log.info(f"next: rw3d-prep inspect {target}, or notebooks/scene_tour.ipynb")
    raise typer.Exit(outcome.exit_code())


def plan(
    dataset: Dataset = None,
    root: Root = None,
    out: Out = None,
    backend: Backend = None,
    batch_size: BatchSize = None,
    config: ConfigFile = None,
    assignments: Set = None,
    labels: Labels = None,
    stride: Stride = None,
    exclude_mask: ExcludeMask = None,
    workers: SceneWorkers = None,
    resize: Resize = None,
) -> None:
    """Say what `reconstruct` with the same options will cost: images, batches, points, memory, disk and hours."""
    from rw3d_prep.pipeline import find_batches
    from rw3d_prep.plan import make_plan
    from rw3d_prep.plan_table import plan_table

    named = _named(labels, stride, exclude_mask, resize)
    settings = _settings(dataset, config, backend, batch_size, named, assignments)
    source, target = _folders(settings.dataset.name, root, out)
    batches, notes = find_batches(settings, source)
    for note in notes:
        log.warning(note)
    estimate = make_plan(batches, settings, source, workers or _usual_workers(settings))
    console().print(plan_table(estimate, settings, target))


def _named(
    labels: str | None, stride: int | None, exclude_mask: Path | None, resize: str | None
) -> dict[str, str | int | Path | None]:
    """Options by the recipe's name of what they change."""
    return {
        "dataset.labels": labels,
        "dataset.stride": stride,
        "dataset.exclude_masks": exclude_mask,
        "backend.resize": resize,
    }


def _settings(
    dataset: str | None,
    config: Path | None,
    backend: BackendKind | None,
    batch_size: int | None,
    named: Mapping[str, str | int | Path | None],
    assignments: list[str] | None,
) -> PrepConfig:
    from rw3d_prep.config import load_config

    given = [f"{key}={json.dumps(value, default=str)}" for key, value in named.items() if value is not None]
    return load_config(dataset, config, backend.value if backend else None, batch_size, [*given, *(assignments or [])])


def _usual_workers(config: PrepConfig) -> int:
    return min(CORES, 8) if config.backend.kind == "mapanything" else 1


def _folders(dataset: str, root: Path | None, out: Path | None) -> tuple[Path, Path]:
    return root or default_root(dataset), out or Path("stores") / dataset


def _show_scenes(out: Path) -> None:
    from rw3d_common.collection import open_collection, store_paths
    from rw3d_prep.report import scenes_table

    if store_paths(out):
        console().print(scenes_table(list(open_collection(out))))
