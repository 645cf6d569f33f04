"""View-aware samples: points of one view and of what surrounds it, drawn exactly uniformly at a cost of O(sample).

After Rewis3d (Ernst et al., CVPR 2026): 60 % of a sample come from the view's own points, 40 % from points of the other
views inside a sphere around the centroid of the own points. What is too few:

* own points: the rest comes from the surroundings;
* points in the sphere: all of them are taken, the sphere grows by 1.5×, and the rest is uniform over the new shell, and
  so on. A view whose sphere is one point short so gets one point from farther out, instead of a sample diluted over 3.4
  times the volume: what lies nearest matters most to the view.
* points of the other views in the whole scene: more own points fill up. A scene smaller than the request gives all.

A view without own points has no sphere: centre NaN, radius infinite, points uniform over the whole scene.

Random numbers are raw 64-bit words of Philox (counter-based; raw words are the same in every NumPy version), keyed by
BLAKE2b of (seed, key): the bytes of a sample depend on nothing else, such as workers, order, or samples drawn before.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from numbers import Integral
from typing import Annotated, Literal

import numba
import numpy as np
import numpy.typing as npt
from pydantic import Field

from rw3d_common.config import Section
from rw3d_prep.sphere_index import F32, F64, U32, Region, SceneIndex, radius_from

GROWTH = 1.5
SMALLEST_RADIUS = 1e-3  # metres: what growth starts from where all own points coincide
TRIES_PER_LISTED = 8  # a random try costs about as much as measuring this many points in a row
PILOT_TRIES = 2048  # enough to know the share of hits to a few per cent
NO_ROWS: U32 = np.empty(0, np.uint32)
U8 = npt.NDArray[np.uint8]
_kernel = numba.njit(cache=True, nogil=True)


class SampleConfig(Section):
    points: int = Field(120_000, ge=1, lt=2**31)
    """Points per sample: what the paper trains with. A smaller scene gives fewer."""
    own_share: float = Field(0.6, ge=0, le=1)
    """Share of `points` that come from the view itself, 0 to 1: each gives one 2D-3D correspondence. More only where
    labelled points have to be kept or the other views have too few."""
    radius: Literal["robust", "official"] | Annotated[float, Field(gt=0, allow_inf_nan=False)] = "robust"
    """Sphere that the other points come from: 1.5 × the 95 % quantile of the own points' distances to their centroid
    (`robust`: one stray point cannot blow it up), 1.5 × their maximum (`official`: the released code), or metres."""
    strategy: Literal["view-aware", "random"] = "view-aware"
    """`random` draws uniformly from the whole scene: the paper's ablation, few correspondences per image."""
    draws: int = Field(1, ge=1)
    """Samples per view: several let a long training see more of a view's points."""
    seed: int = 0
    """With split, sequence, frame, camera and draw it decides every random number."""
    keep_labelled: bool = False
    """Include all labelled points of the view: of point annotations chance would keep only a part."""
    labels: Literal["own", "accumulated"] = "own"
    """Whose labels the points carry: those of their own image alone, or also what `accumulate` carried to them."""
    views: Literal["labelled", "all"] = "labelled"
    """Views that get samples: those with a sparse label image, or all."""


@dataclass(frozen=True)
class Drawn:
    """Rows of `points/` that make one sample.

    `index` (n,) uint32: the view's own points first, `n_own` of them, then the others; each part ascends, which gathers
    and compresses better. The others lie within `radius` metres (a float32 value; infinite: the whole scene) of
    `center` (3,) float32, the centroid of all own points (NaN: the view has none).
    """

    index: U32
    n_own: int
    center: F32
    radius: float


def draw_sample(
    scene: SceneIndex, view: int, config: SampleConfig, key: tuple[str | int, ...], must: U32 | None = None
) -> Drawn:
    """One sample of `view`. `key`, such as (split, sequence, frame id, camera, draw), makes it unlike any other.

    Args:
        must: distinct rows of own points that are always included; where they exceed `points`, that many of them.

    Raises:
        ValueError: no such view, or `must` has rows that are not the view's or repeats some.
    """
    if not 0 <= view < len(scene.point_offset) - 1:
        raise ValueError(f"no view {view}: the scene has {len(scene.point_offset) - 1}")
    first, last = (int(row) for row in scene.point_offset[view : view + 2])
    kept = _checked(must, first, last)
    words = _Words(config.seed, key)
    center, squared = scene.sphere_of(view)
    if kept.size > config.points:
        kept = kept[choose(words, kept.size, config.points)]
    if config.strategy == "random":
        own, others, radius = *_from_anywhere(scene, first, last, kept, config, words), math.inf
    else:
        own = first + choose(words, last - first, _own_count(scene, first, last, kept, config), kept - np.uint32(first))
        others, radius = _from_surroundings(scene, _sphere(config, center, squared, first, last), config, own, words)
    place = (center if last > first else np.full(3, np.nan)).astype(np.float32)
    return Drawn(np.concatenate([own, others]).astype(np.uint32, copy=False), len(own), place, radius)


def _checked(must: U32 | None, first: int, last: int) -> U32:
    if must is None:
        return NO_ROWS
    rows = np.unique(np.asarray(must, np.uint32))
    if len(rows) != len(must):
        raise ValueError("must: a row occurs twice")
    if rows.size and not first <= rows[0] <= rows[-1] < last:
        raise ValueError(f"must: rows {rows[0]} to {rows[-1]} are not all of the view's own, {first} to {last - 1}")
    return rows


def _own_count(scene: SceneIndex, first: int, last: int, kept: U32, config: SampleConfig) -> int:
    others = len(scene.position) - (last - first)
    wanted = max(round(config.points * config.own_share), len(kept), config.points - others)
    return min(wanted, config.points, last - first)


def _sphere(config: SampleConfig, center: F64, squared: F64, first: int, last: int) -> Region:
    if not squared.size:
        return Region(np.zeros(3), -1, math.inf, first, last)
    match config.radius:
        case "robust":
            radius = 1.5 * radius_from(squared, 0.95)
        case "official":
            radius = 1.5 * math.sqrt(squared.max())
        case metres:
            radius = metres
    return Region(center, -1, _stored(max(radius, SMALLEST_RADIUS)), first, last)


def _stored(radius: float) -> float:
    """The radius as samples/ keep it, in float32: who reads it there finds the very same points inside."""
    return float(np.float32(radius)) if radius <= np.finfo(np.float32).max else math.inf


def _from_surroundings(
    scene: SceneIndex, sphere: Region, config: SampleConfig, own: U32, words: _Words
) -> tuple[U32, float]:
    """Rows of other views' points around the view, ascending, and the radius that was needed for them."""
    available = len(scene.position) - (sphere.last - sphere.first)
    wanted = config.points - len(own)
    if wanted > available:
        return draw_region(scene, _whole(sphere), available, words), math.inf
    parts = [draw_region(scene, sphere, wanted, words)]
    while (missing := wanted - sum(map(len, parts))) > 0:
        sphere = Region(sphere.center, sphere.outer, _stored(sphere.outer * GROWTH), sphere.first, sphere.last)
        parts.append(draw_region(scene, sphere, missing, words))
    return parts[0] if len(parts) == 1 else sort_words(np.concatenate(parts)), sphere.outer


def _whole(sphere: Region) -> Region:
    return Region(sphere.center, -1, math.inf, sphere.first, sphere.last)


def _from_anywhere(
    scene: SceneIndex, first: int, last: int, kept: U32, config: SampleConfig, words: _Words
) -> tuple[U32, U32]:
    """Own and other rows of a sample that is uniform over the whole scene, apart from those kept."""
    everything = Region(np.zeros(3), -1, math.inf, 0, 0)
    drawn = draw_region(scene, everything, config.points - len(kept), words, kept)
    rows = sort_words(np.concatenate([drawn, kept]))
    start, stop = np.searchsorted(rows, [first, last])
    return rows[start:stop], np.concatenate([rows[:start], rows[stop:]])


def draw_region(scene: SceneIndex, region: Region, wanted: int, words: _Words, without: U32 = NO_ROWS) -> U32:
    """`wanted` rows, uniformly without replacement from the region's points but `without`, ascending; all if fewer.

    Either by trying random slots of the blocks in reach, or by listing all points in them and choosing; a few tries
    tell which is cheaper. Each decision depends on counts alone, never on which points were hit, so that whichever way
    ends up drawing treats all points alike.
    """
    blocks = scene.blocks_of(region)
    rows = _try_slots(scene, region, blocks, wanted, words, without)
    if rows is None:
        rows = _without(scene.points_of(region, blocks), without)
    return rows[choose(words, len(rows), min(wanted, len(rows)))]


def _without(rows: U32, without: U32) -> U32:
    return rows[np.isin(rows, without, assume_unique=True, invert=True)] if without.size else rows


def _try_slots(scene: SceneIndex, region: Region, blocks: U32, wanted: int, words: _Words, without: U32) -> U32 | None:
    """At least `wanted` distinct rows of the region, ascending, or None where listing all its points costs less.

    Which rows come out is as random as their number: the caller has to choose among all of them.
    """
    slots = len(blocks) * scene.block_size
    rows, hits, tries, expected = NO_ROWS, 0, 0, PILOT_TRIES
    while len(rows) < wanted:
        if slots < TRIES_PER_LISTED * max(expected, wanted):
            return None
        # In ascending order the points come out sorted, and memory is read from front to back.
        hit, tried = scene.hits(region, blocks, sort_words(words.take(expected)))
        hits, tries = hits + len(hit), tries + tried
        rows = _distinct(hit if not rows.size else sort_words(np.concatenate([rows, hit])))
        rows = _without(rows, without)
        expected = _tries_for(wanted, len(rows), slots, slots * hits / tries)
    return rows


def _tries_for(wanted: int, found: int, slots: int, eligible: float) -> int:
    """Tries that most likely make `found` distinct points `wanted`, where `eligible` slots of `slots` hold one."""
    if found >= wanted:
        return 0
    if eligible <= 1.01 * wanted:  # an estimate: there may be fewer than wanted, or even than found
        return slots
    return int(-slots * math.log1p(-(wanted - found) / (eligible - found)) * 1.05) + 64


def choose(words: _Words, count: int, wanted: int, kept: U32 = NO_ROWS) -> U32:
    """`wanted` of 0 … count − 1, ascending: all of `kept`, and the rest uniform without replacement; wanted ≤ count."""
    state, free = np.zeros(count, np.uint8), count - len(kept)
    state[kept] = 2
    draw = wanted - len(kept)
    leave_out = 2 * draw > free  # the shorter of two equal ways: mark what is in, or what is out
    target = free - draw if leave_out else draw
    marked = 0
    while marked < target:
        tries = count * math.log((free - marked) / (free - target))
        marked = _mark(words.take(int(tries * 1.02) + 64), state, marked, target)
    return _places(state != 1 if leave_out else state != 0, wanted)


class _Words:
    """An endless row of uniformly random 32-bit words that depends on seed and key alone."""

    def __init__(self, seed: int, key: tuple[str | int, ...]) -> None:
        parts = [int(part) if isinstance(part, Integral) else str(part) for part in (seed, *key)]
        digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).digest()
        self._bits = np.random.Philox(key=int.from_bytes(digest, "little"))

    def take(self, count: int) -> U32:
        """The next words: `count`, rounded up to an even number."""
        raw = self._bits.random_raw((count + 1) // 2)
        return raw.astype("<u8", copy=False).view("<u4").astype(np.uint32, copy=False)


@_kernel
def _mark(words: U32, state: U8, marked: int, target: int) -> int:
    """Set `target` of the zeros in `state` to 1, counting those `marked` before; stops when the words run out."""
    size = np.uint64(len(state))
    unfair = np.uint64(2**32) % size
    for word in words:
        product = np.uint64(word) * size  # Lemire's multiply-and-shift, see sphere_index
        place = product >> np.uint64(32)
        take = (marked < target) & ((product & np.uint64(0xFFFFFFFF)) >= unfair) & (state[place] == 0)
        state[place] |= np.uint8(take)
        marked += take
    return marked


@_kernel
def _places(chosen: npt.NDArray[np.bool_], count: int) -> U32:
    places, found = np.empty(count + 1, np.uint32), 0
    for place in range(len(chosen)):
        places[found] = place  # behind the last one this writes into the spare row
        found += chosen[place]
    return places[:count]


@_kernel
def _distinct(ascending: U32) -> U32:
    distinct, found = np.empty(len(ascending), np.uint32), 0
    for row in ascending:
        if found == 0 or distinct[found - 1] != row:
            distinct[found] = row
            found += 1
    return distinct[:found].copy()


@_kernel
def sort_words(words: U32) -> U32:
    """A sorted copy: radix sort, 3 × 11 bits, several times as fast as comparing where there are 10⁴ to 10⁶ words."""
    source, target = words.copy(), np.empty_like(words)
    for shift in (np.uint32(0), np.uint32(11), np.uint32(22)):
        place = np.zeros(2049, np.int64)
        for word in source:
            place[((word >> shift) & np.uint32(2047)) + 1] += 1
        for digit in range(2048):
            place[digit + 1] += place[digit]
        for word in source:
            digit = (word >> shift) & np.uint32(2047)
            target[place[digit]] = word
            place[digit] += 1
        source, target = target, source
    return source
