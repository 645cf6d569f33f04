"""Published checkpoints → our modules, with a report of what fitted."""

from __future__ import annotations

from _pickle import UnpicklingError  # what torch.load raises on anything but plain tensors; nothing is unpickled here
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rw3d_common.errors import UserError

WRAPPERS = ("state_dict", "model")  # under which trainers keep the weights
PREFIXES = (
    "module.",
    "student.",
    "backbone.",
)  # of parallel training, of pretraining, and of what is around the network
MOST_NAMED = 3


class WeightReport(NamedTuple):
    """Names as the model has them, except `unexpected`, as the file has them. Only `matched` were loaded."""

    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]

    def __str__(self) -> str:
        return (
            f"{len(self.matched)} matched, {len(self.missing)} missing{_named(self.missing)}, "
            f"{len(self.unexpected)} unexpected{_named(self.unexpected)}, "
            f"{len(self.mismatched)} of another shape{_named(self.mismatched)}"
        )


def load_weights(model: nn.Module, path: Path, allow_missing: Sequence[str] = ()) -> WeightReport:
    """Load a checkpoint into `model` (a PointTransformerV3, or a PointSegmenter around one).

    The prefixes `module.`, `student.` and `backbone.` do not matter on either side. Nothing is loaded when an error is raised.

    Args:
        model: where the weights go.
        path: `.safetensors`, or a file of torch.save with plain tensors.
        allow_missing: patterns (`seg_head.*`, `dec.*`) of parameters, named without prefixes, that may keep the values
            they have: missing in the file, or there with another shape. Those of a pattern must be so all together.

    Returns:
        what matched, was missing, unexpected or of another shape.

    Raises:
        UserError: a file that cannot be read or holds no weights, or parameters without a value that are not allowed.
    """
    found = {_bare(name): (name, value) for name, value in read_weights(path).items()}
    wanted = {_bare(name): (name, value) for name, value in model.state_dict().items()}
    matched = {k for k, (_, value) in wanted.items() if k in found and found[k][1].shape == value.shape}
    report = WeightReport(
        matched=[name for k, (name, _) in wanted.items() if k in matched],
        missing=[name for k, (name, _) in wanted.items() if k not in found],
        unexpected=[name for k, (name, _) in found.items() if k not in wanted],
        mismatched=[name for k, (name, _) in wanted.items() if k in found and k not in matched],
    )
    allowed = [pattern for pattern in allow_missing if not any(fnmatchcase(name, pattern) for name in matched)]
    for names, what in ((report.missing, "lacks"), (report.mismatched, "has another shape of")):
        refused = [name for name in names if not any(fnmatchcase(_bare(name), pattern) for pattern in allowed)]
        if refused:
            shapes = ""
            if what != "lacks":
                name = _bare(refused[0])
                shapes = f" ({tuple(found[name][1].shape)} there, {tuple(wanted[name][1].shape)} in the model)"
            raise UserError(
                f"{path}: {what} {len(refused)} of the model's {len(wanted)} parameters{_named(refused)}{shapes}; give "
                "weights of this configuration, or allow these by name"
            )
    model.load_state_dict({wanted[name][0]: found[name][1] for name in matched}, strict=False)
    return report


def read_weights(path: Path) -> dict[str, Tensor]:
    """The named tensors of a checkpoint, on the CPU.

    Raises:
        UserError: a missing or unreadable file, or one without named tensors.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a checkpoint (.safetensors, or a file of torch.save)")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise UserError(
            f"{path}: not a checkpoint of plain tensors ({str(error).splitlines()[0] if str(error) else 'it is cut short'}); "
            "download it again, or save its state_dict alone"
        ) from error
    return _tensors(content, path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return _tensors(load_file(path), path)
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file ({error}); download it again") from error


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise UserError(f"{path}: holds no named tensors; give a checkpoint with a state_dict")
    return tensors


def _bare(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _named(names: Sequence[str]) -> str:
    if not names:
        return ""
    return f" ({', '.join(names[:MOST_NAMED])}{', …' if len(names) > MOST_NAMED else ''})"
