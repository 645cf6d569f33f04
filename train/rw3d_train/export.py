"""`rw3d-train export`: the trained 2D network for other programs."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from rw3d_common.errors import UserError, disk_errors
from rw3d_train.models.eomt import EoMT
from rw3d_train.models.images import upsample
from rw3d_train.models.pretrained import quiet
from rw3d_train.trained import Segmenter

SMALLEST = 32  # pixels: below it, levels of the networks have no pixel left


def export_hf(segmenter: Segmenter, out: Path) -> None:
    """A folder that `SegformerForSemanticSegmentation.from_pretrained` (or EoMT's) loads, class names included.

    Raises:
        UserError: the network is not one of transformers, or `out` is a file.
    """
    network = getattr(segmenter.model, "network", None)
    if network is None:
        raise UserError(f"{segmenter.checkpoint}: its network is not one of transformers; take --format onnx")
    if out.is_file():
        raise UserError(f"{out}: is a file; give the name of a folder with --out")
    names = segmenter.classes.names
    network.config.id2label = dict(enumerate(names))
    network.config.label2id = {name: index for index, name in enumerate(names)}
    with disk_errors(out), quiet():
        network.save_pretrained(out)
        _image_processor(network.config).save_pretrained(out)


def _image_processor(config: Any) -> Any:
    """Says how images become what the network takes: its normalisation; resized only where it takes a single size."""
    if config.model_type == "eomt":
        from transformers import EomtImageProcessorPil

        size = {"height": config.image_size, "width": config.image_size}
        return EomtImageProcessorPil(size=size, do_split_image=False, do_pad=False)
    from transformers import SegformerImageProcessorPil

    return SegformerImageProcessorPil(do_resize=False, do_reduce_labels=False)


class _AtImageSize(nn.Module):  # type: ignore[misc]
    """Logits at the size of the image, so that an ONNX user needs no upsampling of their own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        return upsample(self.model(image), (image.shape[-2], image.shape[-1]))


def export_onnx(segmenter: Segmenter, path: Path) -> None:
    """An ONNX file: `image` (B, 3, H, W) float32, normalised by ImageNet's mean and deviation → `logits` (B, C, H, W).

    B is free; so are H and W from 32 on, except with EoMT, which takes one size.

    Raises:
        UserError: the packages onnx and onnxscript are not installed, or `path` is a folder.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError("--format onnx needs two more packages: pip install onnx onnxscript") from None
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the name of a file, such as {path / 'model.onnx'}")
    if isinstance(segmenter.model, EoMT):
        edge = segmenter.model.network.config.image_size
        size, free = (edge, edge), {0: Dim.DYNAMIC}
    else:
        size, free = (64, 96), {0: Dim("batch"), 2: Dim("height", min=SMALLEST), 3: Dim("width", min=SMALLEST)}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of torchvision's operators: none are used
    with disk_errors(path), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)  # torch's own
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.onnx.export(
            _AtImageSize(segmenter.model.cpu()).eval(),
            (torch.zeros(2, 3, *size),),
            path,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes={"image": free},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
