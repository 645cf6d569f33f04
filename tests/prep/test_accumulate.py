"""Carrying labels: the kernel against slow loops, occluders, movable classes, votes, and the gate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rw3d_common.cameras import project, unproject_depth
from rw3d_prep.precision import Counts, judge
from rw3d_prep.visibility import REACH, Limits, Maps, Points, _clear, _dilated, cast_votes, nearest_cells, ranks
from rw3d_prep.votes import contested, decide, paint, paint_cells, with_own

SIZE = (12, 16)
LIMITS = Limits(spread=1.2, depth_absolute=0.05, depth_relative=0.03, reprojection=1.5)
ALL = np.arange(256) < 3
K = np.array([[14.0, 0, 7.5], [0, 14.0, 5.5], [0, 0, 1]])


def pose(x: float, y: float = 0.0, z: float = 0.0, turn: float = 0.0) -> np.ndarray:
    out = np.eye(4)
    out[:3, :3] = [[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]]
    out[:3, 3] = x, y, z
    return out


def view(depth: np.ndarray, camera: np.ndarray, label: np.ndarray | None = None, trust: float = 1.0, gap: int = 1):
    """Points and maps of a view whose grid is its image; depth 0 = no point."""
    depth = depth.astype(np.float32)
    cell = np.argwhere(depth > 0).astype(np.int32)
    world = unproject_depth(depth, K, camera)[cell[:, 0], cell[:, 1]]
    label = np.full(SIZE, 255, np.uint8) if label is None else label
    maps = Maps(
        pinhole=np.array([K[0, 0], K[1, 1], K[0, 2], K[1, 2]]),
        to_image=np.array([1.0, 0, 1, 0]),
        rotation=np.ascontiguousarray(camera[:3, :3]),
        center=np.ascontiguousarray(camera[:3, 3]),
        depth=depth,
        trust=np.where(depth > 0, trust, 0).astype(np.float32),
        label=label,
        near_label=_dilated(label != 255, int(np.ceil(REACH * LIMITS.spread)) + 1),
        gap=gap,
    )
    return Points(world, cell, np.full(len(cell), trust, np.float32), _clear(maps, cell, LIMITS)), maps, camera


def votes_of(target, source, allowed: np.ndarray = ALL) -> np.ndarray:
    votes = np.zeros((len(target[0].position), 3), np.float32)
    cast_votes(target[0], target[1], source[1], allowed, LIMITS, votes)
    return votes


def slow_agreeing(maps: Maps, u: float, v: float, z: float, tolerance: float) -> tuple[int, int] | None:
    row, column = int(np.floor(v + 0.5)), int(np.floor(u + 0.5))
    if not (0 <= row < SIZE[0] and 0 <= column < SIZE[1]):
        return None
    found = []
    for r in range(SIZE[0]):
        for c in range(SIZE[1]):
            if abs(r - row) <= maps.gap and abs(c - column) <= maps.gap and maps.depth[r, c] > 0:
                if maps.depth[r, c] < z - tolerance:
                    return None
                if maps.depth[r, c] <= z + tolerance:
                    found.append(((r - v) ** 2 + (c - u) ** 2, r, c))
    return min(found)[1:] if found else None


def slow_vote(target, source, i: int) -> tuple[int, float] | None:
    """The vote of `source` on one point, with the project's own projection and a loop over every pixel."""
    points, seen, target_pose = target
    _, maps, source_pose = source
    x, cell = points.position[i : i + 1], points.cell[i]

    def tolerance(z: float) -> float:
        return LIMITS.depth_absolute + LIMITS.depth_relative * z

    own = float(seen.depth[tuple(cell)])
    if slow_agreeing(seen, cell[1], cell[0], own, tolerance(own)) is None:
        return None
    u, v, z = (float(value[0]) for value in project(x, K, source_pose))
    if z <= 0 or (hit := slow_agreeing(maps, u, v, z, tolerance(z))) is None:
        return None
    near = []
    for r in range(SIZE[0]):
        for c in range(SIZE[1]):
            squared = (r - v) ** 2 + (c - u) ** 2
            on_surface = slow_agreeing(maps, c, r, z, tolerance(z)) is not None
            if maps.label[r, c] != 255 and squared <= (REACH * LIMITS.spread) ** 2 and on_surface:
                near.append((squared, int(maps.label[r, c])))
    if not near:
        return None
    squared, label = min(near)
    there = np.zeros(SIZE)
    there[hit] = maps.depth[hit]
    back = unproject_depth(there, K, source_pose)[hit][None]
    u, v, z_back = (float(value[0]) for value in project(back, K, target_pose))
    if abs(z_back - own) > tolerance(own) or np.hypot(u - cell[1], v - cell[0]) > LIMITS.reprojection + maps.gap:
        return None
    a, b = source_pose[:3, 3] - x[0], target_pose[:3, 3] - x[0]
    weight = np.exp(-abs(maps.depth[hit] - z) / tolerance(z)) * np.exp(-squared / 2 / LIMITS.spread**2)
    weight *= np.sqrt(points.trust[i] * maps.trust[hit])
    return label, weight * max(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)), 0)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2]))
def test_votes_equal_slow_loops(seed: int, gap: int) -> None:
    rng = np.random.default_rng(seed)

    def random_view(camera: np.ndarray):
        depth = 5 + rng.normal(0, 0.08, SIZE) - 2 * (rng.random(SIZE) < 0.01)
        depth[rng.random(SIZE) < 0.2] = 0
        label = np.where(rng.random(SIZE) < 0.3, rng.integers(0, 3, SIZE), 255).astype(np.uint8)
        return view(depth, camera, label, trust=float(rng.uniform(0.2, 1)), gap=gap)

    target = random_view(pose(0))
    x, y, z, turn = rng.uniform(-1, 1, 4) * (0.5, 0.3, 0.2, 0.05)
    source = random_view(pose(x, y, z, turn))
    expected = np.zeros((len(target[0].position), 3))
    for i in range(len(expected)):
        if vote := slow_vote(target, source, i):
            expected[i, vote[0]] += vote[1]
    assert gap > 1 or (expected > 0).any()
    np.testing.assert_allclose(votes_of(target, source), expected, rtol=1e-4, atol=1e-6)


def test_a_label_reaches_exactly_the_pixel_that_sees_the_same_surface() -> None:
    label = np.full(SIZE, 255, np.uint8)
    label[6, 9] = 2
    step = 5 / 14  # metres that move a plane at 5 m by one pixel
    target = view(np.full(SIZE, 5.0), pose(2 * step))
    votes = votes_of(target, view(np.full(SIZE, 5.0), pose(0), label))
    assert tuple(target[0].cell[votes[:, 2].argmax()]) == (6, 7)
    assert not votes[:, :2].any()


def test_unlabelled_occluders_hide_what_is_behind() -> None:
    label = np.full(SIZE, 255, np.uint8)
    label[6, 8] = 1
    wall, step = np.full(SIZE, 5.0), 5 / 14
    source = view(wall, pose(0), label)
    post = wall.copy()
    post[:, 6:8] = 2.0  # an unlabelled post stands before the labelled spot, seen from the target
    assert votes_of(view(wall, pose(step)), source)[:, 1].any()
    hidden = view(post, pose(step))
    assert not votes_of(hidden, source)[(hidden[0].cell[:, 1] >= 5) & (hidden[0].cell[:, 1] <= 8)].any()
    before = wall.copy()
    before[5:8, 7:10] = 2.0  # and now before the labelled spot in the source itself
    assert not votes_of(view(wall, pose(step)), view(before, pose(0), label)).any()


def test_wrong_depth_or_pose_gives_no_vote() -> None:
    label = np.zeros(SIZE, np.uint8)
    source = view(np.full(SIZE, 5.0), pose(0), label)
    assert votes_of(view(np.full(SIZE, 5.0), pose(0.2)), source).any()
    assert not votes_of(view(np.full(SIZE, 4.0), pose(0.2)), source).any()
    assert not votes_of(view(np.full(SIZE, 5.0), pose(0, turn=np.pi)), source).any()


def test_labels_that_are_not_allowed_cast_no_vote() -> None:
    source = view(np.full(SIZE, 5.0), pose(0), np.full(SIZE, 1, np.uint8))
    target = view(np.full(SIZE, 5.0), pose(0.1))
    assert votes_of(target, source).any()
    assert not votes_of(target, source, ALL & (np.arange(256) != 1)).any()


def test_less_trust_gives_less_weight() -> None:
    label = np.zeros(SIZE, np.uint8)
    heavy = votes_of(view(np.full(SIZE, 5.0), pose(0.1)), view(np.full(SIZE, 5.0), pose(0), label)).sum()
    light = votes_of(view(np.full(SIZE, 5.0), pose(0.1)), view(np.full(SIZE, 5.0), pose(0), label, trust=0.25)).sum()
    assert light == pytest.approx(heavy / 2)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_decisions_equal_a_slow_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    votes = (rng.random((40, 4)) * (rng.random((40, 4)) < 0.4)).astype(np.float32)
    decided, disputed = decide(votes, 0.7, 0.3), 0
    for row, label in zip(votes, decided, strict=True):
        total = row.sum()
        enough = total > 0 and total >= np.float32(0.3)
        clear = row.max() >= 0.7 * total
        assert label == (int(row.argmax()) if enough and clear else 255)
        disputed += bool(enough and not clear)
    assert contested(votes, 0.7, 0.3) == disputed


def test_no_votes_no_classes_no_points() -> None:
    assert (decide(np.zeros((3, 2), np.float32), 0.7, 0.0) == 255).all()
    assert (decide(np.zeros((3, 0), np.float32), 0.7, 0.0) == 255).all()
    assert len(decide(np.zeros((0, 2), np.float32), 0.7, 0.1)) == contested(np.zeros((0, 2), np.float32), 0.7, 0.1) == 0


def test_ranks_have_no_scale_and_ties_share_the_best() -> None:
    confidence = np.array([3, 1, 3, np.inf], np.float32)
    np.testing.assert_allclose(ranks(confidence), [0.75, 0.25, 0.75, 1])
    np.testing.assert_array_equal(ranks(np.exp(confidence[:3])), ranks(confidence[:3]))
    assert (ranks(np.ones(5, np.float32)) == 1).all()


def test_cells_of_a_coarse_grid_cover_the_pixels_nearest_to_them() -> None:
    to_image, grid, size = np.array([2.5, 0.75, 2.0, 0.5]), (3, 4), (7, 11)
    cell = np.argwhere(np.ones(grid)).astype(np.int32)
    label = np.arange(12, dtype=np.uint8)
    image = paint_cells(label, cell, grid, to_image, size)
    for row in range(size[0]):
        for column in range(size[1]):
            r, c = np.floor((row - 0.5) / 2 + 0.5), np.floor((column - 0.75) / 2.5 + 0.5)
            inside = 0 <= r < 3 and 0 <= c < 4
            assert image[row, column] == (label[int(r) * 4 + int(c)] if inside else 255)
    centre = np.stack([np.floor(cell[:, 0] * 2 + 1.0), np.floor(cell[:, 1] * 2.5 + 1.25)], axis=1).astype(int)
    np.testing.assert_array_equal(nearest_cells(centre, to_image, grid), cell)
    np.testing.assert_array_equal(image[centre[:, 0], centre[:, 1]], label)


def test_own_annotations_win() -> None:
    own, carried = np.array([[1, 255, 255]], np.uint8), np.array([[2, 2, 255]], np.uint8)
    np.testing.assert_array_equal(with_own(own, carried), [[1, 2, 255]])
    np.testing.assert_array_equal(with_own(None, carried), carried)
    np.testing.assert_array_equal(
        paint(np.array([7], np.uint8), np.array([4], np.uint32), (2, 3)), [[255] * 3, [255, 7, 255]]
    )


NAMES = ("road", "pole", "wall")


def counted(*pairs: tuple[int, int, int]) -> Counts:
    """Counts of carried pixels: (label, truth, how many)."""
    counts = Counts()
    for label, truth, number in pairs:
        counts.add_image(None, np.full((1, number), label, np.uint8), np.full((1, number), truth, np.uint8))
    return counts


def test_the_gate_withholds_poor_classes_and_judges_the_rest() -> None:
    verdict = judge(counted((0, 0, 980), (1, 1, 5), (1, 0, 5), (2, 255, 7)), NAMES, 0.97, 0.9)
    assert verdict.usable is True
    assert verdict.withheld == (1,)
    assert verdict.report["withheld"] == ["pole"]
    assert verdict.report["carried"] == 987  # what has no truth counts as carried, not as measured
    assert verdict.report["measured"] == verdict.report["right"] == 980
    assert verdict.report["precision"] == 1
    assert verdict.report["precision_with_withheld"] == pytest.approx(985 / 990)
    assert verdict.report["classes"]["pole"] == {"carried": 10, "measured": 10, "precision": 0.5}


def test_the_gate_closes_when_too_much_is_wrong_even_in_classes_that_are_withheld() -> None:
    assert judge(counted((0, 0, 96), (0, 1, 4)), NAMES, 0.97, 0.9).usable is False
    assert judge(counted((0, 0, 90), (1, 0, 10)), NAMES, 0.97, 0.9).usable is False
    assert judge(counted((1, 0, 10)), NAMES, 0.0, 0.9).usable is False  # nothing is left


def test_without_truth_nobody_knows() -> None:
    assert judge(counted((0, 255, 10)), NAMES, 0.97, 0.9).usable is None
    assert judge(Counts(), NAMES, 0.97, 0.9).usable is None


def test_counts_leave_own_labels_out_and_note_contradictions() -> None:
    counts = Counts()
    own, carried = np.array([[0, 255, 255, 255]], np.uint8), np.array([[1, 1, 2, 255]], np.uint8)
    counts.add_image(own, carried, np.array([[0, 1, 0, 0]], np.uint8))
    counts.add_points(np.array([0, 0, 255], np.uint8), np.array([0, 1, 1], np.uint8), contested=3)
    assert (counts.pixels, counts.own, counts.compared, counts.contradicted, counts.contested) == (4, 1, 2, 1, 3)
    assert counts.carried[[0, 1, 2]].tolist() == [0, 1, 1]
    assert counts.confusion.sum() == 2
    assert counts.confusion[1, 1] == counts.confusion[2, 0] == 1
