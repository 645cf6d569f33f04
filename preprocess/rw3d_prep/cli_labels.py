"""The commands `rw3d-prep make-labels points|scribbles|coarse` and `rw3d-prep labels check`. Heavy packages load inside."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rw3d_common.errors import UserError
from rw3d_common.log import console, log
from rw3d_common.manifest import dataset_entry, default_root
from rw3d_prep.cli_reconstruct import CORES, ConfigFile, Dataset, Labels, Root, Set

if TYPE_CHECKING:
    from rw3d_prep.datasets import DatasetConfig
    from rw3d_prep.sparse_labels.settings import Settings

make_labels_app = typer.Typer(
    no_args_is_help=True,
    help="Make sparse labels from dense ones: points, scribbles or coarse polygons, for `reconstruct --labels`.\n\n"
    "Finished images are kept: after a crash or Ctrl-C, the same command goes on where it stopped.",
)
labels_app = typer.Typer(no_args_is_help=True, help="Look at the label images of a dataset.")


class Per(StrEnum):
    klass = "class"
    instance = "instance"


class PresetName(StrEnum):
    default = "default"
    cityscapes = "cityscapes"
    waymo = "waymo"
    kitti360 = "kitti360"


Out = Annotated[Path | None, typer.Option(help="Where the labels go. Default: labels/DATASET/KIND.")]
Seed = Annotated[int, typer.Option(help="Another seed is another annotator.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes. The bytes do not depend on it.")]


@make_labels_app.command()
def points(
    dataset: Dataset = None,
    root: Root = None,
    out: Out = None,
    seed: Seed = 0,
    per: Annotated[Per, typer.Option(help="One pixel per class and image, or per instance.")] = Per.klass,
    scale: Annotated[
        float,
        typer.Option(
            help="Scale of training, up to 1: only pixels that nearest resampling to it keeps are drawn, so that none is lost."
        ),
    ] = 1.0,
    config: ConfigFile = None,
    assignments: Set = None,
    workers: Workers = CORES,
) -> None:
    """One random pixel per class and image, or per instance; coordinates in points/."""
    from rw3d_prep.sparse_labels.settings import PointSettings

    if not 0 < scale <= 1:
        raise UserError(f"--scale {scale:g}: expected a number above 0 and up to 1, the scale of training")
    _make(PointSettings(per is Per.instance, scale), _recipe(dataset, config, assignments), root, out, seed, workers)


@make_labels_app.command()
def scribbles(
    dataset: Dataset = None,
    root: Root = None,
    out: Out = None,
    seed: Seed = 0,
    preset: Annotated[
        PresetName | None, typer.Option(help="Published settings. Default: those of the dataset, else default.")
    ] = None,
    length: Annotated[
        float | None, typer.Option(help="Share of each curve that is drawn. Default: the preset's.")
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            metavar="1.0,0.8,…",
            help="Several shares of the same curves, each into OUT/length_SHARE: the paper's ablation.",
        ),
    ] = None,
    config: ConfigFile = None,
    assignments: Set = None,
    workers: Workers = CORES,
) -> None:
    """One curve inside every region, drawn as a stroke; the whole curves in curves/."""
    from rw3d_prep.sparse_labels.scribbles import PRESETS
    from rw3d_prep.sparse_labels.settings import ScribbleSettings

    recipe = _recipe(dataset, config, assignments)
    chosen = PRESETS.get(preset.value if preset else recipe.name, PRESETS["default"])
    if length is not None and lengths is not None:
        raise UserError("--length and --lengths contradict each other; give one of them")
    given = lengths if lengths is not None else str(chosen.length if length is None else length)
    _make(ScribbleSettings(chosen, parse_lengths(given)), recipe, root, out, seed, workers)


@make_labels_app.command()
def coarse(
    dataset: Dataset = None,
    root: Root = None,
    out: Out = None,
    seed: Seed = 0,
    margin: Annotated[
        float, typer.Option(help="Distance from a region's border, as a share of the image's height.")
    ] = 0.01,
    config: ConfigFile = None,
    assignments: Set = None,
    workers: Workers = CORES,
) -> None:
    """Simple polygons well inside each region, for datasets without coarse labels of their own; no chance is involved."""
    from rw3d_prep.sparse_labels.settings import CoarseSettings

    recipe = _recipe(dataset, config, assignments)
    source = root or default_root(recipe.name)
    if (source / "gtCoarse").is_dir():
        log.info(
            f"{source / 'gtCoarse'}: coarse labels by people are there, so none are made; next: rw3d-prep reconstruct "
            f"--dataset {recipe.name} --labels gtCoarse"
        )
        return
    if not 0 <= margin < 0.5:
        raise UserError(f"--margin {margin:g}: expected a share of the image's height from 0 to 0.5, such as 0.01")
    _make(CoarseSettings(margin), recipe, root, out, seed, workers)


@labels_app.command()
def check(
    dataset: Dataset = None,
    root: Root = None,
    labels: Labels = None,
    config: ConfigFile = None,
    assignments: Set = None,
    workers: Workers = CORES,
) -> None:
    """Count the pixels of every class in sparse and dense labels; 2 on an unknown id or a file stored otherwise."""
    from rw3d_prep.check_labels import check_labels, labels_table
    from rw3d_prep.datasets import read_frames
    from rw3d_prep.label_folders import label_encoding

    recipe = _recipe(dataset, config, [*([f"dataset.labels={labels}"] if labels else []), *(assignments or [])])
    entry, source = dataset_entry(recipe.name), root or default_root(recipe.name)
    log.info(f"check the labels '{recipe.labels}' and the dense labels of {recipe.name} in {source}")
    found = read_frames(source, recipe)
    for note in found.notes:
        log.warning(note)
    for checked in check_labels(found.frames, entry, label_encoding(recipe.labels, entry), workers):
        console().print(labels_table(checked, entry.class_map()))


def parse_lengths(text: str) -> tuple[float, ...]:
    """Shares of a curve, written '1.0,0.5,0.1'.

    Raises:
        UserError: not numbers above 0 and up to 1, or one of them twice.
    """
    try:
        lengths = tuple(float(word) for word in text.split(","))
    except ValueError:
        raise UserError(f"length {text}: expected numbers such as 1.0,0.8,0.5") from None
    if not all(0 < length <= 1 for length in lengths) or len(set(lengths)) < len(lengths):
        raise UserError(f"length {text}: expected different shares of a curve, each above 0 and up to 1")
    return lengths


def _recipe(dataset: str | None, config: Path | None, assignments: list[str] | None) -> DatasetConfig:
    from rw3d_prep.config import load_config

    return load_config(dataset, config, None, None, assignments or []).dataset


def _make(
    settings: Settings, recipe: DatasetConfig, root: Path | None, out: Path | None, seed: int, workers: int
) -> None:
    from rw3d_prep.sparse_labels.counts import counts_table
    from rw3d_prep.sparse_labels.dense import dense_frames
    from rw3d_prep.sparse_labels.make import make_labels

    entry, source = dataset_entry(recipe.name), root or default_root(recipe.name)
    target = out or Path("labels") / recipe.name / settings.kind
    log.info(
        f"make {settings.kind} of {recipe.name} ({', '.join(recipe.splits)}) from the dense labels in {source}, "
        f"seed {seed}, into {target}"
    )
    frames = dense_frames(source, recipe, entry)
    made = make_labels(frames, recipe.name, settings, target, seed, workers)
    for folder, counts in made.items():
        title = f"{folder}: {100 * counts.share:.3g} % of the pixels labelled, {counts.empty_images:,} images without a label"
        console().print(counts_table(counts, entry.class_map(), title))
    log.info(f"next: rw3d-prep reconstruct --dataset {recipe.name} --labels {next(iter(made))}")
