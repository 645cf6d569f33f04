"""The things of a street, each put into a Builder at (s, d): s metres along the street, d metres left of its middle."""

from __future__ import annotations

import numpy as np

from .geometry import RNG, Builder, Shape, blob, box, facets, gable, join, leaves, loft, moved, swung, tube
from .materials import (
    BIN,
    BRICK,
    BRICKS,
    BUILDING,
    CABIN,
    CAR,
    CLOTHES,
    FACE,
    FENCE,
    METALS,
    PAINTS,
    PERSON,
    PLANK,
    POLE,
    SIGN,
    SKINS,
    VEGETATION,
    WINDOWS,
    WOODS,
    foliage,
    masonry,
    material,
    pick,
)  # fmt: skip


def car(builder: Builder, rng: RNG, s: float, d: float, yaw: float = 0.0) -> None:
    """A hatchback, saloon, estate or van with its nose at +x."""
    kind = rng.choice(["hatch", "saloon", "estate", "van"], p=[0.35, 0.25, 0.25, 0.15])
    length = {"hatch": 3.9, "saloon": 4.6, "estate": 4.5, "van": 4.9}[kind] * rng.uniform(0.95, 1.05)
    belt, roof = (1.15, 2.05) if kind == "van" else (rng.uniform(0.88, 0.98), rng.uniform(1.42, 1.56))
    half = 0.88 if kind != "van" else 0.97
    rear, front = -length / 2, length / 2
    body = loft(
        [rear, rear + 0.12, rear + 0.7, 0, front - 1.1, front - 0.25, front],
        np.array([0.86, 0.96, 1, 1, 0.99, 0.93, 0.8]) * half,
        [0.42, 0.3, 0.2, 0.2, 0.2, 0.28, 0.38],
        [belt - 0.12, belt, belt + 0.02, belt, belt - 0.03, belt - 0.17, belt - 0.3],
    )
    tail = {"hatch": 0.1, "saloon": 0.85, "estate": 0.05, "van": 0.02}[kind]
    nose = 0.75 if kind == "van" else 1.15
    cabin = loft(
        [rear + tail, rear + tail + 0.4, -0.2, front - nose - 0.75, front - nose],
        np.array([0.82, 0.84, 0.86, 0.84, 0.9]) * half,
        belt - 0.1,
        [belt + 0.12, roof - 0.04, roof, roof - 0.05, belt],
    )
    paint = material(rng, CAR, pick(rng, PAINTS), frequency=6, amplitude=0.25, gloss=0.05, stain=0.12)
    glazed = paint.copy()
    glazed["overlay"], glazed["option"] = CABIN, [belt + 0.05, roof - 0.09, -0.25, rng.uniform(0.9, 1.2), 0, 0]
    rubber = material(rng, CAR, (0.03, 0.03, 0.03))
    metal = material(rng, CAR, (0.35, 0.35, 0.36), frequency=9)
    wheel_x = (front - 0.8, rear + 0.75)
    wheels = [tube([x, y - 0.1, 0.31], [x, y + 0.1, 0.31], 0.32) for x in wheel_x for y in (half - 0.1, 0.1 - half)]
    hubs = [tube([x, y - 0.02, 0.31], [x, y + 0.02, 0.31], 0.19) for x in wheel_x for y in (half + 0.01, -half - 0.01)]
    under = moved(box(length - 0.9, 2 * half - 0.25, 0.25), z=0.12)
    lamps = [moved(box(0.1, 0.32, 0.13), front - 0.09, y, belt - 0.36) for y in (half - 0.3, 0.3 - half)]
    tails = [moved(box(0.1, 0.2, 0.3), rear + 0.02, y, belt - 0.42) for y in (half - 0.2, 0.2 - half)]
    plates = [moved(box(0.03, 0.5, 0.11), x, 0, 0.5) for x in (rear - 0.01, front + 0.01)]
    mirrors = [moved(box(0.12, 0.2, 0.14), front - nose - 0.45, y, belt) for y in (half + 0.08, -half - 0.08)]
    for shape, stuff in (
        (join(body, *mirrors), paint), (cabin, glazed), (join(under, *wheels), rubber), (join(*hubs), metal),
        (join(*lamps, *plates), material(rng, CAR, (0.6, 0.6, 0.57), gloss=0.05)),
        (join(*tails), material(rng, CAR, (0.35, 0.02, 0.02), gloss=0.05)),
    ):  # fmt: skip
        builder.add(shape, stuff, s, d, 0.0, yaw)


def person(builder: Builder, rng: RNG, s: float, d: float, z: float, yaw: float, stride: float) -> None:
    """Somebody facing +x whose legs and arms are at phase `stride` (radians; 0 stands still)."""
    tall, wide = rng.uniform(0.92, 1.08), rng.uniform(0.9, 1.25)
    top = material(rng, PERSON, pick(rng, CLOTHES), frequency=4, amplitude=0.5)
    trousers = material(rng, PERSON, pick(rng, CLOTHES), frequency=4, amplitude=0.5)
    skin = material(rng, PERSON, pick(rng, SKINS), frequency=6, amplitude=0.25)
    hair = material(rng, PERSON, (0.07, 0.05, 0.03) if rng.random() < 0.7 else pick(rng, CLOTHES), frequency=8)
    long_coat = rng.random() < 0.35
    swing = 0.5 * np.sin(stride)
    legs = []
    for side, angle in ((0.1, swing), (-0.1, -swing)):
        leg = join(
            tube([0, side * wide, 0.86], [0.02, side * wide, 0.08], 0.1, 0.065),
            moved(box(0.27, 0.1, 0.09), 0.06, side * wide),
        )
        legs.append(swung(leg, angle, 0.86))
    arms = [
        swung(tube([0, y * wide, 1.42], [0.05, y * wide * 1.15, 0.82], 0.065, 0.05), -angle, 1.42)
        for y, angle in ((0.21, swing), (-0.21, -swing))
    ]
    trunk = join(
        moved(blob([0.145 * wide, 0.215 * wide, 0.4], subdivisions=2), z=1.13),
        tube([0, -0.23 * wide, 1.4], [0, 0.23 * wide, 1.4], 0.085),
    )
    parts: list[tuple[Shape, np.ndarray]] = [(join(*legs), trousers), (join(trunk, *arms), top)]
    if long_coat:
        parts.append((tube([0, 0, 1.1], [0, 0, 0.55], 0.19 * wide, 0.24 * wide), top))
    parts.append((moved(blob([0.1, 0.085, 0.13], subdivisions=1), 0.02, 0, 1.64), skin))
    parts.append((moved(blob([0.105, 0.1, 0.1], subdivisions=1), -0.02, 0, 1.7), hair))
    if rng.random() < 0.4:
        bag = material(rng, PERSON, pick(rng, CLOTHES), frequency=5, amplitude=0.5)
        parts.append((moved(blob([0.12, 0.16, 0.24], rng, 0.1, 1), -0.2, 0, 1.2), bag))
    for shape, stuff in parts:
        scaled = shape._replace(vertices=shape.vertices * tall)
        builder.add(scaled, stuff, s, d, z, yaw)


def tree(builder: Builder, rng: RNG, s: float, d: float, tint: np.ndarray, height: float) -> None:
    """A trunk with a few boughs, and a crown of clumps under loose leaves."""
    radius = 0.02 * height * rng.uniform(0.8, 1.4) + 0.04
    fork, spread = height * rng.uniform(0.28, 0.42), height * rng.uniform(0.2, 0.32)
    lean = rng.normal(size=2) * 0.04 * height
    bark = material(rng, VEGETATION, (0.14, 0.10, 0.075), frequency=3, amplitude=0.7)
    wood = [tube([0, 0, -0.1], [lean[0], lean[1], fork], radius * 1.2, radius * 0.8)]
    crowns, outer = [], []
    for _ in range(rng.integers(4, 7)):
        centre = np.array(
            [*(lean + rng.normal(size=2) * spread * 0.5), rng.uniform(fork * 1.15, height - spread * 0.5)]
        )
        wood.append(tube([lean[0], lean[1], fork * 0.95], centre, radius * 0.5, radius * 0.2))
        size = spread * rng.uniform(0.45, 0.75, 3)
        crowns.append(moved(blob(size * 0.82, rng, 0.22, 2), *centre))
        outer.append(moved(leaves(size, 190, 0.09 + 0.012 * height, rng), *centre))
    builder.add(join(*wood), bark, s, d)
    builder.add(join(*crowns), foliage(rng, VEGETATION, tint * 0.75), s, d)
    builder.add(join(*outer), foliage(rng, VEGETATION, tint), s, d)


def bush(builder: Builder, rng: RNG, s: float, d: float, tint: np.ndarray, size: float) -> None:
    """A shrub as wide as high."""
    radii = size * rng.uniform(0.35, 0.6, 3)
    shape = join(blob(radii, rng, 0.2, 2), leaves(radii * 1.05, 170, 0.08, rng))
    builder.add(moved(shape, z=radii[2] * 0.8), foliage(rng, VEGETATION, tint), s, d)


def lamp(builder: Builder, rng: RNG, s: float, d: float) -> None:
    """A street lamp that reaches over the road."""
    height, reach = rng.uniform(5, 8), rng.uniform(0.6, 1.6) * -np.sign(d)
    metal = material(rng, POLE, pick(rng, METALS), frequency=3, amplitude=0.5)
    radius = rng.uniform(0.08, 0.13)
    post = tube([0, 0, -0.1], [0, 0, height], radius, radius * 0.7)
    arm = tube([0, 0, height - 0.05], [0, reach, height + 0.25], 0.06)
    foot = tube([0, 0, -0.1], [0, 0, rng.uniform(0.7, 1.2)], radius * 1.5)
    builder.add(join(post, arm, foot, moved(box(0.3, 0.75, 0.14), 0, reach, height + 0.2)), metal, s, d)


def sign(builder: Builder, rng: RNG, s: float, d: float, facing: float) -> None:
    """A traffic sign on its post; facing +1 for drivers going along +s, −1 for those who come back."""
    metal = material(rng, POLE, pick(rng, METALS), frequency=3, amplitude=0.5)
    kind, low = int(rng.integers(4)), rng.uniform(2.0, 2.5)
    radius = rng.uniform(0.36, 0.5)
    colours = (
        (0.6, 0.6, 0.58),
        (0.6, 0.6, 0.58),
        (0.6, 0.6, 0.58),
        ((0.62, 0.42, 0.03), (0.6, 0.6, 0.58), (0.03, 0.12, 0.4))[rng.integers(3)],
    )
    plate = material(
        rng, SIGN, colours[kind], frequency=3, amplitude=0.28, gloss=0.03, overlay=FACE,
        option=[kind, radius, 0, 0, 0, 0], stain=0.15,
    )  # fmt: skip
    if kind == 3:
        shape = moved(box(0.05, rng.uniform(1.1, 1.9), rng.uniform(0.7, 1.1)), z=-0.4)
    elif kind == 2:
        turn = np.array([[1, 0, 0], [0, 0.7071, -0.7071], [0, 0.7071, 0.7071]])
        square = moved(box(0.04, 1.7 * radius, 1.7 * radius), z=-0.85 * radius)
        shape = Shape(square.vertices @ turn.T, square.normals @ turn.T, square.triangles)
    else:
        shape = tube([-0.02, 0, 0], [0.02, 0, 0], radius)
    yaw = rng.normal() * 0.08 + (0 if facing > 0 else np.pi)
    height = low + 2 * radius + 0.15
    builder.add(tube([0, 0, -0.1], [0, 0, height], rng.uniform(0.05, 0.07)), metal, s, d)
    builder.add(moved(shape, -0.09), plate, s, d, low + radius, yaw)


def dustbin(builder: Builder, rng: RNG, s: float, d: float, z: float) -> None:
    """A wheeled dustbin: a class that no evaluation counts."""
    paint = material(rng, BIN, ((0.06, 0.07, 0.07), (0.35, 0.3, 0.03), (0.05, 0.09, 0.2))[rng.integers(3)], frequency=3)
    builder.add(join(box(0.55, 0.5, 0.95), moved(box(0.62, 0.56, 0.1), z=0.95)), paint, s, d, z, rng.normal() * 0.3)


def house(builder: Builder, rng: RNG, s: float, d: float, length: float, depth: float, facing: float) -> None:
    """A house whose front is at d; it extends `depth` away from the street. `facing` is +1 right, −1 left of it."""
    floors, floor = int(rng.integers(2, 5)), rng.uniform(2.7, 3.2)
    height = floors * floor + 0.3
    wide = rng.uniform(0.9, 1.5)
    columns = max(2, round(length / rng.uniform(2.1, 3.2)))
    option = [length / columns, floor, wide, rng.uniform(1.2, 1.7), 0.95, height - 0.3]
    # Window columns are counted from the middle: an odd number of them needs a shift by half a cell.
    shift = 0.5 * length / columns * (columns % 2)
    middle = d - facing * depth / 2
    wall = masonry(rng, BUILDING, WINDOWS, option)
    builder.add(moved(box(length, depth, height), shift), wall, s - shift, middle)
    if rng.random() < 0.75:
        tiles = material(
            rng,
            BUILDING,
            pick(rng, BRICKS) if rng.random() < 0.6 else (0.16, 0.16, 0.17),
            structure=BRICK,
            cell=(0.3, 0.35),
        )
        roof = gable(length + 0.5, depth + 0.9, rng.uniform(2.2, 4.0))
        builder.add(roof, tiles, s, middle, height)
        builder.add(box(0.6, 0.6, 3.8), masonry(rng, BUILDING), s + rng.uniform(-0.3, 0.3) * length, middle, height)
    else:
        builder.add(box(length + 0.3, depth + 0.3, 0.45), material(rng, BUILDING, (0.3, 0.3, 0.3)), s, middle, height)
    _trimmings(builder, rng, s, d, length, floors, floor, facing)


def _trimmings(
    builder: Builder, rng: RNG, s: float, d: float, length: float, floors: int, floor: float, facing: float
) -> None:
    """Gutter, downpipe, balconies or a shop's awning on the front of a house."""
    dark = material(rng, BUILDING, pick(rng, METALS))
    builder.add(tube([-length / 2, 0, 0], [length / 2, 0, 0], 0.09), dark, s, d + facing * 0.1, floors * floor + 0.2)
    x = length / 2 - 0.15
    builder.add(tube([x, 0, 0], [x, 0, floors * floor + 0.2], 0.06), dark, s, d + facing * 0.07)
    if rng.random() < 0.45:
        rail = material(rng, BUILDING, pick(rng, METALS + PAINTS), structure=PLANK, cell=(0.12, 0.12))
        at = rng.uniform(-0.3, 0.3) * length
        for storey in range(1, floors):
            slab = join(
                box(2.6, 1.1, 0.15),
                moved(box(2.6, 0.06, 1.0), 0, facing * 0.52),
                moved(box(0.06, 1.1, 1.0), 1.27),
                moved(box(0.06, 1.1, 1.0), -1.27),
            )
            builder.add(slab, rail, s + at, d + facing * 0.55, storey * floor + 0.1)
    elif rng.random() < 0.4:
        cloth = material(rng, BUILDING, pick(rng, CLOTHES), structure=PLANK, cell=(0.3, 0.3))
        w = length * 0.32
        y = facing * 1.3
        corners = [[-w, 0, 2.9], [w, 0, 2.9], [w, y, 2.3], [-w, y, 2.3], [w, y, 2.05], [-w, y, 2.05]]
        builder.add(facets(corners, [[0, 1, 2], [0, 2, 3], [3, 2, 4], [3, 4, 5]]), cloth, s, d)


def fence(builder: Builder, rng: RNG, s: tuple[float, float], d: float) -> None:
    """Boards or bars between posts, with gaps that one can see through where the bars are wide apart."""
    wooden = rng.random() < 0.65
    stuff = material(
        rng, FENCE, pick(rng, WOODS if wooden else METALS), structure=PLANK, cell=(0.14, 0.14), amplitude=0.55
    )
    height = rng.uniform(1.0, 1.8)
    pitch, broad = (rng.uniform(0.15, 0.24), 0.12) if wooden else (0.18, 0.07)
    x = np.arange(s[0], s[1], pitch)
    bars = [moved(box(broad, 0.03, height * (1 if not wooden else rng.uniform(0.96, 1.04))), a, d, 0.06) for a in x]
    posts = [moved(box(0.12, 0.12, height + 0.1), a, d) for a in np.arange(s[0], s[1], 2.4)]
    rails = [moved(box(pitch, 0.05, 0.1), a + pitch / 2, d + 0.03, z) for a in x for z in (0.22, height - 0.28)]
    plinth = [moved(box(pitch, 0.16, 0.2), a + pitch / 2, d) for a in x] if rng.random() < 0.5 else []
    builder.add_bent(join(*bars, *posts, *rails, *plinth), stuff)
