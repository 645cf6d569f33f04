"""The networks that a run can ask for by name, as keywords of `PointSegmenter`."""

from __future__ import annotations

from typing import Any, Literal

Size = Literal["base", "small", "sonata", "concerto"]

# What Sonata, Concerto and the fine-tuning configurations of both have in common. Samples have no normals: the last three
# of the nine channels (position, colour, normal) are zeros, as in Rewis3d's released configuration with Concerto.
_PRETRAINED: dict[str, Any] = {
    "variant": "m2",
    "in_channels": 9,
    "zero_channels": 3,
    "enc_depths": (3, 3, 3, 12, 3),
    "dec_channels": (64, 96, 192, 384),
    "dec_num_head": (4, 6, 12, 24),
}
SIZES: dict[Size, dict[str, Any]] = {
    "base": {},
    "small": {
        "enc_depths": (1, 1, 1, 1),
        "enc_channels": (16, 32, 64, 96),
        "enc_num_head": (1, 2, 4, 6),
        "enc_patch_size": (128, 128, 128, 128),
        "stride": (2, 2, 2),
        "dec_depths": (1, 1, 1),
        "dec_channels": (32, 32, 64),
        "dec_num_head": (2, 2, 4),
        "dec_patch_size": (128, 128, 128),
        "drop_path": 0.1,
        "recompute": False,  # so small that memory is no reason to compute twice
    },
    "sonata": {**_PRETRAINED, "enc_channels": (48, 96, 192, 384, 512), "enc_num_head": (3, 6, 12, 24, 32)},
    "concerto": {**_PRETRAINED, "enc_channels": (64, 128, 256, 512, 768), "enc_num_head": (4, 8, 16, 32, 48)},
}
