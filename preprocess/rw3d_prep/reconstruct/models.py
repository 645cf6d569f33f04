"""The models that MapAnything's package serves: licence of their weights, what they take, and what their results mean.

Licences, normalisations and confidences are as the authors' model cards and code state them in 2025; hashes are those
that several public projects recorded. docs/mapanything.md says how to check them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from rw3d_common.errors import UserError

Network = Literal["mapanything", "vggt", "pi3", "pi3x", "da3"]
LicencePolicy = Literal["any", "commercial"]
COMMERCIAL_LICENCES = frozenset({"Apache-2.0"})
COMMERCIAL_MODEL = "facebook/map-anything-apache"
FROM_ONE = "1 + exp(.), from 1 to infinity"
LOGIT = "logit, any real number"


class Model(NamedTuple):
    """A published set of weights.

    `revision` is its hub commit and `sha256` that of its model.safetensors, None where this version pins none;
    `network` is the name of its architecture in the package; `resolution` the longest side of its training grids in
    pixels; `metric` says whether its world is in metres; `confidence` what its raw confidence is.
    """

    licence: str
    revision: str | None = None
    sha256: str | None = None
    network: Network = "mapanything"
    normalisation: Literal["dinov2", "identity"] = "dinov2"
    resolution: int = 518
    metric: bool = True
    confidence: str = FROM_ONE


def _depth_anything(licence: str, metric: bool = False) -> Model:
    return Model(licence, network="da3", resolution=504, metric=metric)


KNOWN = {
    "facebook/map-anything": Model(
        "CC-BY-NC-4.0",
        "a1d87e9086706fb9974f3be5a3e3a0ca5401c5aa",
        "981f060c64664dff3272b5f5a823d350abe71a2f144444db4cfc325f3ed5a3a0",
    ),
    "facebook/map-anything-apache": Model(
        "Apache-2.0",
        "00f9c245bbcb60522d1ed7f9e9d88462c6e3f38a",
        "fa06c0fdccefc5048e072c85935d5789b1e36b307f3859033c17f9dcb9fd5201",
    ),
    "facebook/map-anything-v1": Model("CC-BY-NC-4.0"),
    "facebook/map-anything-apache-v1": Model("Apache-2.0"),
    "facebook/VGGT-1B": Model("CC-BY-NC-4.0", network="vggt", normalisation="identity", metric=False),
    "yyfz233/Pi3": Model("CC-BY-NC-4.0", network="pi3", normalisation="identity", metric=False, confidence=LOGIT),
    "yyfz233/Pi3X": Model("CC-BY-NC-4.0", network="pi3x", normalisation="identity", confidence=LOGIT),
    "depth-anything/DA3NESTED-GIANT-LARGE-1.1": _depth_anything("CC-BY-NC-4.0", metric=True),
    "depth-anything/DA3-GIANT-1.1": _depth_anything("CC-BY-NC-4.0"),
    "depth-anything/DA3-LARGE-1.1": _depth_anything("CC-BY-NC-4.0"),
    "depth-anything/DA3-BASE": _depth_anything("Apache-2.0"),
    "depth-anything/DA3-SMALL": _depth_anything("Apache-2.0"),
}
UNKNOWN = Model("unknown")  # weights of somebody's own are taken for MapAnything's architecture


def model_of(name: str) -> Model:
    """The facts of the model with this hub name; an unlisted one is MapAnything's architecture of unknown licence."""
    return KNOWN.get(name, UNKNOWN)


def refuse_licence(name: str, policy: LicencePolicy) -> None:
    """Hold the model with this hub name against `policy`; nothing is loaded for that.

    Raises:
        UserError: the policy is "commercial" and the weights' licence forbids commercial use or is not known.
    """
    licence = model_of(name).licence
    if policy == "commercial" and licence not in COMMERCIAL_LICENCES:
        raise UserError(
            f"{name}: its weights have the licence {licence}, which --licence-policy commercial refuses; "
            f"choose --model {COMMERCIAL_MODEL}"
        )
