"""What surfaces are made of: one record per placed shape, and families of materials that several classes share.

Sharing is the point: asphalt, concrete and pavers lie on roads and on sidewalks, plaster and brick are on houses and on
garden walls, so a pixel's class cannot be read from its colour alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, SIGN = 7, 8, 11, 12, 13, 17, 20  # raw ids of KITTI-360
VEGETATION, TERRAIN, SKY, PERSON, CAR, BIN = 21, 22, 23, 24, 26, 39

PLAIN, BRICK, TILE, PLANK = range(4)  # structure
NO_OVERLAY, WINDOWS, LANES, CABIN, FACE = range(5)  # overlay

MATERIAL = np.dtype(
    [
        ("label", np.int32),  # raw id
        ("structure", np.int32),
        ("overlay", np.int32),
        ("offset", np.float32),  # of the noise, metres: no two things share a pattern
        ("colour", np.float32, 3),  # linear albedo
        ("stain", np.float32, 3),  # linear albedo that patches tend to
        ("frequency", np.float32),  # cycles per metre of the coarsest octave
        ("amplitude", np.float32),  # of the noise, share of the albedo
        ("cell", np.float32, 2),  # metres, of bricks, tiles and planks
        ("gloss", np.float32),  # reflectance of the sky at normal incidence
        ("option", np.float32, 6),  # meaning depends on the overlay
    ]
)
Material = npt.NDArray[np.void]
RNG = np.random.Generator


def material(
    rng: RNG,
    label: int,
    colour: npt.ArrayLike,
    *,
    structure: int = PLAIN,
    overlay: int = NO_OVERLAY,
    cell: tuple[float, float] = (1.0, 1.0),
    frequency: float = 4.0,
    amplitude: float = 0.4,
    gloss: float = 0.0,
    option: npt.ArrayLike = 0.0,
    stain: float = 0.3,
) -> Material:
    """One record (1,): the colour varies by draw, its stains are darker or lighter by the share `stain`."""
    record = np.zeros(1, MATERIAL)
    colour = np.clip(np.asarray(colour, np.float64) * rng.normal(1, 0.04, 3) * rng.normal(1, 0.12), 0.01, 0.9)
    other = colour * (1 + stain * rng.choice([-1.0, -1.0, 0.8])) * rng.normal(1, 0.03, 3)
    record["label"], record["structure"], record["overlay"] = label, structure, overlay
    record["offset"], record["colour"], record["stain"] = rng.uniform(0, 50), colour, np.clip(other, 0.005, 0.9)
    record["frequency"], record["amplitude"], record["cell"] = frequency, amplitude, cell
    record["gloss"], record["option"] = gloss, option
    return record


GROUND = {
    "asphalt": ((0.13, 0.13, 0.135), PLAIN, (1.0, 1.0), 0.55),
    "old asphalt": ((0.23, 0.22, 0.21), PLAIN, (1.0, 1.0), 0.5),
    "concrete": ((0.34, 0.33, 0.30), TILE, (3.0, 2.5), 0.4),
    "slabs": ((0.30, 0.29, 0.28), TILE, (0.5, 0.5), 0.4),
    "pavers": ((0.25, 0.22, 0.20), BRICK, (0.24, 0.14), 0.45),
    "red pavers": ((0.28, 0.15, 0.11), BRICK, (0.24, 0.14), 0.45),
    "cobbles": ((0.20, 0.19, 0.19), BRICK, (0.18, 0.16), 0.5),
}
PLASTERS = (
    (0.62, 0.58, 0.50), (0.58, 0.44, 0.24), (0.42, 0.40, 0.38), (0.55, 0.36, 0.28), (0.36, 0.42, 0.46),
    (0.66, 0.65, 0.62), (0.38, 0.44, 0.34),
)  # fmt: skip
BRICKS = ((0.33, 0.14, 0.09), (0.40, 0.25, 0.16), (0.22, 0.15, 0.13), (0.48, 0.42, 0.34))
PAINTS = (
    (0.55, 0.55, 0.55), (0.03, 0.03, 0.035), (0.30, 0.31, 0.33), (0.36, 0.03, 0.03), (0.04, 0.09, 0.26),
    (0.12, 0.12, 0.13), (0.42, 0.36, 0.26), (0.05, 0.16, 0.09), (0.60, 0.60, 0.58),
)  # fmt: skip
CLOTHES = (
    (0.03, 0.03, 0.04), (0.06, 0.09, 0.20), (0.40, 0.06, 0.05), (0.45, 0.40, 0.32), (0.20, 0.20, 0.21),
    (0.10, 0.20, 0.12), (0.55, 0.54, 0.52), (0.50, 0.30, 0.06), (0.22, 0.10, 0.22),
)  # fmt: skip
WOODS = ((0.28, 0.18, 0.10), (0.17, 0.12, 0.09), (0.35, 0.33, 0.30), (0.50, 0.48, 0.44), (0.10, 0.18, 0.11))
METALS = ((0.26, 0.27, 0.28), (0.09, 0.10, 0.10), (0.08, 0.15, 0.11), (0.36, 0.36, 0.35))
SKINS = ((0.45, 0.28, 0.20), (0.30, 0.17, 0.11), (0.16, 0.09, 0.06), (0.52, 0.34, 0.26))


def pick(rng: RNG, palette: tuple[tuple[float, float, float], ...]) -> tuple[float, float, float]:
    """A random colour of a palette."""
    return palette[rng.integers(len(palette))]


def ground(rng: RNG, label: int, kind: str, overlay: int = NO_OVERLAY, option: npt.ArrayLike = 0.0) -> Material:
    """A pavement of the named kind, for a road or a sidewalk alike."""
    colour, structure, cell, amplitude = GROUND[kind]
    return material(
        rng, label, colour, structure=structure, cell=cell, amplitude=amplitude, frequency=5.0,
        overlay=overlay, option=option, stain=0.35,
    )  # fmt: skip


def masonry(rng: RNG, label: int, overlay: int = NO_OVERLAY, option: npt.ArrayLike = 0.0) -> Material:
    """Plaster, brick, blocks or planks, for a house or a garden wall alike."""
    kind = rng.choice(["plaster", "brick", "blocks", "planks"], p=[0.5, 0.27, 0.13, 0.1])
    if kind == "brick":
        return material(
            rng, label, pick(rng, BRICKS), structure=BRICK, cell=(0.26, 0.085), overlay=overlay, option=option
        )
    if kind == "blocks":
        colour, cell = GROUND["concrete"][0], (rng.uniform(0.5, 1.2), rng.uniform(0.25, 0.6))
        return material(rng, label, colour, structure=BRICK, cell=cell, overlay=overlay, option=option)
    if kind == "planks":
        return material(
            rng, label, pick(rng, WOODS), structure=PLANK, cell=(0.18, 0.18), overlay=overlay, option=option
        )
    return material(
        rng, label, pick(rng, PLASTERS), frequency=4, amplitude=0.3, overlay=overlay, option=option, stain=0.2
    )


def foliage(rng: RNG, label: int, tint: npt.NDArray[np.float64]) -> Material:
    """Leaves or grass: strong texture, greens that drift to yellow or brown with the season's `tint` (3,)."""
    return material(rng, label, np.array([0.085, 0.145, 0.035]) * tint, frequency=2.5, amplitude=0.85, stain=0.5)
