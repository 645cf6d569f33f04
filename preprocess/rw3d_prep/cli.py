"""The command line of preparation. Heavy packages are imported inside the command that needs them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from rw3d_common.errors import Exit, Stopped, UserError
from rw3d_common.log import configure, console, log
from rw3d_common.manifest import dataset_entry, default_root, load_manifest
from rw3d_common.stopping import let_zarr_finish
from rw3d_prep.cli_accumulate import accumulate
from rw3d_prep.cli_labels import labels_app, make_labels_app
from rw3d_prep.cli_reconstruct import CORES, Root, Workers, plan, reconstruct
from rw3d_prep.cli_samples import sample_views
from rw3d_prep.cli_upload import upload
from rw3d_prep.cli_view import Stores, align, export, view
from rw3d_prep.workers import forget_interrupted_calls

app = typer.Typer(
    name="rw3d-prep",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Turn video with sparse labels into reconstructed, labelled 3D scenes.\n\n"
    "A first try, without data, GPU or weights: `rw3d-prep demo`, then `rw3d-prep reconstruct --dataset demo`, then "
    "`rw3d-prep inspect stores/demo`.",
)
datasets_app = typer.Typer(
    no_args_is_help=False, help="What rw3d knows of each dataset; `check` looks at a copy of it."
)
app.add_typer(datasets_app, name="datasets")
app.add_typer(make_labels_app, name="make-labels")
app.add_typer(labels_app, name="labels")


app.command()(reconstruct)
app.command()(plan)
app.command()(accumulate)
app.command("sample-views")(sample_views)
app.command()(align)
app.command()(view)
app.command()(export)
app.command()(upload)


@app.command()
def demo(
    root: Annotated[
        Path | None, typer.Option(help="Where the street goes. Default: $RW3D_DATA/demo, else data/demo.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed is another town.")] = 0,
    train_sequences: Annotated[int, typer.Option(min=1)] = 6,
    val_sequences: Annotated[int, typer.Option(min=0)] = 2,
    train_frames: Annotated[int, typer.Option(min=2, help="Frames per training sequence, 1 m apart.")] = 20,
    val_frames: Annotated[int, typer.Option(min=2, help="Frames per validation sequence.")] = 10,
    workers: Workers = CORES,
) -> None:
    """Make the built-in street: stereo drives with poses, LiDAR, labels and scribbles, in KITTI-360's layout."""
    from rw3d_common.log import progress
    from rw3d_prep.demo.generate import DemoConfig, generate

    target = root or default_root("demo")
    settings = DemoConfig(
        seed=seed,
        train_sequences=train_sequences,
        val_sequences=val_sequences,
        train_frames=train_frames,
        val_frames=val_frames,
    )
    frames = train_sequences * train_frames + val_sequences * val_frames
    log.info(f"render {frames} stereo frames of {train_sequences + val_sequences} streets into {target}")
    with progress("demo", frames, "frames") as advance:
        done = 0

        def report(now: int, _total: int) -> None:
            nonlocal done
            advance(now - done)
            done = now

        generate(target, settings, workers=workers, progress=report)
    log.info(f"next: rw3d-prep reconstruct --dataset demo --root {target} --workers {workers}")


@app.command()
def verify(stores: Stores) -> None:
    """Re-read scenes and compare every file, array, count and invariant with what was promised; 3 if any fails.

    On object storage every object is read in full: `rw3d-prep verify s3://bucket/stores`.
    """
    from rw3d_common.collection import store_paths
    from rw3d_common.log import progress
    from rw3d_common.remote import RemotePath, as_store_path
    from rw3d_prep.verify import verify as run

    place = as_store_path(stores)
    scenes = len(store_paths(place))
    with progress("verify", scenes, "scenes") as advance:
        faults = run(place, advance)
    out = console()
    for fault in faults:
        out.print(fault, markup=False, highlight=False, soft_wrap=True)
    if faults:
        if isinstance(place, RemotePath):
            log.error(
                f"{len(faults)} faults; delete the faulty objects there, then `rw3d-prep upload` sends them again"
            )
            raise typer.Exit(Exit.PARTIAL)
        log.error(
            f"{len(faults)} faults; delete the faulty scenes and run `rw3d-prep reconstruct` again; "
            "where only samples/ is at fault, delete that folder and run `rw3d-prep sample-views`"
        )
        raise typer.Exit(Exit.PARTIAL)
    out.print(f"{place}: all {scenes} scenes are intact", soft_wrap=True)


@app.command()
def inspect(
    stores: Stores,
    scenes: Annotated[int, typer.Option(min=0, help="Of how many scenes to show a table of views.")] = 1,
    picture: Annotated[
        Path | None, typer.Option(help="Also write a PNG of the largest scene's cloud, in photo and label colours.")
    ] = None,
) -> None:
    """Show tables: points per scene and view, labelled share per class, confidence quantiles, coverage, health."""
    from rw3d_common.collection import open_collection
    from rw3d_prep.align import read_alignment
    from rw3d_prep.report import alignment_table, report

    collection = list(open_collection(stores))
    console().print(report(collection, views_of=scenes))
    if links := read_alignment(stores):
        console().print(alignment_table(links))
    if picture:
        from rw3d_prep.picture import write_picture

        largest = max(collection, key=lambda scene: scene.n_points)
        if not largest.n_points:
            raise UserError(
                f"{stores}: no scene has points to draw (--picture); reconstruct them with another --backend"
            )
        write_picture(largest, picture)
        log.info(f"picture of {largest.name}: {picture}")


@app.command()
def doctor() -> None:
    """Check this machine: package versions, GPU, weights, system libraries; each fault with its mend."""
    from rw3d_prep.doctor import collect, report

    console().print(report(collect()))


@datasets_app.callback(invoke_without_command=True)
def datasets(context: typer.Context) -> None:
    """List the datasets of data_manifest.yaml."""
    if context.invoked_subcommand is not None:
        return
    from rich.table import Table

    table = Table("name", "dataset", "splits", "classes", "licence", "looked for in")
    for name, entry in load_manifest().datasets.items():
        table.add_row(
            name, entry.title, ", ".join(entry.splits), str(len(entry.classes)), entry.licence, str(default_root(name))
        )
    console().print(table)


@datasets_app.command()
def check(
    dataset: Annotated[str, typer.Argument(help="A dataset of `rw3d-prep datasets`.")], root: Root = None
) -> None:
    """Say what of a dataset is present, missing and unexpected below its root, with counts; 2 if anything is missing."""
    from rw3d_prep.check import check_layout, frame_counts
    from rw3d_prep.check_table import frames_table, layout_table

    entry, source = dataset_entry(dataset), root or default_root(dataset)
    layout = check_layout(source, entry)
    out = console()
    out.print(layout_table(source, layout))
    if layout.missing:
        missing = ", ".join(part.glob for part in layout.missing)
        raise UserError(f"{source}: missing {missing}; get {entry.title} from {entry.source}")
    counts, notes = frame_counts(source, dataset, tuple(entry.splits))
    out.print(frames_table(counts))
    for note in notes:
        log.warning(note)


def _stop(signum: int, _frame: Any) -> None:
    forget_interrupted_calls()
    raise Stopped(signal.Signals(signum).name)


def _repeat_lost_stops() -> None:
    """Send a stop signal again that arrived inside a finalizer: Python drops what is raised there."""
    report = sys.unraisablehook

    def hook(lost: sys.UnraisableHookArgs) -> None:
        if isinstance(lost.exc_value, Stopped):
            again = threading.Timer(0.05, os.kill, (os.getpid(), signal.Signals[str(lost.exc_value)]))
            again.daemon = True
            again.start()
        else:
            report(lost)

    sys.unraisablehook = hook


def main() -> None:
    """Entry point of `rw3d-prep`: runs a command and turns errors into one sentence and an exit code."""
    configure()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, _stop)
    _repeat_lost_stops()
    try:
        app(standalone_mode=True)
    except UserError as error:
        log.error(f"rw3d-prep: {error}")
        sys.exit(Exit.BAD_INPUT)
    except Stopped as stop:
        log.warning(f"stopped by {stop}; the same command goes on from here")
        for child in multiprocessing.active_children():
            child.terminate()
        let_zarr_finish()
        sys.exit(Exit.STOPPED)
