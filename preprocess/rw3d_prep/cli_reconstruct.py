"""The commands `rw3d-prep reconstruct` and `plan`, and the options that commands share. Heavy packages load inside."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rw3d_common.errors import UserError
from rw3d_common.log import console, log
from rw3d_common.manifest import default_root

if TYPE_CHECKING:
    from rw3d_prep.config import PrepConfig
    from rw3d_prep.outcome import Outcome
    from rw3d_prep.shard import Shard

CORES = os.cpu_count() or 1


class LicencePolicy(StrEnum):
    any = "any"
    commercial = "commercial"


class BackendKind(StrEnum):
    mapanything = "mapanything"
    stereo = "stereo"
    sensor = "sensor"
    images = "images"


Dataset = Annotated[
    str | None,
    typer.Option(help="A dataset of data_manifest.yaml (`rw3d-prep datasets`); its recipe is pipelines/DATASET.yaml."),
]
Root = Annotated[Path | None, typer.Option(help="Where its files lie. Default: $RW3D_DATA/DATASET, else data/DATASET.")]
Out = Annotated[Path | None, typer.Option(help="Where scenes go. Default: stores/DATASET.")]
Backend = Annotated[
    BackendKind | None,
    typer.Option(
        help="What makes the geometry: mapanything (GPU and weights), stereo (rectified pairs, CPU), sensor (depth or "
        "LiDAR), images (none at all: for the 2D methods alone, supervised and ema)."
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
Overlap = Annotated[
    int | None,
    typer.Option(min=0, help="Times that neighbouring scenes share, so that `align` can relate them. Default: 0."),
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
Model = Annotated[
    str | None,
    typer.Option(
        help="Hub id of the weights: facebook/map-anything-apache, facebook/VGGT-1B, yyfz233/Pi3X, … "
        "(docs/mapanything.md lists them and their licences)."
    ),
]
Licence = Annotated[
    LicencePolicy | None,
    typer.Option("--licence-policy", help="commercial: refuse weights without a licence for commercial use."),
]
Use = Annotated[
    str | None,
    typer.Option(
        metavar="intrinsics,poses,depth",
        help="What MapAnything is told beside the pictures; with poses the scenes' world is the dataset's.",
    ),
]
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
EmbedImages = Annotated[
    bool, typer.Option("--embed-images", help="Store image and label files too: the scenes then train anywhere.")
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Try again only the batches that failures.jsonl lists.")
]
RedoUnhealthy = Annotated[
    bool,
    typer.Option(
        "--redo-unhealthy",
        help="Only replace the scenes that `inspect` calls unhealthy by smaller ones, of up to --batch-size frames "
        "(default: half of before), with the configuration in --out.",
    ),
]
Gpus = Annotated[
    str | None,
    typer.Option(help="Several GPUs of this machine, as `nvidia-smi -L` numbers them, e.g. 0,2. Default: the first."),
]
ShardOption = Annotated[
    str | None,
    typer.Option("--shard", help="Make only part i of n, e.g. 3/8: for array jobs that share one --out."),
]
Scheduler = Annotated[
    str | None, typer.Option(help="Address of a running Dask scheduler, whose workers then make the scenes.")
]
SchedulerFile = Annotated[Path | None, typer.Option(help="Its scheduler file instead of its address.")]
Upload = Annotated[
    str | None,
    typer.Option(help="Also upload finished scenes there, while others are made: s3://bucket/stores/NAME."),
]
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
    overlap: Overlap = None,
    config: ConfigFile = None,
    assignments: Set = None,
    labels: Labels = None,
    stride: Stride = None,
    exclude_mask: ExcludeMask = None,
    workers: SceneWorkers = None,
    model: Model = None,
    revision: Revision = None,
    weights: Weights = None,
    licence_policy: Licence = None,
    use: Use = None,
    resize: Resize = None,
    embed_images: EmbedImages = False,
    retry_failed: RetryFailed = False,
    redo_unhealthy: RedoUnhealthy = False,
    gpus: Gpus = None,
    shard: ShardOption = None,
    scheduler: Scheduler = None,
    scheduler_file: SchedulerFile = None,
    upload: Upload = None,
) -> None:
    """Reconstruct every batch of frames into one scene store.

    Finished scenes are kept: after a crash or Ctrl-C, the same command goes on where it stopped. Exit codes: 0 all
    done, 2 bad input, 3 some batches failed or were not uploaded (failures.jsonl says why), 75 stopped by a signal.
    """
    from rw3d_prep.pipeline import reconstruct as run
    from rw3d_prep.upload_run import RunUploads, upload_target

    named = {
        **_named(labels, stride, exclude_mask, resize, overlap),
        **_model_named(model, revision, weights, licence_policy, use),
        "batching.min_size": min_batch,
        "embed_images": embed_images or None,
    }
    part, devices, cluster = _machines(shard, gpus, scheduler, scheduler_file)
    if redo_unhealthy:
        config = config or _written_config(dataset, out, retry_failed, shard, upload)
    settings = _settings(dataset, config, backend, None if redo_unhealthy else batch_size, named, assignments)
    redo_size = (batch_size or max(settings.batching.size // 2, 1)) if redo_unhealthy else None
    source, target = _folders(settings.dataset.name, root, out)
    log.info(
        f"{'redo unhealthy scenes of' if redo_unhealthy else 'reconstruct'} {settings.dataset.name} "
        f"({', '.join(settings.dataset.splits)}) in {source} with {settings.backend.kind}, "
        f"up to {redo_size or settings.batching.size} frames per scene, into {target}"
    )
    processes = workers or _usual_workers(settings)
    failures = part.file(target / "failures.jsonl")
    with RunUploads(target, upload_target(upload) if upload else None) as uploads:
        outcome = run(settings, source, target, processes, retry_failed, redo_size, part, devices, cluster, uploads.add)
        uploads.finish(outcome.there, outcome, failures)
    _tell(outcome, settings, target, failures)
    raise typer.Exit(outcome.exit_code())


def _machines(
    shard: str | None, gpus: str | None, scheduler: str | None, scheduler_file: Path | None
) -> tuple[Shard, tuple[int, ...], str | Path | None]:
    """Which part to make, on which GPUs of this machine, or with which cluster."""
    from rw3d_prep.devices import parse_gpus
    from rw3d_prep.shard import Shard

    given = {"--gpus": gpus, "--scheduler": scheduler, "--scheduler-file": scheduler_file}
    if len(named := [name for name, value in given.items() if value]) > 1:
        raise UserError(f"{' and '.join(named)} name different machines for the same work; give one of them")
    return Shard.parse(shard) if shard else Shard(), parse_gpus(gpus) if gpus else (), scheduler or scheduler_file


def _written_config(
    dataset: str | None, out: Path | None, retry_failed: bool, shard: str | None, upload: str | None
) -> Path | None:
    """The configuration that a redo takes: the one that made the other scenes."""
    if retry_failed:
        raise UserError("--redo-unhealthy and --retry-failed are about different batches; give one after the other")
    if shard:
        raise UserError(
            f"--redo-unhealthy looks at all scenes; give it without --shard {shard}, when all jobs are through"
        )
    if upload:
        raise UserError(
            f"--upload {upload}: --redo-unhealthy removes scenes, which would stay there; delete those from the bucket, "
            "then run `rw3d-prep upload`"
        )
    target = out or (Path("stores") / dataset if dataset else None)
    return target / "config.yaml" if target else None


def _tell(outcome: Outcome, settings: PrepConfig, target: Path, failures: Path) -> None:
    """Tables of what is there now, and what to do next."""
    from rw3d_common.collection import open_collection, store_paths
    from rw3d_prep.align import align
    from rw3d_prep.health import unhealthy
    from rw3d_prep.report import alignment_table, scenes_table

    if store_paths(target):
        scenes = list(open_collection(target))
        console().print(scenes_table(scenes))
        if settings.batching.overlap and (links := align(target)):
            console().print(alignment_table(links))
        if sick := unhealthy(scenes):
            name, faults = next(iter(sick.items()))
            log.warning(
                f"{len(sick)} of {len(scenes)} scenes look unhealthy ({name}: {'; '.join(faults)}); see `rw3d-prep inspect "
                f"{target}`, and `reconstruct --redo-unhealthy --out {target}` makes smaller ones of them"
            )
    if outcome.failed:
        log.error(
            f"{len(outcome.failed)} of {len(outcome.failed) + len(outcome.written) + len(outcome.skipped)} batches failed: {failures}; --retry-failed tries only these again"
        )
    if outcome.not_uploaded:
        log.error(
            f"{len(outcome.not_uploaded)} of {len(outcome.there)} scenes were not uploaded: {failures}; the same command "
            "goes on with them and makes none again"
        )
    if not outcome.failed:
        log.info(f"next: rw3d-prep inspect {target}, or notebooks/scene_tour.ipynb")


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
    overlap: Overlap = None,
) -> None:
    """Say what `reconstruct` with the same options will cost: images, batches, points, memory, disk and hours."""
    from rw3d_prep.pipeline import find_batches
    from rw3d_prep.plan import make_plan
    from rw3d_prep.plan_table import plan_table

    named = _named(labels, stride, exclude_mask, resize, overlap)
    settings = _settings(dataset, config, backend, batch_size, named, assignments)
    source, target = _folders(settings.dataset.name, root, out)
    batches, notes = find_batches(settings, source)
    for note in notes:
        log.warning(note)
    estimate = make_plan(batches, settings, source, workers or _usual_workers(settings))
    console().print(plan_table(estimate, settings, target))


def _named(
    labels: str | None, stride: int | None, exclude_mask: Path | None, resize: str | None, overlap: int | None
) -> dict[str, str | int | Path | None]:
    """Options by the recipe's name of what they change."""
    return {
        "dataset.labels": labels,
        "dataset.stride": stride,
        "dataset.exclude_masks": exclude_mask,
        "backend.resize": resize,
        "batching.overlap": overlap,
    }


def _model_named(
    model: str | None, revision: str | None, weights: Path | None, licence: LicencePolicy | None, use: str | None
) -> dict[str, object]:
    return {
        "backend.model": model,
        "backend.revision": revision,
        "backend.weights": weights,
        "backend.licence_policy": licence,
        "backend.use": use.split(",") if use else None,
    }


def _settings(
    dataset: str | None,
    config: Path | None,
    backend: BackendKind | None,
    batch_size: int | None,
    named: Mapping[str, object],
    assignments: list[str] | None,
) -> PrepConfig:
    from rw3d_prep.config import load_config

    given = [f"{key}={json.dumps(value, default=str)}" for key, value in named.items() if value is not None]
    return load_config(dataset, config, backend.value if backend else None, batch_size, [*given, *(assignments or [])])


def _usual_workers(config: PrepConfig) -> int:
    return min(CORES, 8) if config.backend.kind == "mapanything" else 1


def _folders(dataset: str, root: Path | None, out: Path | None) -> tuple[Path, Path]:
    return root or default_root(dataset), out or Path("stores") / dataset
