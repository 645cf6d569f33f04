"""The command line of training. torch is imported inside the command that needs it."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rw3d_common.errors import Exit, Stopped, UserError
from rw3d_common.log import configure, console, log
from rw3d_common.remote import Unreachable
from rw3d_common.stopping import let_zarr_finish
from rw3d_train.cli_compare import compare

if TYPE_CHECKING:
    from rw3d_train.metrics import Scores

app = typer.Typer(
    name="rw3d-train",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Train 2D segmentation from the scenes that rw3d-prep made.\n\n"
    "`rw3d-train run` trains on what lies under `stores/`; `rw3d-train evaluate RUN` scores it; `rw3d-train predict RUN "
    "photo.jpg` uses it; `rw3d-train compare RECIPE` trains a whole table.",
)


class MethodKind(StrEnum):
    supervised = "supervised"
    ema = "ema"
    rewis3d = "rewis3d"


class PresetName(StrEnum):
    paper = "paper"
    official = "official"


class Format(StrEnum):
    hf = "hf"
    onnx = "onnx"


class Network(StrEnum):
    student = "student"
    teacher = "teacher"


RunFolder = Annotated[Path, typer.Argument(help="A run folder (runs/…), or one checkpoint in it.")]
Device = Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu, cuda, cuda:1, mps.")]
Who = Annotated[Network, typer.Option(help="Whose weights to take.")]


@app.command()
def run(
    dataset: Annotated[
        str | None, typer.Option(help="Which dataset's recipe. Default: that of the scenes under stores/.")
    ] = None,
    method: Annotated[
        MethodKind | None,
        typer.Option(help="supervised (dense labels), ema (2D only), rewis3d. Default: the recipe's."),
    ] = None,
    preset: Annotated[
        PresetName, typer.Option(help="Values as the paper states them, or as the authors' released code has them.")
    ] = PresetName.paper,
    config: Annotated[
        Path | None, typer.Option("--config", help="A recipe of your own instead of pipelines/DATASET.yaml.")
    ] = None,
    stores: Annotated[
        str | None, typer.Option(help="The folder or s3:// URL of the scenes. Default: the recipe's, stores/DATASET.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder. Default: runs/DATASET-METHOD-TIME.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change one value of the recipe, e.g. --set run.epochs=10. Repeatable."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, or with the newest one, mid-epoch.")
    ] = False,
    device: Device = "auto",
    wandb: Annotated[bool, typer.Option("--wandb", help="Also log to Weights & Biases.")] = False,
) -> None:
    """Train, then score the best checkpoint on split val.

    Several GPUs: `torchrun --nproc-per-node 4 -m rw3d_train run …`. A killed run goes on with `--resume`.
    """
    from rw3d_train.config import load_train_config, read_train_config
    from rw3d_train.distributed import of_first, process_group
    from rw3d_train.engine import fit
    from rw3d_train.score import evaluate_run, has_split

    if resume:
        _refuse_beside_resume(dataset=dataset, method=method, config=config, stores=stores)
        out = out or _newest_run()
        settings = read_train_config(out / "config.yaml", assignments or [])
    else:
        name = dataset or (None if config else _dataset_under(stores or "stores"))
        named = [f"data.stores={json.dumps(stores)}"] if stores else []
        kind = method.value if method else None
        settings = load_train_config(name, config, preset.value, kind, [*named, *(assignments or [])])
    with process_group(device) as where:
        started = time.strftime("%Y%m%d-%H%M%S", time.localtime(of_first(int(time.time()), where)))
        out = out or Path("runs") / f"{settings.data.dataset}-{settings.method.kind}-{started}"
        log.info(
            f"train {settings.method.kind} on {settings.data.stores} ({settings.data.split}), "
            f"{settings.model_2d.name}, {settings.run.epochs} epochs of batches of {settings.run.batch_size}, into {out}"
        )
        best = fit(settings, out, where, resume, wandb)
        if has_split(best, "val"):
            _show(evaluate_run(out, where), f"{out} on val, %")
        else:
            log.info(f"best checkpoint: {best}; there is no split val among its scenes to score it on")


app.command()(compare)


def _show(scores: dict[str, Scores], title: str) -> None:
    from rw3d_train.metrics import scores_table

    if _is_first():
        console().print(scores_table(scores, title))


@app.command()
def evaluate(
    run: RunFolder,
    split: Annotated[str, typer.Option(help="The split to score.")] = "val",
    stores: Annotated[
        str | None, typer.Option(help="Folder or s3:// URL of the scenes. Default: where the run found them.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Evaluate otherwise than the run does: --set evaluate.scale=1."
        ),
    ] = None,
    device: Device = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 2,
) -> None:
    """Score a run's best checkpoint against dense labels: IoU per class, mIoU, mAcc, allAcc, in 2D and 3D.

    The table is also written to the run's folder, as JSON and CSV.
    """
    from rw3d_train.distributed import process_group
    from rw3d_train.score import evaluate_run

    with process_group(device) as where:
        _show(evaluate_run(run, where, split, stores, workers, assignments or []), f"{run} on {split}, %")


@app.command()
def predict(
    run: RunFolder,
    sources: Annotated[list[Path], typer.Argument(help="Images, folders of images, or videos.")],
    out: Annotated[Path, typer.Option(help="Where label images and overlays go.")] = Path("predictions"),
    who: Who = Network.student,
    device: Device = "auto",
) -> None:
    """Predict images: raw label ids, colours and overlays. One image is all that the trained network needs."""
    from rw3d_train.distributed import process_group
    from rw3d_train.predict import predict_all
    from rw3d_train.trained import load

    with process_group(device) as where:
        done = predict_all(load(run, who.value, str(where)), sources, out)
    log.info(f"{done} images: {out}/ids, {out}/color, {out}/overlay")


@app.command()
def export(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="The folder (hf) or file (onnx) to write.")],
    format: Annotated[
        Format, typer.Option(help="hf: a folder for transformers' from_pretrained; onnx: one file.")
    ] = Format.hf,
    who: Who = Network.student,
) -> None:
    """Write the trained 2D network for other programs."""
    from rw3d_train.export import export_hf, export_onnx
    from rw3d_train.trained import load

    segmenter = load(run, who.value)
    (export_hf if format == Format.hf else export_onnx)(segmenter, out)
    log.info(f"{format.value}: {out}")


@app.command()
def scenes(
    stores: Annotated[str, typer.Argument(help="A *.zarr scene, or a folder of them; s3:// URLs too.")] = "stores",
) -> None:
    """List the finished scenes that training would read."""
    from rw3d_common.collection import open_collection

    console().print(repr(open_collection(stores)), highlight=False, soft_wrap=True)


def _dataset_under(stores: str) -> str:
    """The dataset of the scenes with samples below `stores`.

    Raises:
        UserError: none, or several.
    """
    from rw3d_common.collection import store_paths
    from rw3d_common.scene import open_scene
    from rw3d_common.scene_sample import has_samples

    found = sorted({str(open_scene(path).attrs["dataset"]) for path in store_paths(stores) if has_samples(path)})
    if not found:
        raise UserError(
            f"{stores}: no scene with samples; run `rw3d-prep reconstruct --dataset NAME` and `rw3d-prep sample-views`, "
            "or say which with --dataset and --stores"
        )
    if len(found) > 1:
        raise UserError(f"{stores}: scenes of {', '.join(found)}; choose one with --dataset {found[0]}")
    return found[0]


def _refuse_beside_resume(**options: object) -> None:
    """A resumed run keeps its own data and method.

    Raises:
        UserError: one of these options was given.
    """
    for name, value in options.items():
        if value is not None:
            raise UserError(f"--{name} {value}: --resume goes on as the run began; leave it out, or start a new run")


def _newest_run() -> Path:
    """The run that was started or resumed last.

    Raises:
        UserError: there is none.
    """
    found = sorted(Path("runs").glob("*/config.yaml"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError("runs: no run to resume; name its folder with --out, or start one without --resume")
    return found[-1].parent


def _is_first() -> bool:
    """Whether this is the process that speaks, of those that torchrun started; they are not connected yet."""
    return os.environ.get("RANK", "0") == "0"


def _stop(signum: int, _frame: Any) -> None:
    raise Stopped(signal.Signals(signum).name)


def _sentence(error: UserError) -> str:
    """What the error says; torch wraps one of a reading process into the traceback from there."""
    last = str(error).strip().rpartition("\n")[2]
    return re.sub(r"^rw3d_[\w.]+: ", "", last)


def main() -> None:
    """Entry point of `rw3d-train`: runs a command and turns errors into one sentence and an exit code."""
    configure()
    if not _is_first():
        log.setLevel("ERROR")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, _stop)
    try:
        app()
    except UserError as error:
        hint = "; `rw3d-train run --resume` goes on with a run that has begun" * isinstance(error, Unreachable)
        log.error(f"rw3d-train: {_sentence(error)}{hint}")
        sys.exit(Exit.BAD_INPUT)
    except Stopped as stop:
        log.warning(
            f"stopped by {stop}; `rw3d-train run --resume` goes on with a run from its last checkpoint, the same "
            "`rw3d-train compare` with a comparison"
        )
        for child in multiprocessing.active_children():
            child.terminate()
        let_zarr_finish()
        sys.exit(Exit.STOPPED)
