"""EoMT (Kerssies et al., CVPR 2025) through transformers, with logits per pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rw3d_common.errors import UserError
from rw3d_train.losses.supervised import at_least_float32
from rw3d_train.models.pretrained import load_pretrained

if TYPE_CHECKING:
    from transformers import EomtForUniversalSegmentation

RANDOM = "random:eomt-tiny"
_EPSILON = 1e-6


class EoMT(nn.Module):  # type: ignore[misc]
    """`network`, the model of transformers (for `save_pretrained`), called as all 2D networks are."""

    def __init__(self, network: EomtForUniversalSegmentation) -> None:
        super().__init__()
        self.network = network
        # A new network holds 1: exported, it would mask its attention. Released weights hold 0, masks annealed away.
        network.attn_mask_probs.zero_()

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, C, H/4, W/4) of images (B, 3, H, W) from `images.normalize`, H = W = the size of the weights.

        z_c(x) = log(S_c(x) + 1e-6), S_c(x) = Σ_q softmax(class_q)_c · sigmoid(mask_q(x)) over the queries q, where the
        softmax includes "no object". Cross-entropy and KL normalise S over the classes.

        Raises:
            UserError: images of another size, to which the position embeddings do not fit.
        """
        size = self.network.config.image_size
        if image.shape[-2:] != (size, size):
            raise UserError(
                f"EoMT: images of {image.shape[-1]}×{image.shape[-2]} pixels, but its weights take {size}×{size} only; "
                f"set augment.crop and evaluate.window to [{size}, {size}]"
            )
        masks, classes = self._queries(image)
        with torch.autocast(image.device.type, enabled=False):  # 1e-6 is nothing in half precision
            share = at_least_float32(classes).softmax(-1)[..., :-1]
            return torch.einsum("bqc,bqhw->bchw", share, at_least_float32(masks).sigmoid()).add(_EPSILON).log()

    def _queries(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mask logits (B, Q, H/4, W/4) and class logits (B, Q, C + 1) of the last layer.

        The network's own `forward` does the same, but in training also predicts masks before each of the last layers
        and builds attention masks, hundreds of megabytes, that then mask nothing.
        """
        network = self.network
        tokens = network.embeddings(image)
        first = len(network.layers) - network.config.num_blocks
        for number, layer in enumerate(network.layers):
            if number == first:
                queries = network.query.weight.expand(len(image), -1, -1)
                tokens = torch.cat((queries, tokens), 1)
            tokens = layer(tokens, None)
        masks, classes = network.predict(network.layernorm(tokens))
        return masks, classes


def eomt(name: str, classes: Sequence[str]) -> EoMT:
    """An EoMT for these classes (names by train id), in training mode.

    Args:
        name: a hub id such as "tue-mps/ade20k_semantic_eomt_large_512" (trained on dense labels of ADE20K), a local
            folder, or "random:eomt-tiny", which takes 64 × 64 pixels and is for tests.
        classes: names by train id; they become the network's id2label.

    Raises:
        UserError: weights that are not there or not EoMT's.
    """
    from transformers import EomtConfig, EomtForUniversalSegmentation

    if name != RANDOM:
        # The library's own loss, not used here, has a weight per class too.
        by_class = ("class_predictor.", "criterion.empty_weight")
        model = EoMT(load_pretrained(EomtForUniversalSegmentation, name, classes, by_class))
        model.train()
        return model
    config = EomtConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_blocks=2,
        num_queries=8,
        image_size=64,
        id2label=dict(enumerate(classes)),
        label2id={label: number for number, label in enumerate(classes)},
    )
    return EoMT(EomtForUniversalSegmentation(config))
