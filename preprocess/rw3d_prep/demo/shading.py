"""Compiled per-ray shading: solid noise, bonds of bricks and tiles, windows, lane marks, light, haze and sky.

Detail finer than what one ray covers ("footprint", metres) fades to its mean, as it does in a camera. All of it stays
in one file, because numba's cache notices changes of a function's own file only.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import numba as nb
import numpy as np
import numpy.typing as npt

from .materials import BRICK, CABIN, FACE, LANES, PLAIN, PLANK, VEGETATION, WINDOWS

LIGHT = np.dtype(
    [
        ("sun", np.float32, 3),  # unit vector towards the sun
        ("sun_colour", np.float32, 3),
        ("zenith", np.float32, 3),
        ("horizon", np.float32, 3),
        ("cloud", np.float32),  # 0 clear .. 1 overcast
        ("cloud_offset", np.float32),
        ("haze", np.float32),  # 1/m
    ]
)
SIZE = 32  # of the noise table per axis; it repeats after that many cells
compiled = nb.njit(cache=True, fastmath=True, nogil=True, error_model="numpy")


def noise_table(seed: int) -> npt.NDArray[np.float32]:
    """Random lattice values (SIZE³,) in −1..1."""
    return np.random.default_rng([seed, 77]).uniform(-1, 1, SIZE**3).astype(np.float32)


@compiled
def _noise(table, x, y, z):
    fx, fy, fz = math.floor(x), math.floor(y), math.floor(z)
    x, y, z = x - fx, y - fy, z - fz
    x, y, z = x * x * (3 - 2 * x), y * y * (3 - 2 * y), z * z * (3 - 2 * z)
    mask = SIZE - 1
    x0, y0, z0 = int(fx) & mask, int(fy) & mask, int(fz) & mask
    x1, y1, z1 = (x0 + 1) & mask, ((y0 + 1) & mask) * SIZE, ((z0 + 1) & mask) * SIZE * SIZE
    y0, z0 = y0 * SIZE, z0 * SIZE * SIZE
    a = table[z0 + y0 + x0] * (1 - x) + table[z0 + y0 + x1] * x
    b = table[z0 + y1 + x0] * (1 - x) + table[z0 + y1 + x1] * x
    c = table[z1 + y0 + x0] * (1 - x) + table[z1 + y0 + x1] * x
    d = table[z1 + y1 + x0] * (1 - x) + table[z1 + y1 + x1] * x
    return (a * (1 - y) + b * y) * (1 - z) + (c * (1 - y) + d * y) * z


@compiled
def _fractal(table, x, y, z, frequency, octaves, keep, footprint):
    """Noise of several octaves, each `keep` times as strong as the one before; about −1..1, std about 0.4."""
    total, strength, weight = 0.0, 1.0, 0.0
    for _ in range(octaves):
        visible = min(1.0, 1.6 - 2.4 * frequency * footprint)
        if visible > 0:
            total += strength * visible * _noise(table, x * frequency, y * frequency, z * frequency)
        weight += strength * strength
        strength *= keep
        # A turn between octaves hides the lattice's axes.
        x, y, z = 0.8 * x - 0.6 * y + 3.1, 0.6 * x + 0.8 * y + 7.7, z + 5.3
        frequency *= 2.03
    return total / math.sqrt(weight)


@compiled
def _hash(table, i, j, k):
    """A random number in −1..1 of a cell."""
    return table[(i * 73856093 ^ j * 19349663 ^ int(k * 1000) * 83492791) & (SIZE**3 - 1)]


@compiled
def _bond(table, m, u, v, footprint):
    """Factor on the albedo from joints and from the tint of single bricks, tiles or planks."""
    width, height = m.cell[0], m.cell[1]
    row = math.floor(v / height)
    if m.structure == PLANK:
        row, height = 0, 1e3
    elif m.structure == BRICK:
        u += 0.5 * width * (row % 2)
    column = math.floor(u / width)
    joint = 0.012 + 0.03 * min(width, height, 1.0)
    near = min(u - column * width, v - row * height)
    share = joint * (1 / width + 1 / height)
    sharp = min(1.0, max(0.0, 1.5 - 4 * footprint / min(width, height)))
    inside = 1.0 if near < joint else 0.0
    joints = 1 - 0.5 * (sharp * inside + (1 - sharp) * share)
    return joints * (1 + 0.28 * sharp * _hash(table, column, row, m.offset))


@compiled
def _blend(colour, share, r, g, b):
    colour[0] += (r - colour[0]) * share
    colour[1] += (g - colour[1]) * share
    colour[2] += (b - colour[2]) * share


@compiled
def _windows(table, m, u, v, rough, colour):
    """Windows and doors of a facade; returns the gloss."""
    width, floor = m.option[0], m.option[1]
    column, storey = math.floor(u / width), math.floor(v / floor)
    x, y = abs(u - (column + 0.5) * width), v - storey * floor
    draw = _hash(table, column, storey, m.offset)
    half, low, high = 0.5 * m.option[2], m.option[4], m.option[4] + m.option[3]
    if v < 0.5:
        _blend(colour, 0.5, 0.12, 0.12, 0.12)  # plinth
    door = storey == 0 and draw > 0.55
    if door:
        low, half = 0.0, max(half, 0.55)
    elif draw < -0.86:
        return 0.0  # a blind cell
    if x > half + 0.14 or y < low - 0.1 or y > high + 0.14 or v > m.option[5]:
        return 0.0
    if x > half or y > high or y < low:
        tint = 0.62 if draw > -0.3 else 0.25
        if y < low:
            tint = 0.45
        _blend(colour, 0.75, tint, tint * 0.98, tint * 0.93)  # surround and sill
        return 0.0
    if door:
        _blend(colour, 0.85, 0.06 + 0.2 * abs(draw), 0.10, 0.07 + 0.1 * rough * rough)
        return 0.02
    bar = x < 0.035 or half - x < 0.06 or high - y < 0.06 or y - low < 0.06
    if bar:
        _blend(colour, 0.9, 0.55 + 0.15 * draw, 0.55 + 0.15 * draw, 0.52 + 0.15 * draw)
        return 0.0
    dark = 0.03 + 0.02 * rough
    if draw > 0.15 and (high - y) < (draw + 0.2) * (high - low):
        dark = 0.35 + 0.12 * rough  # blinds or curtains
    _blend(colour, 0.93, dark, dark, dark * 1.03)
    if high - y < 0.16 or half - x < 0.1:
        _blend(colour, 0.5, 0.01, 0.01, 0.01)  # the recess shades the pane
    return 0.10


@compiled
def _lanes(table, m, s, d, rough, footprint, colour):
    """Repairs, cracks, manholes and worn paint on a road."""
    patch = _hash(table, math.floor(s / 4.7), math.floor((d + 0.3 * s / 4.7) / 2.3), m.offset)
    if patch > 0.62:
        tone = 0.65 if patch > 0.8 else 1.3
        _blend(colour, 0.8, colour[0] * tone, colour[1] * tone, colour[2] * tone)
    ridge = abs(_fractal(table, s + m.offset, d, 4.0, 0.35, 3, 0.6, footprint))
    if ridge < 0.03 and footprint < 0.12:
        _blend(colour, 0.5 * (1 - ridge / 0.03), 0.03, 0.03, 0.03)
    column = math.floor(s / 17.0)
    hole = math.hypot(s - 17.0 * (column + 0.5), d - 1.9 * _hash(table, column, 5, m.offset))
    if hole < 0.36:
        tone = 0.06 if abs(hole - 0.31) < 0.03 else 0.13 + 0.06 * rough
        _blend(colour, 0.9, tone, tone, tone * 0.97)
    half, zebra, dash, wear, parking = m.option[0], m.option[1], m.option[2], m.option[3], m.option[4]
    paint = abs(d) < 0.08 and (dash <= 0 or (s / dash) % 1.0 < 0.4)
    paint = paint or (parking > 0 and abs(abs(d) - (half - parking)) < 0.06)
    paint = paint or (abs(s - zebra) < 1.8 and (d / 1.0) % 1.0 < 0.5 and abs(d) < half - 0.3)
    if paint and rough > wear:
        _blend(colour, 0.85, 0.55, 0.55, 0.52)


@compiled
def _face(m, y, z, rough, colour):
    """The front of a traffic sign of radius option[1]; option[0] is the kind."""
    kind, r = int(m.option[0]), math.hypot(y, z) / m.option[1]
    if kind == 0:  # prohibition
        if r > 0.72:
            _blend(colour, 0.95, 0.48, 0.02, 0.03)
        elif abs(z) < 0.35 * m.option[1] and 0.15 < abs(y) / m.option[1] < 0.4:
            _blend(colour, 0.95, 0.02, 0.02, 0.02)
    elif kind == 1:  # command
        _blend(colour, 0.95, 0.02, 0.09, 0.36)
        if abs(y) < 0.14 * m.option[1] and abs(z) < 0.6 * m.option[1]:
            _blend(colour, 0.95, 0.6, 0.6, 0.6)
    elif kind == 2:  # priority
        if abs(y) + abs(z) < 1.0 * m.option[1]:
            _blend(colour, 0.95, 0.62, 0.40, 0.02)
    elif abs(rough) > 0.16 and abs(math.sin(z * 14)) > 0.55:  # board with lines of script
        _blend(colour, 0.9, 0.03, 0.03, 0.03)


@compiled
def _sky(table, light, x, y, z, colour):
    """Radiance of the sky in the unit direction (x, y, z); below the horizon a dim mean of the surroundings."""
    if z < 0:
        for c in range(3):
            colour[c] = 0.35 * light.horizon[c]
        return
    up = min(1.0, 1.5 * math.sqrt(z))
    k = 1.3 / (z + 0.12)
    cover = _fractal(table, x * k, y * k, light.cloud_offset, 0.9, 5, 0.6, 0.0)
    cover = min(1.0, max(0.0, cover * 1.2 + 1.6 * light.cloud - 0.55))
    shade = 0.92 + 0.12 * _fractal(table, x * k + 9, y * k, light.cloud_offset, 1.7, 3, 0.6, 0.0)
    glow = max(0.0, x * light.sun[0] + y * light.sun[1] + z * light.sun[2]) ** 24
    for c in range(3):
        blue = light.horizon[c] + (light.zenith[c] - light.horizon[c]) * up
        white = (0.25 * light.sun_colour[c] + light.horizon[c]) * shade * 0.8
        colour[c] = blue + (white - blue) * cover + 0.25 * glow * light.sun_colour[c] * (1 - 0.8 * cover)


@compiled
def _albedo(table, m, p, n, footprint, colour):
    """Albedo at texture coordinates p with normal n, into `colour`; returns the gloss."""
    u, v = p[0], p[1]
    if abs(n[2]) < 0.7:
        v = p[2]
        if abs(n[0]) > abs(n[1]):
            u = p[1]
    x, y, z = p[0] + m.offset, p[1] + 2 * m.offset, p[2] - m.offset
    blot = _fractal(table, x, y, z, 0.22, 4, 0.7, footprint)
    share = min(1.0, max(0.0, 0.5 + 1.0 * blot))
    fine = _fractal(table, x, y, z, m.frequency, 7, 0.86, footprint)
    factor = max(0.12, 1 + m.amplitude * 1.6 * fine)
    if m.structure != PLAIN:
        factor *= _bond(table, m, u, v, footprint)
    for c in range(3):
        colour[c] = (m.colour[c] + (m.stain[c] - m.colour[c]) * share) * factor
    if m.overlay == WINDOWS and abs(n[2]) < 0.3:
        return _windows(table, m, u, v, fine, colour)
    if m.overlay == LANES:
        _lanes(table, m, u, v, fine, footprint, colour)
    elif m.overlay == FACE:
        if n[0] < -0.5:
            _face(m, p[1], p[2], fine, colour)
        else:
            _blend(colour, 0.95, 0.28, 0.29, 0.30)  # bare metal at the back
    elif m.overlay == CABIN and m.option[0] < p[2] < m.option[1] and abs(n[2]) < 0.9:
        pillar = (
            abs(n[1]) > 0.6
            and abs((p[0] - m.option[2]) / m.option[3] % 1.0 - 0.5) * m.option[3] > m.option[3] / 2 - 0.05
        )
        if not pillar:
            _blend(colour, 0.95, 0.02, 0.022, 0.025)
            return 0.12
    return m.gloss


@compiled
def _surface(triangle, bu, bv, normals, texture, p, n, w):
    """Texture coordinates p of a hit, the face's unit normal n among them, and the unit shading normal w."""
    a, b, c = triangle[0], triangle[1], triangle[2]
    long = 0.0
    for k in range(3):
        p[k] = (1 - bu - bv) * texture[a, k] + bu * texture[b, k] + bv * texture[c, k]
        w[k] = (1 - bu - bv) * normals[a, k] + bu * normals[b, k] + bv * normals[c, k]
        long += w[k] * w[k]
    e0, e1, e2 = texture[b, 0] - texture[a, 0], texture[b, 1] - texture[a, 1], texture[b, 2] - texture[a, 2]
    f0, f1, f2 = texture[c, 0] - texture[a, 0], texture[c, 1] - texture[a, 1], texture[c, 2] - texture[a, 2]
    n[0], n[1], n[2] = e1 * f2 - e2 * f1, e2 * f0 - e0 * f2, e0 * f1 - e1 * f0
    own = 1 / math.sqrt(n[0] * n[0] + n[1] * n[1] + n[2] * n[2] + 1e-20)
    long = 1 / math.sqrt(long + 1e-12)
    for k in range(3):
        n[k] *= own
        w[k] *= long


@compiled
def _illuminate(table, light, m, x, y, z, w, facing, lit, gloss, colour, sky):
    """Turn the albedo in `colour` into the radiance of a surface with normal w, seen along (x, y, z)."""
    sun = max(0.0, w[0] * light.sun[0] + w[1] * light.sun[1] + w[2] * light.sun[2])
    if m.label == VEGETATION:
        sun = 0.25 + 0.75 * sun  # leaves let light through
    if gloss > 0:
        _sky(table, light, x - 2 * facing * w[0], y - 2 * facing * w[1], z - 2 * facing * w[2], sky)
        gloss += (1 - gloss) * 0.6 * (1 - min(1.0, -facing)) ** 5
    for c in range(3):
        above = 0.55 * light.zenith[c] + 0.45 * light.horizon[c]
        around = above * (0.62 + 0.38 * w[2]) + 0.08 * light.sun_colour[c] * (0.6 - 0.4 * w[2])
        colour[c] *= light.sun_colour[c] * sun * lit + around
        if gloss > 0:
            colour[c] += gloss * (sky[c] - colour[c])


@compiled
def shade(table, light, rays, t, triangle, bary, lit, normals, texture, triangles, owner, kinds, angle):
    """Radiance (N, 3) float32 along rays (N, 3); triangle (N,) is −1 for sky.

    `t` (N,) is the hit's multiple of the ray, `bary` (N, 2) its barycentric coordinates, `lit` (N,) whether the sun
    reaches it, `angle` the radians that a ray covers.
    """
    out = np.empty((len(rays), 3), np.float32)
    colour, sky, p, n, w = np.empty(3), np.empty(3), np.empty(3), np.empty(3), np.empty(3)
    for i in range(len(rays)):
        x, y, z = rays[i, 0], rays[i, 1], rays[i, 2]
        length = math.sqrt(x * x + y * y + z * z)
        x, y, z = x / length, y / length, z / length
        if triangle[i] < 0:
            _sky(table, light, x, y, z, colour)
            out[i] = colour
            continue
        m = kinds[owner[triangle[i]]]
        _surface(triangles[triangle[i]], bary[i, 0], bary[i, 1], normals, texture, p, n, w)
        facing = x * w[0] + y * w[1] + z * w[2]
        if facing > 0 and m.label != VEGETATION:
            facing = -facing
            for c in range(3):
                w[c] = -w[c]
        distance = t[i] * length
        footprint = distance * angle / math.sqrt(max(0.06, abs(facing)))
        gloss = _albedo(table, m, p, n, footprint, colour)
        _illuminate(table, light, m, x, y, z, w, facing, lit[i], gloss, colour, sky)
        fog = 1 - math.exp(-light.haze * distance)
        for c in range(3):
            out[i, c] = colour[c] + (light.horizon[c] * 0.9 - colour[c]) * fog
    return out


@compiled
def sun_side(origin, rays, t, triangle, bary, normals, triangles, owner, kinds, sun):
    """Rays (N, 6) float32 towards the sun from hits that face it, and whether each ray is needed, (N,) bool."""
    out = np.zeros((len(rays), 6), np.float32)
    needed = np.zeros(len(rays), np.bool_)
    for i in range(len(rays)):
        if triangle[i] < 0:
            continue
        dot, away = 0.0, 0.0
        bu, bv = bary[i, 0], bary[i, 1]
        a, b, c3 = triangles[triangle[i], 0], triangles[triangle[i], 1], triangles[triangle[i], 2]
        for c in range(3):
            w = (1 - bu - bv) * normals[a, c] + bu * normals[b, c] + bv * normals[c3, c]
            dot += w * sun[c]
            away += w * rays[i, c]
        leaf = kinds[owner[triangle[i]]].label == VEGETATION
        if not leaf and dot * away >= 0:
            continue  # the side that is seen and the side that is lit differ
        needed[i] = True
        for c in range(3):
            out[i, c] = origin[c] + rays[i, c] * t[i] * 0.9999 + sun[c] * 0.03
            out[i, c + 3] = sun[c]
    return out, needed
