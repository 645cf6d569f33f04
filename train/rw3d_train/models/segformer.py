"""SegFormer (Xie et al., NeurIPS 2021) through transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from rw3d_common.config import did_you_mean
from rw3d_common.errors import UserError
from rw3d_train.models.pretrained import load_pretrained

if TYPE_CHECKING:
    from transformers import SegformerForSemanticSegmentation

# Encoder depths, encoder widths and decoder width of the paper's Mix Transformers; all else is the library's default.
_NARROW, _WIDE = (32, 64, 160, 256), (64, 128, 320, 512)
SIZES = {
    "b0": ((2, 2, 2, 2), _NARROW, 256),
    "b1": ((2, 2, 2, 2), _WIDE, 256),
    "b2": ((3, 4, 6, 3), _WIDE, 768),
    "b3": ((3, 4, 18, 3), _WIDE, 768),
    "b4": ((3, 8, 27, 3), _WIDE, 768),
    "b5": ((3, 6, 40, 3), _WIDE, 768),
}


class SegFormer(nn.Module):  # type: ignore[misc]
    """`network`, the model of transformers (for `save_pretrained`), called as all 2D networks are."""

    def __init__(self, network: SegformerForSemanticSegmentation) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, C, H/4, W/4), rounded up, of images (B, 3, H, W) from `images.normalize`."""
        logits: Tensor = self.network(pixel_values=image).logits
        return logits


def segformer(name: str, classes: Sequence[str]) -> SegFormer:
    """A SegFormer for these classes (names by train id), in training mode, drop-path and dropout 0.1.

    Args:
        name: a hub id such as "nvidia/mit-b4" (an ImageNet encoder; its decoder starts random), a local folder, or
            "random:b0" … "random:b5" for the published sizes with random weights.
        classes: names by train id; they become the network's id2label.

    Raises:
        UserError: an unknown size, or weights that are not there or not SegFormer's.
    """
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    if not name.startswith("random:"):
        by_class = ("decode_head.classifier.",)
        network = load_pretrained(SegformerForSemanticSegmentation, name, classes, by_class, head="decode_head.")
        model = SegFormer(network)
        model.train()
        return model
    size = name.removeprefix("random:")
    if size not in SIZES:
        raise UserError(f"{name}: no such SegFormer{did_you_mean(size, SIZES)}; take random:b0 to random:b5")
    depths, widths, decoder = SIZES[size]
    config = SegformerConfig(
        depths=depths,
        hidden_sizes=widths,
        decoder_hidden_size=decoder,
        id2label=dict(enumerate(classes)),
        label2id={label: number for number, label in enumerate(classes)},
    )
    return SegFormer(SegformerForSemanticSegmentation(config))
