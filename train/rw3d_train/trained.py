"""Trained networks for use: `rw3d_train.load(run).predict(image)`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from rw3d_common.config import validate
from rw3d_common.errors import UserError
from rw3d_common.images import read_image
from rw3d_common.labels import U8, ClassMap
from rw3d_train.checkpoint import STATE, best_checkpoint, load_networks, read_state
from rw3d_train.config import TrainConfig
from rw3d_train.evaluate import EvaluateConfig, predict_logits
from rw3d_train.networks import make_3d, rebuild_2d

Who = Literal["student", "teacher"]


@dataclass(frozen=True, eq=False)
class Segmenter:
    """A trained 2D network with its classes. `checkpoint` is where it came from, `state` its checkpoint.json."""

    model: nn.Module
    classes: ClassMap
    evaluate: EvaluateConfig
    device: torch.device
    checkpoint: Path
    state: dict[str, Any]

    @torch.inference_mode()
    def logits(self, image: str | Path | U8) -> Tensor:
        """Logits (C, H, W) float32 of one image: a file, or RGB (H, W, 3) uint8.

        Raises:
            UserError: a file that cannot be read.
        """
        pixels = image if isinstance(image, np.ndarray) else read_image(Path(image))
        return predict_logits(self.model, pixels, self.evaluate, self.device)

    def predict(self, image: str | Path | U8) -> U8:
        """Train ids (H, W) uint8 of one image: a file, or RGB (H, W, 3) uint8.

        Raises:
            UserError: a file that cannot be read.
        """
        labels: U8 = self.logits(image).argmax(0).to(torch.uint8).cpu().numpy()
        return labels


def load(run: str | Path, who: Who = "student", device: str = "cpu") -> Segmenter:
    """The 2D network of a run's best checkpoint, or of one checkpoint folder.

    Args:
        run: a run folder or a checkpoint in it.
        who: the student, or its teacher where the method has one.
        device: a torch device name.

    Raises:
        UserError: no checkpoint there, or one that cannot be read.
    """
    folder = _checkpoint(Path(run))
    state = read_state(folder)
    model = rebuild_2d(state["network_2d"])
    load_networks(folder, {f"{who}_2d": model})
    return Segmenter(
        model=model.to(device).eval(),
        classes=ClassMap.from_json(state["classes"]),
        evaluate=config_of(folder, state).evaluate,
        device=torch.device(device),
        checkpoint=folder,
        state=state,
    )


def load_3d(run: str | Path, who: Who = "student", device: str = "cpu") -> nn.Module:
    """The 3D network of a run: (position, color, offset) → logits (N, C3).

    Raises:
        UserError: no checkpoint there, or the method has no 3D network.
    """
    folder = _checkpoint(Path(run))
    state = read_state(folder)
    config = config_of(folder, state)
    model = make_3d(
        config.model_3d.model_copy(update={"weights": None, "conv": "torch"}), ClassMap.from_json(state["classes"])
    )
    load_networks(folder, {f"{who}_3d": model})
    return model.to(device).eval()


def config_of(folder: Path, state: dict[str, Any]) -> TrainConfig:
    """The configuration that a checkpoint was trained with."""
    return validate(TrainConfig, state["config"], str(folder / STATE))


def _checkpoint(path: Path) -> Path:
    if (path / STATE).is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a run folder, such as runs/demo-rewis3d-…")
    return best_checkpoint(path)
