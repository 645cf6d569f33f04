"""Checkpoints: all that a run needs to go on as if it had never stopped, and weights that others can load.

`checkpoints/step_00001200/` holds `<network>.safetensors` for each student and teacher, `training.pt` (optimisers,
schedules and scaler; read with weights_only=True, so that nothing in it can run code) and `checkpoint.json` (step, epoch,
position in the epoch, configuration, classes). Random numbers are keyed by seed and step, so there is no state of theirs
to keep. A folder is written under another name, flushed to disk and renamed, so that what is there is whole. `best` is a
folder of the same kind.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rw3d_common.errors import UserError, disk_errors
from rw3d_train.teacher import unwrapped

STATE, TRAINING = "checkpoint.json", "training.pt"
FOLDER, BEST = "checkpoints", "best"
REQUIRED = ("step", "epoch", "position", "bad_steps", "best", "network_2d", "classes", "class_map_hash", "config")


def save_checkpoint(
    folder: Path, networks: Mapping[str, nn.Module], training: Mapping[str, Any], state: Mapping[str, Any]
) -> None:
    """Write a checkpoint as `folder`, whole or not at all; an older one of this name is replaced.

    Args:
        folder: its final name.
        networks: by name, such as "student_2d".
        training: state dicts of optimisers and the like, tensors and plain values only.
        state: what goes into checkpoint.json.

    Raises:
        DiskFull: no space left.
    """
    from safetensors.torch import save_file

    temporary = folder.with_name(f"{folder.name}.tmp")
    with disk_errors(folder):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, network in networks.items():
            save_file(_own_tensors(network), temporary / f"{name}.safetensors")
        torch.save(dict(training), temporary / TRAINING)
        (temporary / STATE).write_text(json.dumps(state, indent=1, default=str) + "\n", encoding="utf-8")
        for path in [*temporary.iterdir(), temporary]:
            _sync(path)
        _replace(temporary, folder)
        _sync(folder.parent)


def _own_tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """Weights and buffers by their names in the bare network; tied weights are stored for each of their names."""
    return {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in unwrapped(network).state_dict().items()
    }


def _replace(temporary: Path, folder: Path) -> None:
    """Put `temporary` in the place of `folder`; a crash in between leaves the old one under `.old`."""
    old = folder.with_name(f"{folder.name}.old")
    if folder.exists():  # otherwise `old` is all that such a crash left
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_networks(folder: Path, networks: Mapping[str, nn.Module]) -> None:
    """Load weights into networks, every name and shape exactly.

    Raises:
        UserError: a file is missing or damaged, or its weights are of another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for name, network in networks.items():
        path = folder / f"{name}.safetensors"
        try:
            unwrapped(network).load_state_dict(load_file(path))
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; the checkpoint lacks '{name}', take another one") from None
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: cannot be read ({error}); take an older checkpoint") from error
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"{path}: does not fit the configured network ({reason}); use the run's own config"
            ) from error


def load_training(folder: Path) -> dict[str, Any]:
    """What `save_checkpoint` was given as `training`.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = folder / TRAINING
    try:
        loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: cannot be read ({error}); take an older checkpoint") from error
    return loaded


def read_state(folder: Path) -> dict[str, Any]:
    """checkpoint.json of a checkpoint.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = folder / STATE
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {folder} is no checkpoint") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); take an older checkpoint") from None
    if lacking := [name for name in REQUIRED if not isinstance(state, dict) or name not in state]:
        raise UserError(f"{path}: lacks {', '.join(lacking)}; take an older checkpoint")
    return state


def checkpoints(run: Path) -> list[Path]:
    """The finished numbered checkpoints of a run, oldest first."""
    return sorted(path for path in (run / FOLDER).glob("step_*") if path.is_dir() and path.suffix == "")


def step_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run / FOLDER / f"step_{step:08d}"


def best_checkpoint(run: Path) -> Path:
    """The checkpoint to use: the best one, or the last where none was chosen yet.

    Raises:
        UserError: the run has no checkpoint.
    """
    best = run / FOLDER / BEST
    for folder in (best, best.with_name(f"{BEST}.old"), *reversed(checkpoints(run))):
        if (folder / STATE).is_file():
            return folder
    raise UserError(f"{run}: no finished checkpoint there; start or resume it with `rw3d-train run --resume`")


def prune(run: Path, keep: int) -> None:
    """Remove all but the newest `keep` numbered checkpoints, and what killed runs left half-written."""
    for folder in checkpoints(run)[:-keep]:
        shutil.rmtree(folder)
    for folder in (run / FOLDER).glob("step_*.*"):
        shutil.rmtree(folder, ignore_errors=True)
