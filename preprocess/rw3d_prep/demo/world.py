"""The plan of a street: what stands and moves where, drawn once per sequence from (seed, sequence)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import objects
from .geometry import RNG, Arc, Builder, Mesh, Shape, blob, box, join, leaves, moved, strip
from .materials import (
    GROUND,
    LANES,
    ROAD,
    SIDEWALK,
    TERRAIN,
    VEGETATION,
    WALL,
    foliage,
    ground,
    masonry,
    material,
)  # fmt: skip
from .shading import LIGHT

F64 = npt.NDArray[np.float64]
START, AHEAD = -25.0, 110.0  # metres of street before the first and after the last camera


@dataclass(frozen=True)
class Street:
    """What a sequence looks like as a whole."""

    arc: Arc
    half_width: float  # of the road, metres
    parking: float  # width of the parking lane on either side, 0 = none
    sidewalk: float
    tint: F64  # (3,) factor on all greens
    length: float
    light: npt.NDArray[np.void]  # (1,) LIGHT
    exposure: float


@dataclass(frozen=True)
class Mover:
    """A thing that moves at constant speed; `at(time)` is where it is."""

    kind: str
    seed: tuple[int, ...]
    s: float
    d: float
    speed: tuple[float, float]  # along s and d, m/s
    yaw: float

    def at(self, time: float) -> tuple[float, float]:
        """Where it is after `time` seconds, as s and d."""
        return self.s + self.speed[0] * time, self.d + self.speed[1] * time


def generator(*key: int) -> RNG:
    """The random stream of one thing, the same in whatever process and order it is drawn."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def plan_street(seed: int, sequence: int, drive: float) -> Street:
    """Draw the street of a sequence along which the car drives `drive` metres."""
    rng = generator(seed, sequence, 1)
    parking = 2.1 if rng.random() < 0.65 else 0.0
    return Street(
        arc=Arc(rng.choice([-1, 1]) / (rng.uniform(150, 700) + drive)),
        half_width=rng.uniform(3.2, 4.0) + parking,
        parking=parking,
        sidewalk=rng.uniform(2.2, 3.8),
        tint=np.array([rng.uniform(0.8, 1.9), rng.uniform(0.85, 1.15), rng.uniform(0.6, 1.4)]),
        length=drive + AHEAD,
        light=_plan_light(rng),
        exposure=rng.uniform(0.85, 1.15),
    )


def _plan_light(rng: RNG) -> npt.NDArray[np.void]:
    light = np.zeros(1, LIGHT)
    cloud = rng.choice([0.1, 0.3, 0.5, 0.85])
    height, azimuth = np.radians(rng.uniform(22, 60)), rng.uniform(0, 2 * np.pi)
    light["sun"] = [np.cos(height) * np.cos(azimuth), np.cos(height) * np.sin(azimuth), np.sin(height)]
    warmth = np.array([1.0, 0.93 - 0.12 * np.cos(height), 0.84 - 0.3 * np.cos(height)])
    light["sun_colour"] = warmth * (2.1 if cloud < 0.6 else 0.5)
    blue, grey = np.array([0.30, 0.48, 0.85]), np.array([0.78, 0.80, 0.84])
    light["zenith"] = (blue + (grey - blue) * min(1.0, cloud * 1.1)) * (0.85 if cloud < 0.6 else 1.1)
    light["horizon"] = np.array([0.88, 0.92, 0.97]) * rng.uniform(0.9, 1.05)
    light["cloud"], light["cloud_offset"], light["haze"] = cloud, rng.uniform(0, 30), 1 / rng.uniform(250, 900)
    return light


def build_static(street: Street, seed: int, sequence: int) -> Mesh:
    """All that stands still, in street coordinates."""
    rng = generator(seed, sequence, 2)
    builder = Builder(street.arc)
    span = (START, street.length)
    zebra = rng.uniform(12, 40) if rng.random() < 0.6 else -1e3
    option = [street.half_width, zebra, rng.choice([0.0, 6.0, 9.0]), rng.uniform(-0.9, -0.1), street.parking, 0]
    kind = rng.choice(["asphalt", "asphalt", "old asphalt", "cobbles", "concrete", "pavers"])
    builder.add_bent(
        strip(span, (-street.half_width, street.half_width), (0, 0)), ground(rng, ROAD, kind, LANES, option)
    )
    far = material(rng, TERRAIN, np.array([0.12, 0.14, 0.05]) * street.tint, amplitude=0.7, stain=0.5)
    builder.add_bent(strip((START - 60, street.length + 90), (-120, 120), (-0.06, -0.06), 10), far)
    # Fields as far as 2 km, so that what lies below the horizon is ground and what is labelled sky is sky.
    builder.add(strip((-2000, 2000), (-2000, 2000), (0, 0), 250), far, s=0, d=0, z=-0.4)
    for side in (1, -1):
        _side(builder, rng, street, side)
    _horizon(builder, rng, street)
    return builder.mesh()


def _side(builder: Builder, rng: RNG, street: Street, side: int) -> None:
    """One side of the street from the kerb outwards, lot after lot."""
    kind, gutter = rng.choice(list(GROUND)), rng.choice(["concrete", "cobbles"])
    verge = rng.uniform(1.0, 1.8) if rng.random() < 0.55 else 0.0
    inner = street.half_width
    outer = inner + verge + street.sidewalk
    s = START
    while s < street.length:
        length = rng.uniform(9, 20)
        lot = rng.choice(["front", "garden", "green", "yard", "side street"], p=[0.26, 0.33, 0.18, 0.16, 0.07])
        end = s + length
        if lot == "side street":
            end = s + 7
            flat = strip((s, end), tuple(sorted((side * inner, side * 70))), (0.005, 0.005))  # type: ignore[arg-type]
            builder.add_bent(flat, ground(rng, ROAD, rng.choice(list(GROUND))))
        else:
            _pavement(builder, rng, street, (s, end), side, verge, kind, gutter)
            _lot(builder, rng, street, lot, (s, end), side, outer)
            _furniture(builder, rng, street, (s, end), side, verge)
        s = end


def _sheet(s: tuple[float, float], side: int, d: tuple[float, float], z: tuple[float, float]) -> Shape:
    """A ribbon from d[0] outwards to d[1] on either side of the street, facing up."""
    return strip(s, (d[0], d[1]), z) if side > 0 else strip(s, (-d[1], -d[0]), z[::-1])


def _pavement(
    builder: Builder, rng: RNG, street: Street, s: tuple[float, float], side: int, verge: float, kind: str, gutter: str
) -> None:
    inner, z = street.half_width, 0.13
    kerb = ground(rng, SIDEWALK, gutter)
    builder.add_bent(_sheet(s, side, (inner - 0.001, inner), (0, z)), kerb)
    builder.add_bent(_sheet(s, side, (inner, inner + 0.15), (z, z)), kerb)
    if verge:
        grass = foliage(rng, TERRAIN, street.tint)
        builder.add_bent(_sheet(s, side, (inner + 0.15, inner + verge), (z, z + 0.02)), grass)
    builder.add_bent(
        _sheet(s, side, (inner + max(verge, 0.15), inner + verge + street.sidewalk), (z, z)),
        ground(rng, SIDEWALK, kind),
    )
    if street.parking and rng.random() < 0.6:
        x = s[0] + rng.uniform(2.5, 4)
        while x < s[1] - 2.2:
            objects.car(builder, rng, x, side * (inner - 1.0 + rng.normal() * 0.06), 0 if side < 0 else np.pi)
            x += rng.uniform(5.3, 11)


def _lot(builder: Builder, rng: RNG, street: Street, lot: str, s: tuple[float, float], side: int, outer: float) -> None:
    middle, length = (s[0] + s[1]) / 2, s[1] - s[0]
    yard = foliage(rng, TERRAIN, street.tint) if rng.random() < 0.8 else ground(rng, SIDEWALK, "slabs")
    builder.add_bent(_sheet(s, side, (outer, outer + 28), (0.125, 0.125)), yard)
    if lot == "front":
        objects.house(builder, rng, middle, side * outer, length + 0.05, rng.uniform(8, 12), -side)
        return
    _boundary(builder, rng, street, s, side * (outer + 0.2), tall=lot == "yard")
    if lot == "garden":
        back = outer + rng.uniform(4, 8)
        objects.house(builder, rng, middle, side * back, length * rng.uniform(0.6, 0.85), rng.uniform(8, 11), -side)
        depth = back - outer
    else:
        depth = 16.0
    for _ in range({"garden": 2, "green": 5, "yard": 3}[lot]):
        at, d = rng.uniform(s[0] + 1, s[1] - 1), outer + 1 + rng.uniform(0.1, 0.8) * depth
        if rng.random() < 0.6:
            objects.tree(builder, rng, at, side * d, street.tint, rng.uniform(4, 11))
        else:
            objects.bush(builder, rng, at, side * d, street.tint, rng.uniform(1.5, 3.5))


def _boundary(builder: Builder, rng: RNG, street: Street, s: tuple[float, float], d: float, tall: bool) -> None:
    """What separates a lot from the sidewalk: a wall, a fence, a hedge or nothing; with a gap for the gate."""
    gate = rng.uniform(s[0] + 2, s[1] - 4)
    kind = rng.choice(["wall", "fence", "hedge", "none"], p=[0.5, 0.35, 0.15, 0] if tall else [0.24, 0.46, 0.22, 0.08])
    height = rng.uniform(1.7, 2.6) if tall else rng.uniform(0.7, 1.5)
    stuff = masonry(rng, WALL)
    coping = masonry(rng, WALL)
    for a, b in ((s[0], gate), (gate + 2.2, s[1])):
        x = np.arange(a + 0.5, b, 1.0)
        if kind == "wall" and len(x):
            builder.add_bent(join(*[moved(box(1.0, 0.3, height), at, d) for at in x]), stuff)
            builder.add_bent(join(*[moved(box(1.0, 0.4, 0.1), at, d, height) for at in x]), coping)
        elif kind == "fence":
            objects.fence(builder, rng, (a, b), d)
        elif kind == "hedge" and len(x):
            radii = np.array([0.85, 0.5, height * 0.62])
            clumps = [moved(blob(radii, rng, 0.1, 2), at, d, height * 0.5) for at in x]
            twigs = [moved(leaves(radii, 60, 0.07, rng), at, d, height * 0.5) for at in x]
            builder.add_bent(join(*clumps, *twigs), foliage(rng, VEGETATION, street.tint))


def _furniture(builder: Builder, rng: RNG, street: Street, s: tuple[float, float], side: int, verge: float) -> None:
    """Lamps, signs, trees, bins and people who stand on the sidewalk."""
    kerb = street.half_width + 0.45
    x = s[0] + rng.uniform(0.5, 3)
    while x < s[1] - 0.5:
        thing = rng.choice(["lamp", "sign", "tree", "bin", "none"], p=[0.3, 0.36, 0.16, 0.08, 0.1])
        if thing == "lamp":
            objects.lamp(builder, rng, x, side * kerb)
        elif thing == "sign":
            objects.sign(builder, rng, x, side * kerb, 1 if side < 0 or rng.random() < 0.5 else -1)
        elif thing == "tree":
            objects.tree(builder, rng, x, side * (kerb + verge * 0.2), street.tint, rng.uniform(4.5, 8))
        elif thing == "bin":
            objects.dustbin(builder, rng, x, side * (kerb + 0.3), 0.13)
        x += rng.uniform(3, 7)


def _horizon(builder: Builder, rng: RNG, street: Street) -> None:
    """Houses and trees that close the view at the end of the street and behind the lots."""
    for d in np.arange(-60.0, 61.0, 15.0).tolist():
        if rng.random() < 0.5:
            objects.house(builder, rng, street.length + 35, d, 14, 10, -1)
        else:
            objects.tree(builder, rng, street.length + 25, d, street.tint, rng.uniform(9, 15))
    for s in np.arange(START, street.length + 20, 11.0).tolist():
        for side in (-1, 1):
            d = side * (street.half_width + 34 + rng.uniform(0, 12))
            objects.tree(builder, rng, s, d, street.tint, rng.uniform(8, 15))


def plan_movers(street: Street, seed: int, sequence: int, speed: float) -> list[Mover]:
    """Cars that drive and people who walk, with their places at time 0; `speed` (m/s) is the recording car's."""
    rng = generator(seed, sequence, 3)
    lane = (street.half_width - street.parking) / 2
    ahead, alike = rng.uniform(16, 26), speed * rng.uniform(0.95, 1.05)
    movers = [Mover("car", (seed, sequence, 4, 0), ahead, -lane, (alike, 0), 0.0)]
    s = rng.uniform(10, 30)
    for k in range(1, 5):
        movers.append(Mover("car", (seed, sequence, 4, k), s, lane, (-rng.uniform(6, 11), 0), np.pi))
        s += rng.uniform(14, 40)
    for k in range(int(street.length / 3.5)):
        side = rng.choice([-1, 1])
        d = side * (street.half_width + rng.uniform(0.7, street.sidewalk + 0.3))
        pace, way = rng.uniform(0.8, 1.7) * (rng.random() < 0.85), rng.choice([-1, 1])
        at = rng.uniform(2, street.length - 30)
        yaw = rng.uniform(0, 6.3) if pace == 0 else (0.0 if way > 0 else np.pi)
        movers.append(Mover("person", (seed, sequence, 5, k), at, d, (way * pace, 0), yaw))
    for k in range(3):  # across the road, well ahead of the car
        way = rng.choice([-1, 1])
        at, d = rng.uniform(34, 55), -way * rng.uniform(0, street.half_width)
        movers.append(Mover("person", (seed, sequence, 6, k), at, d, (0, way * 1.3), way * np.pi / 2))
    return movers


def build_movers(street: Street, movers: list[Mover], time: float, view: tuple[float, float]) -> Mesh:
    """What moves, where it is after `time` seconds, as far as that is in `view`, a range of metres along the street."""
    builder = Builder(street.arc)
    for mover in movers:
        (s, d) = mover.at(time)
        if not view[0] < s < view[1]:
            continue
        rng = generator(*mover.seed)
        if mover.kind == "car":
            objects.car(builder, rng, s, d, mover.yaw)
            continue
        z = 0.13 if abs(d) > street.half_width else 0.0
        stride = rng.uniform(0.5, 6.3) + 7.5 * time if any(mover.speed) else 0.0
        objects.person(builder, rng, s, d, z, mover.yaw, stride)
    return builder.mesh()
