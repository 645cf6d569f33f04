"""The command `rw3d-prep sample-views`. Heavy packages are imported inside it."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rw3d_common.config import validate
from rw3d_common.errors import UserError
from rw3d_common.log import console, log

if TYPE_CHECKING:
    from rw3d_prep.sampling import SampleConfig


class Views(StrEnum):
    labelled = "labelled"
    all = "all"


class Labels(StrEnum):
    own = "own"
    accumulated = "accumulated"


class Strategy(StrEnum):
    view_aware = "view-aware"
    random = "random"


def sample_views(
    stores: Annotated[Path, typer.Argument(help="A *.zarr scene, or a folder of them.")] = Path("stores"),
    views: Annotated[Views, typer.Option(help="Which views get samples: those with a sparse label, or all.")] = Views.labelled,
    labels: Annotated[
        Labels, typer.Option(help="The images' own labels alone, or also those that `rw3d-prep accumulate` carried to them.")
    ] = Labels.own,
    points: Annotated[int, typer.Option(help="Points per sample.")] = 120_000,
    own_share: Annotated[float, typer.Option(help="Share of them from the view itself, 0 to 1.")] = 0.6,
    radius: Annotated[
        str,
        typer.Option(
            metavar="robust|official|METRES",
            help="Sphere around the view's points that the others come from: 1.5 × the 95 % quantile of their distances "
            "from their centroid (robust), 1.5 × the largest (official), or metres.",
        ),
    ] = "robust",
    strategy: Annotated[
        Strategy, typer.Option(help="view-aware, or random: points of the whole scene, as an ablation.")
    ] = Strategy.view_aware,
    draws: Annotated[int, typer.Option(help="Samples per view, for long trainings.")] = 1,
    keep_labelled: Annotated[
        bool,
        typer.Option(
            "--keep-labelled",
            help="Keep all labelled points of the view, and give labelled pixels without a point to the nearest one "
            "within 2 px: for point annotations.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Another seed draws other points.")] = 0,
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            help="Scenes at a time, each in memory; those that are left over work on views. The bytes do not depend on it.",
        ),
    ] = os.cpu_count() or 1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace samples that were made with another configuration.")
    ] = False,
) -> None:  # fmt: skip
    """Draw the points of every training item: for each view its own and its surroundings', into the scene stores.

    Samples that are there are kept: after a crash or Ctrl-C, the same command goes on where it stopped. Exit codes: 0
    all done, 2 bad input, 3 some scenes failed (sample_failures.jsonl says why), 75 stopped by a signal.
    """
    from rw3d_prep.report import samples_table
    from rw3d_prep.sample_views import find_scenes
    from rw3d_prep.sample_views import sample_views as run

    config = _config(views, labels, points, own_share, radius, strategy, draws, keep_labelled, seed)
    scenes = find_scenes(stores)
    how = f"{own_share:.0%} of them the view's own" if strategy is Strategy.view_aware else "from the whole scene"
    log.info(
        f"sample {views.value} views of {len(scenes)} scene{'s' * (len(scenes) != 1)} in {stores}: "
        f"{points:,} points each, {how}, {draws} draw{'s' * (draws != 1)} per view, seed {seed}"
    )
    outcome = run(stores, config, workers, overwrite)
    console().print(samples_table(scenes))
    if not outcome.failed:
        log.info(f"next: rw3d-prep inspect {stores}, or scene.sample(0) in a notebook")
    raise typer.Exit(outcome.exit_code())


def _config(
    views: Views,
    labels: Labels,
    points: int,
    own_share: float,
    radius: str,
    strategy: Strategy,
    draws: int,
    keep: bool,
    seed: int,
) -> SampleConfig:
    from rw3d_prep.sampling import SampleConfig

    try:
        metres: float | str = radius if radius in ("robust", "official") else float(radius)
    except ValueError:
        raise UserError(f"--radius {radius}: expected robust, official or a number of metres") from None
    tree = {
        "views": views.value,
        "labels": labels.value,
        "points": points,
        "own_share": own_share,
        "radius": metres,
        "strategy": strategy.value,
        "draws": draws,
        "keep_labelled": keep,
        "seed": seed,
    }
    return validate(SampleConfig, tree, "sample-views")
