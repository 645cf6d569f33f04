"""View-aware sampling against slow, obvious NumPy, and against samplers that are biased on purpose."""

import hashlib
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from rw3d_prep import sampling
from rw3d_prep.sampling import GROWTH, SMALLEST_RADIUS, SampleConfig, choose, draw_sample, sort_words
from rw3d_prep.sphere_index import Region, SceneIndex, radius_from

SIZES, BLOCK = (17, 21, 0, 25), 8  # blocks straddle views, the last one is short
VIEW, DRAWS = 1, 4000


def make_scene(sizes=SIZES, block=BLOCK, seed=0, spread=1.0) -> SceneIndex:
    offset = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    position = spread * np.random.default_rng(seed).normal(size=(offset[-1], 3))
    return SceneIndex.build(position.astype(np.float32), offset, block)


def distances(scene: SceneIndex, center: np.ndarray) -> np.ndarray:
    return np.sqrt(((scene.position.astype(np.float64) - center.astype(np.float64)) ** 2).sum(axis=1))


def rows_of(scene: SceneIndex, view: int) -> np.ndarray:
    return np.arange(*scene.point_offset[view : view + 2])


def slow_eligible(scene: SceneIndex, view: int, center: np.ndarray, radius: float) -> np.ndarray:
    inside = np.flatnonzero(distances(scene, center) <= radius)
    return np.setdiff1d(inside, rows_of(scene, view))


def assert_uniform(draws, eligible) -> None:
    """Each of `draws` is an equally large subset of `eligible`, and no point or pair of points is favoured."""
    eligible = np.sort(eligible)
    rows = np.array([np.asarray(draw, np.int64) for draw in draws])
    assert np.isin(rows, eligible).all()
    assert (np.diff(np.sort(rows, axis=1), axis=1) > 0).all(), "a point twice"
    number, size, total = len(rows), rows.shape[1], len(eligible)
    if size == total:
        return
    ranks, share = np.searchsorted(eligible, rows), size / total
    count = np.bincount(ranks.ravel(), minlength=total)
    # Counts of draws without replacement vary less than a multinomial's: covariance p(1−p)(I·E − J)/(E − 1).
    single = ((count - number * share) ** 2).sum() / (number * share * (1 - share) * total / (total - 1))
    assert stats.chi2.sf(single, total - 1) > 1e-4, "points are not equally likely"
    if size < 2:
        return
    pick = np.random.default_rng(1).permuted(ranks, axis=1)[:, :2]  # one pair per draw keeps the pairs independent
    pairs = {pair: place for place, pair in enumerate(itertools.combinations(range(total), 2))}
    place = [pairs[pair] for pair in map(tuple, np.sort(pick, axis=1).tolist())]
    assert stats.chisquare(np.bincount(place, minlength=len(pairs))).pvalue > 1e-4, "pairs are not equally likely"


def draw_many(scene: SceneIndex, config: SampleConfig, must=None, view=VIEW):
    return [draw_sample(scene, view, config, ("uniform", number), must) for number in range(DRAWS)]


@pytest.fixture(params=["tries", "lists"])
def way(request, monkeypatch):
    """Make every draw go one way, and fail where it goes the other."""
    if request.param == "tries":
        monkeypatch.setattr(sampling, "TRIES_PER_LISTED", 0)
        monkeypatch.setattr(sampling, "PILOT_TRIES", 4)
        monkeypatch.setattr(SceneIndex, "points_of", None)
    else:
        monkeypatch.setattr(sampling, "TRIES_PER_LISTED", 10**9)
        monkeypatch.setattr(SceneIndex, "hits", None)
    return request.param


@pytest.mark.parametrize(("points", "share"), [(10, 0.5), (6, 0.34), (20, 0.8)])
def test_own_and_others_are_uniform(way, points, share):
    scene, config = make_scene(), SampleConfig(points=points, own_share=share, radius=1.4)
    drawn = draw_many(scene, config)
    own = round(points * share)
    assert {item.n_own for item in drawn} == {own}
    assert_uniform([item.index[:own] for item in drawn], rows_of(scene, VIEW))
    eligible = slow_eligible(scene, VIEW, drawn[0].center, np.float32(1.4))
    assert points - own < len(eligible) < 42
    assert_uniform([item.index[own:] for item in drawn], eligible)


def test_the_slow_sampler_passes_too():
    rng, eligible = np.random.default_rng(0), np.arange(5, 30)
    assert_uniform([rng.choice(eligible, 6, replace=False) for _ in range(DRAWS)], eligible)


def filled_up(eligible, rng):
    """With replacement, duplicates dropped, filled up with whatever comes first."""
    few = np.unique(rng.choice(eligible, 6))
    return np.concatenate([few, np.setdiff1d(eligible, few)[: 6 - len(few)]])


def without_boundary(eligible, rng):
    """Blocks of 8 that hold points of elsewhere are left out."""
    blocks, size = np.unique(eligible // 8, return_counts=True)
    return rng.choice(eligible[np.isin(eligible // 8, blocks[size == 8])], 6, replace=False)


def by_block(eligible, rng):
    """A block uniformly, then one of its eligible points: points of short blocks are favoured."""
    rows, blocks = set(), np.unique(eligible // 8)
    while len(rows) < 6:
        rows.add(int(rng.choice(eligible[eligible // 8 == rng.choice(blocks)])))
    return np.array(sorted(rows))


def systematic(eligible, rng):
    """Every fourth point from a random start: each point is equally likely, pairs are not."""
    return eligible[rng.integers(4) :: 4]


def duplicating(eligible, rng):
    return rng.choice(eligible, 6)


@pytest.mark.parametrize("biased", [filled_up, without_boundary, by_block, systematic, duplicating])
def test_biased_samplers_fail_the_same_test(biased):
    rng, eligible = np.random.default_rng(0), np.arange(5, 29)
    with pytest.raises(AssertionError):
        assert_uniform([biased(eligible, rng) for _ in range(DRAWS)], eligible)


@pytest.mark.parametrize("count", [9, 2])
def test_labelled_points_are_kept_and_the_rest_is_uniform(count):
    scene, config = make_scene(), SampleConfig(points=16, own_share=0.5, radius=1.4)
    must = np.sort(np.random.default_rng(0).choice(rows_of(scene, VIEW), count, replace=False)).astype(np.uint32)
    drawn = draw_many(scene, config, must)
    own = [item.index[: item.n_own] for item in drawn]
    assert all(item.n_own == max(8, count) and len(item.index) == 16 for item in drawn)
    assert all(np.isin(must, rows).all() for rows in own)
    if count < 8:
        assert_uniform([np.setdiff1d(rows, must) for rows in own], np.setdiff1d(rows_of(scene, VIEW), must))
    eligible = slow_eligible(scene, VIEW, drawn[0].center, np.float32(1.4))
    assert_uniform([item.index[item.n_own :] for item in drawn], eligible)


def test_more_labelled_points_than_the_sample_holds_are_chosen_uniformly():
    scene, must = make_scene(), rows_of(make_scene(), VIEW)[3:].astype(np.uint32)
    drawn = draw_many(scene, SampleConfig(points=7), must)
    assert {item.n_own for item in drawn} == {7}
    assert_uniform([item.index for item in drawn], must)


def test_a_sphere_that_grew_keeps_all_it_held_and_fills_from_the_shell_uniformly():
    scene, config = make_scene(), SampleConfig(points=20, own_share=0.3, radius=0.7)
    drawn = draw_many(scene, config)
    inner = slow_eligible(scene, VIEW, drawn[0].center, drawn[0].radius / GROWTH * (1 + 1e-6))
    outer = slow_eligible(scene, VIEW, drawn[0].center, drawn[0].radius)
    assert drawn[0].radius > 0.7
    assert 0 < len(inner) < 14 < len(outer)
    others = [item.index[6:] for item in drawn]
    assert all(np.isin(inner, rows).all() for rows in others)
    assert_uniform([np.setdiff1d(rows, inner) for rows in others], np.setdiff1d(outer, inner))


@pytest.mark.parametrize("must", [None, np.array([18, 30], np.uint32)])
def test_random_is_uniform_over_the_scene(way, must):
    scene, config = make_scene(), SampleConfig(points=12, strategy="random")
    drawn = draw_many(scene, config, must)
    kept = np.array([], np.uint32) if must is None else must
    for item in drawn[:200]:
        assert math.isinf(item.radius)
        assert np.isin(item.index, rows_of(scene, VIEW)).tolist() == [True] * item.n_own + [False] * (12 - item.n_own)
    assert all(np.isin(kept, item.index).all() for item in drawn)
    assert_uniform([np.setdiff1d(item.index, kept) for item in drawn], np.setdiff1d(np.arange(63), kept))


def slow_facts(scene, view, config, must):
    """n_own, number of others, radius and the others that must be there, from all distances."""
    own, total = rows_of(scene, view), len(scene.position)
    n_own = max(round(config.points * config.own_share), must, config.points - (total - len(own)))
    n_own = min(n_own, config.points, len(own))
    wanted = config.points - n_own
    everyone = np.setdiff1d(np.arange(total), own)
    if not len(own) or wanted > len(everyone):
        return n_own, min(wanted, len(everyone)), math.inf, everyone[: 0 if wanted < len(everyone) else None]
    center = scene.position[own].mean(axis=0, dtype=np.float64).astype(np.float32)
    far = distances(scene, center)[own]
    radius = {"robust": 1.5 * np.quantile(far, 0.95), "official": 1.5 * far.max()}.get(config.radius, config.radius)
    radius, inside = float(np.float32(max(radius, SMALLEST_RADIUS))), np.array([], np.int64)
    while len(found := slow_eligible(scene, view, center, radius)) < wanted:
        radius, inside = float(np.float32(radius * GROWTH)), found
    return n_own, wanted, radius, inside


@settings(max_examples=200)
@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=5),
    block=st.sampled_from([1, 3, 16, 512]),
    seed=st.integers(0, 2**32),
    points=st.integers(1, 150),
    share=st.sampled_from([0.0, 0.25, 0.6, 1.0]),
    radius=st.sampled_from(["robust", "official", 0.01, 0.8, 50.0]),
    labelled=st.sampled_from([0.0, 0.3, 1.0]),
    data=st.data(),
)
def test_every_promise_on_any_scene(sizes, block, seed, points, share, radius, labelled, data):
    scene, view = make_scene(sizes, block, seed), data.draw(st.integers(0, len(sizes) - 1))
    config = SampleConfig(points=points, own_share=share, radius=radius)
    own = rows_of(scene, view)
    must = own[np.random.default_rng(seed).random(len(own)) < labelled].astype(np.uint32)
    drawn = draw_sample(scene, view, config, ("any", seed), must)
    n_own, others, sphere, inside = slow_facts(scene, view, config, len(must))
    first, rest = drawn.index[: drawn.n_own], drawn.index[drawn.n_own :]
    assert (drawn.n_own, len(rest)) == (n_own, others)
    assert drawn.index.dtype == np.uint32
    assert len(drawn.index) == min(points, len(scene.position))
    assert (np.diff(first.astype(int)) > 0).all()
    assert (np.diff(rest.astype(int)) > 0).all()
    assert np.isin(first, own).all()
    assert not np.isin(rest, own).any()
    assert np.isin(must, first).all() if len(must) <= points else np.isin(first, must).all()
    assert drawn.radius == pytest.approx(sphere, rel=1e-6)
    assert (
        np.isnan(drawn.center).all() if not len(own) else (distances(scene, drawn.center)[rest] <= drawn.radius).all()
    )
    assert np.isin(inside, rest).all()


@given(
    seed=st.integers(0, 2**32),
    block=st.sampled_from([1, 7, 64]),
    spread=st.sampled_from([1e-25, 1.0, 1e15]),
    inner=st.floats(-1, 2),
    outer=st.floats(0, 3),
)
def test_eligible_points_are_those_of_all_distances(seed, block, spread, inner, outer):
    scene, view = make_scene((40, 30, 50), block, seed, spread), 1
    first, last = (int(row) for row in scene.point_offset[view : view + 2])
    center = scene.position[-1].astype(np.float64)
    region = Region(center, inner * spread, outer * spread, first, last)
    squared = ((scene.position.astype(np.float64) - center) ** 2).sum(axis=1)
    inside = squared <= region.outer**2
    inside &= (squared > region.inner**2) | (inner < 0)
    found = scene.points_of(region, scene.blocks_of(region))
    np.testing.assert_array_equal(found, np.setdiff1d(np.flatnonzero(inside), rows_of(scene, view)))


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.sampled_from([0.0, 0.5, 0.95, 1.0]))
def test_radius_is_the_quantile(values, share):
    expected = np.quantile(np.sqrt(np.array(values)), share)
    assert radius_from(np.array(values), share) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_one_stray_point_does_not_blow_up_the_robust_radius():
    scene = make_scene((5000, 5000))
    calm = draw_sample(scene, 0, SampleConfig(points=100), ("a",)).radius
    position = scene.position.copy()
    position[7] = (1e6, 0, 0)
    stray = SceneIndex.build(position, scene.point_offset)
    center = draw_sample(stray, 0, SampleConfig(points=100), ("a",))
    assert center.radius < 1.5 * (200 + 5) + calm  # the centroid itself moves by 1e6 / 5000 metres
    assert draw_sample(stray, 0, SampleConfig(points=100, radius="official"), ("a",)).radius > 1e6


def digest(keys) -> dict[tuple, str]:
    scene, config = make_scene((3000, 4000, 5000), 64), SampleConfig(points=500, own_share=0.2)
    return {key: hashlib.sha256(draw_sample(scene, 1, config, key).index).hexdigest() for key in keys}


KEYS = [("train", "drive", frame, "left", draw) for frame in range(3) for draw in range(2)]


def test_a_key_gives_the_same_bytes_in_another_process_and_order():
    code = "import json, test_sampling as t; print(json.dumps(list(t.digest(t.KEYS[::-1]).values())))"
    command = [sys.executable, "-W", "error", "-c", f"import sys; sys.path.insert(0, {__file__[:-17]!r}); {code}"]
    other = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    here = digest(KEYS)
    assert other.count('"') // 2 == len(set(here.values())) == len(KEYS)
    assert [part for part in other.split('"') if len(part) == 64] == list(here.values())[::-1]


def test_seed_and_type_of_key_parts_matter():
    scene, config = make_scene((3000, 4000)), SampleConfig(points=500)
    again = draw_sample(scene, 0, config, ("a", 1)).index
    np.testing.assert_array_equal(draw_sample(scene, 0, config, ("a", np.int64(1))).index, again)
    for other, key in ((SampleConfig(points=500, seed=1), ("a", 1)), (config, ("a", "1")), (config, ("a1",))):
        assert (draw_sample(scene, 0, other, key).index != again).any()


def test_the_own_part_does_not_depend_on_the_radius():
    scene = make_scene((3000, 4000))
    own = [draw_sample(scene, 0, SampleConfig(points=500, radius=r), ("a",)).index[:300] for r in (0.5, "official")]
    np.testing.assert_array_equal(*own)


def test_trying_slots_wins_where_points_are_many(monkeypatch):
    monkeypatch.setattr(SceneIndex, "points_of", None)
    drawn = draw_sample(make_scene((50_000, 60_000)), 0, SampleConfig(points=1000), ("a",))
    assert (drawn.n_own, len(np.unique(drawn.index))) == (600, 1000)


def test_choose_and_sort():
    words = sampling._Words(0, ("a",))
    assert choose(words, 0, 0).tolist() == []
    assert choose(words, 5, 5).tolist() == [0, 1, 2, 3, 4]
    assert choose(words, 4, 2, np.array([1, 3], np.uint32)).tolist() == [1, 3]
    for count in (0, 1, 5000):
        some = words.take(count)
        np.testing.assert_array_equal(sort_words(some), np.sort(some))


@pytest.mark.parametrize("must", [np.array([3, 3]), np.array([0, 17]), np.array([38])])
def test_wrong_must_is_refused(must):
    with pytest.raises(ValueError, match="must"):
        draw_sample(make_scene(), VIEW, SampleConfig(points=5), ("a",), must.astype(np.uint32))


def test_wrong_arguments_are_refused():
    points = np.zeros((4, 3), np.float32)
    for offset in ([0, 3], [1, 4], [0, 3, 2, 4], []):
        with pytest.raises(ValueError, match="point_offset"):
            SceneIndex.build(points, np.array(offset, np.int64))
    with pytest.raises(ValueError, match="need"):
        SceneIndex.build(points[:, :2], np.array([0, 4]))
    with pytest.raises(ValueError, match="no view 4"):
        draw_sample(make_scene(), 4, SampleConfig(), ("a",))
    for wrong in ({"radius": 0}, {"radius": "large"}, {"radius": math.inf}, {"draws": 0}, {"points": 0}):
        with pytest.raises(ValidationError):
            SampleConfig(**wrong)
