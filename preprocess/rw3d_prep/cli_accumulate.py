"""The command `rw3d-prep accumulate`. Heavy packages are imported inside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rw3d_common.config import validate
from rw3d_common.errors import Exit
from rw3d_common.log import console, log

if TYPE_CHECKING:
    from rw3d_prep.accumulate import AccumulateConfig


def accumulate(
    stores: Annotated[Path, typer.Argument(help="A *.zarr scene, or a folder of them.")] = Path("stores"),
    window: Annotated[int, typer.Option(help="Frames before and after a view that it takes labels from.")] = 20,
    spread: Annotated[
        float | None,
        typer.Option(help="Pixels around a label that it counts for (standard deviation). Default: 1.5, and 0.3 for LiDAR."),
    ] = None,
    depth_absolute: Annotated[
        float, typer.Option(help="Metres by which depths of one surface may differ between two views …")
    ] = 0.05,
    depth_relative: Annotated[float, typer.Option(help="… plus this share of the depth.")] = 0.08,
    reprojection: Annotated[float, typer.Option(help="Cells by which a point may miss its own place on the way back.")] = 2.0,
    min_share: Annotated[float, typer.Option(help="Share of a point's votes that the winning class needs.")] = 0.7,
    min_weight: Annotated[float, typer.Option(help="Weight of votes that a point needs; a perfect vote weighs 1.")] = 0.05,
    no_accumulate: Annotated[
        str | None,
        typer.Option(
            metavar="CLASS,CLASS,…",
            help="Classes that are carried between simultaneous views only. Default: the movable ones of data_manifest.yaml.",
        ),
    ] = None,
    min_precision: Annotated[float, typer.Option(help="Share of carried pixels that must be right, 0 to 1.")] = 0.97,
    min_class_precision: Annotated[float, typer.Option(help="Classes below this share are withheld.")] = 0.9,
    picture: Annotated[
        Path | None,
        typer.Option(help="Also write a PNG of one view: image, own labels, accumulated labels, truth."),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Scenes at a time. The bytes do not depend on it.")
    ] = os.cpu_count() or 1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace labels that were made with another configuration.")
    ] = False,
) -> None:  # fmt: skip
    """Carry labels in 3D to the views that see the same surface, measure how many are right, and write them beside
    the original ones.

    Labels that are there are kept: after a crash or Ctrl-C, the same command goes on where it stopped. Exit codes: 0
    all done, 2 bad input, 3 some scenes failed (accumulate_failures.jsonl says why) or are not precise enough to be
    used, 75 stopped by a signal.
    """
    from rw3d_prep.accumulate import AccumulateConfig

    names = None if no_accumulate is None else [name.strip() for name in no_accumulate.split(",") if name.strip()]
    tree = {
        "window": window,
        "spread": spread,
        "depth_absolute": depth_absolute,
        "depth_relative": depth_relative,
        "reprojection": reprojection,
        "min_share": min_share,
        "min_weight": min_weight,
        "no_accumulate": names,
        "min_precision": min_precision,
        "min_class_precision": min_class_precision,
    }
    _run(stores, validate(AccumulateConfig, tree, "accumulate"), picture, workers, overwrite)


def _run(stores: Path, config: AccumulateConfig, picture: Path | None, workers: int, overwrite: bool) -> None:
    from rw3d_prep.accumulate_report import accumulated_tables, unusable, write_picture
    from rw3d_prep.accumulate_scenes import accumulate as run
    from rw3d_prep.sample_views import find_scenes

    scenes = find_scenes(stores)
    log.info(
        f"accumulate the labels of {len(scenes)} scene{'s' * (len(scenes) != 1)} in {stores}, {config.window} frames around"
    )
    outcome = run(stores, config, workers, overwrite)
    console().print(accumulated_tables(scenes))
    if picture:
        log.info(f"picture of {write_picture(scenes, picture)}: {picture}")
    if poor := unusable(scenes):
        log.error(
            f"{len(poor)} of {len(scenes)} scenes are below --min-precision {config.min_precision} and not usable ({poor[0]}"
            f"{', …' * (len(poor) > 1)}); try a smaller --spread or --depth-relative with --overwrite, and check the poses"
        )
        raise typer.Exit(Exit.PARTIAL)
    if not outcome.failed:
        log.info(f"next: rw3d-prep sample-views {stores} --labels accumulated")
    raise typer.Exit(outcome.exit_code())
