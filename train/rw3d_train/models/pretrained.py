"""Published weights through transformers: complete, or refused; a network is random only where it was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rw3d_common.errors import UserError
from rw3d_common.log import log

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_pretrained(
    model_class: type[PreTrainedModel],
    name: str,
    classes: Sequence[str],
    by_class: tuple[str, ...],
    head: str | None = None,
) -> PreTrainedModel:
    """A network of transformers with weights from a hub id or a local folder, float32, for these classes.

    The network is asked only for what the local cache of the hub lacks, and never with HF_HUB_OFFLINE=1. What has no
    weights starts random, from torch's global generator, and is named in the log.

    Args:
        model_class: the class of transformers to load.
        name: "owner/name" on the hub, or a folder with config.json and model.safetensors or pytorch_model.bin.
        classes: names by train id.
        by_class: beginnings of the names of weights that depend on the classes: they may be missing, or of another size.
        head: the same of weights that may be missing all together, as from an encoder; None: there is no such part.

    Raises:
        UserError: nothing to load there, weights of another architecture, or some of them only.
    """
    import torch

    names = dict(enumerate(classes))
    model, info = _load(
        model_class.from_pretrained,
        name,
        id2label=names,
        label2id={label: number for number, label in names.items()},
        dtype=torch.float32,  # by default it is whatever the file holds
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    random = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    part = by_class[0]
    if head and random.issuperset(key for key, _ in model.named_parameters() if key.startswith(head)):
        part, by_class = head, (*by_class, head)
    lost = {key for key in random if not key.startswith(by_class)}
    if lost:
        raise UserError(
            f"{name}: {len(lost)} weights of {model_class.__name__} are missing there or of another size ('{min(lost)}' "
            "is one); give weights of that architecture with the config.json that belongs to them"
        )
    if random:
        log.info(f"{name}: loaded, except that {part.rstrip('.')} starts random")
    return model


def model_type(name: str) -> str:
    """The architecture of a hub id or local folder as its config.json names it, such as "segformer".

    Raises:
        UserError: there is no such configuration.
    """
    from transformers import AutoConfig

    kind: str = _load(AutoConfig.from_pretrained, name).model_type
    return kind


def _load(from_pretrained: Callable[..., Any], name: str, **options: Any) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    with quiet():
        try:
            try:
                return from_pretrained(name, local_files_only=True, **options)
            except OSError:
                return from_pretrained(name, **options)
        except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".:")
            raise UserError(f"{name}: cannot be loaded ({reason}); {_mend(name)}") from error


def _mend(name: str) -> str:
    if Path(name).exists() or name.count("/") != 1:
        return "give a folder with the config.json and model.safetensors of a SegFormer or EoMT"
    return (
        f"on a machine with network run `hf download {name} --local-dir FOLDER` and give that folder as model_2d.name, "
        "or ask for random weights with random:b0 or unet"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Without the library's tables and bars: what matters in them is checked here, and refused."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
