"""Similarities: the closed form against known transforms and a slow search, robust fits, trajectory errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from rw3d_prep.sim3 import Sim3, absolute_trajectory_error, relative_pose_error, robust_sim3, umeyama

seeds = st.integers(0, 2**32 - 1)


def random_sim3(rng: np.random.Generator) -> Sim3:
    return Sim3(float(np.exp(rng.uniform(-1.5, 1.5))), Rotation.random(rng=rng).as_matrix(), rng.normal(0, 20, 3))


def close(a: Sim3, b: Sim3, scale: float, metres: float) -> bool:
    return abs(a.scale / b.scale - 1) < scale and bool(np.abs(a.translation - b.translation).max() < metres)


def street(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, 3) before a camera at the origin, 4 to 60 m deep, and their depth."""
    depth = np.exp(rng.uniform(np.log(4), np.log(60), n))
    return depth[:, None] * np.column_stack([rng.uniform(-1, 1, n), rng.uniform(-0.3, 0.2, n), np.ones(n)]), depth


@given(seeds)
def test_group_laws(seed):
    rng = np.random.default_rng(seed)
    a, b = random_sim3(rng), random_sim3(rng)
    points = rng.normal(size=(5, 3))
    np.testing.assert_allclose((a @ b).apply(points), a.apply(b.apply(points)), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose((a.inverse() @ a).apply(points), points, atol=1e-9)
    np.testing.assert_allclose((a @ a.inverse()).apply(points), points, atol=1e-9)
    np.testing.assert_allclose(Sim3.identity().apply(points), points)


@given(seeds, st.booleans(), st.booleans())
def test_closed_form_recovers_any_similarity(seed, symmetric, flat):
    rng = np.random.default_rng(seed)
    true, points = random_sim3(rng), rng.normal(size=(6, 3)) * (1, 1, 0 if flat else 1)  # a plane is enough
    found = umeyama(points, true.apply(points), rng.uniform(0.1, 1, 6), symmetric)
    assert np.linalg.det(found.rotation) > 0
    np.testing.assert_allclose(found.scale, true.scale, rtol=1e-9)
    np.testing.assert_allclose(found.apply(points), true.apply(points), atol=1e-8)
    np.testing.assert_allclose(found.rotation, true.rotation, atol=1e-6)


def test_a_mirrored_cloud_gets_the_nearest_rotation_and_no_reflection():
    points = np.random.default_rng(0).normal(size=(50, 3))
    found = umeyama(points, points * (1, 1, -1))
    np.testing.assert_allclose(found.rotation @ found.rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(found.rotation) == pytest.approx(1)


def test_closed_form_against_a_search():
    """No small change of the similarity makes the weighted squares smaller."""
    rng = np.random.default_rng(3)
    source, weights = rng.normal(size=(40, 3)), rng.uniform(0, 1, 40)
    target = random_sim3(rng).apply(source) + rng.normal(0, 0.3, (40, 3))

    def squares(sim3: Sim3) -> float:
        return float((weights[:, None] * (sim3.apply(source) - target) ** 2).sum())

    best = umeyama(source, target, weights)
    for _ in range(300):
        turn = Rotation.from_rotvec(rng.normal(0, 1e-3, 3)).as_matrix()
        near = Sim3(
            best.scale * (1 + rng.normal(0, 1e-3)), turn @ best.rotation, best.translation + rng.normal(0, 1e-3, 3)
        )
        assert squares(near) >= squares(best)


def test_only_the_symmetric_scale_is_unbiased_where_both_sides_are_noisy():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(200_000, 3))
    source, target = (points + rng.normal(0, 0.3, points.shape) for _ in range(2))
    assert umeyama(source, target, symmetric=True).scale == pytest.approx(1, abs=5e-3)
    assert umeyama(source, target).scale == pytest.approx(1 / 1.09, abs=5e-3)


@settings(max_examples=25)
@given(seeds, st.sampled_from([0.0, 0.3, 0.6]))
def test_robust_fit_survives_outliers(seed, outliers):
    rng = np.random.default_rng(seed)
    target, depth = street(rng, 4000)
    true = random_sim3(rng)
    source = true.inverse().apply(target)
    wrong = rng.permutation(len(source))[: int(outliers * len(source))]
    source[wrong] = source[rng.permutation(wrong)] + rng.normal(0, 5, (len(wrong), 3)) / true.scale
    fit = robust_sim3(source, target, depth, np.ones(len(source)))
    assert fit is not None
    assert close(fit.sim3, true, 1e-5, 1e-4)
    assert fit.inlier_share == pytest.approx(1 - outliers, abs=0.05)
    assert (fit.residual < 1e-6) == (outliers < 0.5), "a median lies among the outliers once they are the majority"


def test_robust_fit_with_noise_on_both_sides_and_a_coherent_minority():
    """1 % of the depth as noise, and 30 % of the points moved together, as another vehicle is when mismatched."""
    rng = np.random.default_rng(5)
    clean, depth = street(rng, 20_000)
    true = random_sim3(rng)
    noisy = [clean + rng.normal(0, 0.01, clean.shape) * depth[:, None] for _ in range(2)]
    target, source = noisy[0], true.inverse().apply(noisy[1])
    source[:6000] += (3.0 / true.scale, 0, 0)
    fit = robust_sim3(source, target, depth, np.ones(len(source)))
    assert fit is not None
    camera = true.inverse().apply(np.zeros((1, 3)))
    assert np.linalg.norm(fit.sim3.apply(camera)) < 0.01, "the camera lies at the origin of the target world"
    assert abs(fit.sim3.scale / true.scale - 1) < 1e-3
    assert 0.015 < fit.residual < 0.04
    assert fit.residual_metres == pytest.approx(np.median(depth) * fit.residual, rel=0.5)


def test_weights_decide_between_two_worlds():
    target, depth = street(np.random.default_rng(1), 3000)
    source = target * 1.02  # within the limit, but not the same
    source[:1500] = target[:1500]
    trusting_first = np.where(np.arange(3000) < 1500, 1.0, 1e-6)
    fit = robust_sim3(source, target, depth, trusting_first)
    assert fit is not None
    assert fit.sim3.scale == pytest.approx(1, abs=1e-4)


def test_the_same_seed_gives_the_same_bits():
    rng = np.random.default_rng(2)
    target, depth = street(rng, 500)
    source = target + rng.normal(0, 0.1, target.shape)
    one, two = (robust_sim3(source, target, depth, np.ones(500)) for _ in range(2))
    assert one is not None and two is not None
    np.testing.assert_array_equal(one.sim3.rotation, two.sim3.rotation)
    assert (one.sim3.scale, one.residual) == (two.sim3.scale, two.residual)


@pytest.mark.parametrize(
    "points",
    [np.zeros((0, 3)), np.eye(3)[:2], np.linspace(0, 1, 50)[:, None] * [1.0, 2, 3], np.ones((50, 3))],
    ids=["none", "two", "line", "place"],
)
def test_points_that_determine_no_similarity(points):
    assert robust_sim3(points, points, np.ones(len(points)), np.ones(len(points))) is None


def trajectory(rng: np.random.Generator, n: int = 12) -> np.ndarray:
    poses = np.tile(np.eye(4), (n, 1, 1))
    poses[:, :3, :3] = Rotation.from_rotvec(np.cumsum(rng.normal(0, 0.05, (n, 3)), axis=0)).as_matrix()
    poses[:, :3, 3] = np.cumsum(rng.normal(1, 0.3, (n, 3)), axis=0)
    return poses


def moved(poses: np.ndarray, sim3: Sim3) -> np.ndarray:
    out = poses.copy()
    out[:, :3, :3] = sim3.rotation @ poses[:, :3, :3]
    out[:, :3, 3] = sim3.apply(poses[:, :3, 3])
    return out


@given(seeds)
def test_a_similar_trajectory_has_no_error(seed):
    rng = np.random.default_rng(seed)
    given_poses, true = trajectory(rng), random_sim3(rng)
    predicted = moved(given_poses, true.inverse())
    sim3, ate = absolute_trajectory_error(predicted, given_poses)
    assert sim3.scale == pytest.approx(true.scale)
    assert ate < 1e-7
    pairs = np.column_stack([np.arange(11), np.arange(1, 12)])
    translation, degrees = relative_pose_error(predicted, given_poses, pairs, sim3.scale)
    assert translation < 1e-7
    assert degrees < 1e-6


def test_errors_of_a_trajectory_are_the_ones_put_in():
    """One camera of four is 0.2 m too high: ATE by hand after centring; one pair of frames turned by 3°."""
    poses = np.tile(np.eye(4), (4, 1, 1))
    poses[:, 0, 3] = [0, 10, 10, 0]
    poses[:, 2, 3] = [0, 0, 10, 10]
    wrong = poses.copy()
    wrong[:, 1, 3] = [0.2, -0.2, 0.2, -0.2]  # no rotation or shift can take up a saddle
    sim3, ate = absolute_trajectory_error(wrong, poses)
    assert sim3.scale == pytest.approx(100 / (100 + 2 * 0.04 / 1), rel=1e-3)
    assert ate == pytest.approx(0.2, rel=0.01)
    turned = poses.copy()
    turned[2:, :3, :3] = Rotation.from_euler("y", 3, degrees=True).as_matrix()
    pairs = np.array([[0, 1], [1, 2], [2, 3]])
    _, degrees = relative_pose_error(turned, poses, pairs, 1.0)
    assert degrees == pytest.approx(3 / np.sqrt(3))
    assert np.isnan(relative_pose_error(turned, poses, np.empty((0, 2), int), 1.0)).all()
