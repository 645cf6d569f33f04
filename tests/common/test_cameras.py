"""Cameras and the pixel map against slow, obvious versions."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rw3d_common.cameras import NO_PIXEL, PixelMap, is_rigid, project, unproject_depth

sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))
maps = st.builds(
    PixelMap,
    grid_size=sizes,
    image_size=sizes,
    column_scale=st.floats(0.3, 4),
    column_offset=st.floats(-5, 5),
    row_scale=st.floats(0.3, 4),
    row_offset=st.floats(-5, 5),
)


def random_pose(seed: int, scale: float = 1.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    q, _ = np.linalg.qr(generator.normal(size=(3, 3)))
    pose = np.eye(4)
    pose[:3, :3] = q * np.sign(np.linalg.det(q))
    pose[:3, 3] = generator.normal(size=3) * scale
    return pose


@given(maps)
def test_nearest_source_pixel_is_the_nearest_centre(pixel_map):
    index = pixel_map.nearest_source_pixels()
    u, v = pixel_map.source_coordinates()
    height, width = pixel_map.image_size
    for row in range(pixel_map.grid_size[0]):
        for column in range(pixel_map.grid_size[1]):
            if index[row, column] == NO_PIXEL:
                inside = -0.5 <= u[column] < width - 0.5 and -0.5 <= v[row] < height - 0.5
                assert not inside
                continue
            stored_row, stored_column = divmod(int(index[row, column]), width)
            assert abs(stored_row - v[row]) == min(abs(np.arange(-9, height + 9) - v[row]))
            assert abs(stored_column - u[column]) == min(abs(np.arange(-9, width + 9) - u[column]))


@given(maps)
def test_grid_and_source_intrinsics_are_inverse(pixel_map):
    intrinsics = np.array([[500.0, 0, 319.5], [0, 480.0, 239.5], [0, 0, 1]])
    back = pixel_map.source_intrinsics(pixel_map.grid_intrinsics(intrinsics))
    np.testing.assert_allclose(back, intrinsics, rtol=1e-10)


def test_resizing_maps_pixel_centres_not_corners():
    half = PixelMap.resize_then_crop((4, 8), (2, 4), (2, 4), left=0, top=0)
    u, v = half.source_coordinates()
    np.testing.assert_allclose(u, [0.5, 2.5, 4.5, 6.5])  # centre of source pixels 0 and 1, 2 and 3, …
    np.testing.assert_allclose(v, [0.5, 2.5])


def test_covered_fraction_is_the_share_of_area_under_the_grid():
    assert PixelMap((10, 10), (10, 10)).covered_fraction() == 1
    assert PixelMap((10, 5), (10, 10), column_offset=2).covered_fraction() == 0.5
    assert (
        abs(PixelMap.resize_then_crop((376, 1408), (168, 629), (168, 518), 55, 0).covered_fraction() - 518 / 629) < 1e-9
    )


@given(st.integers(0, 10_000))
def test_unprojected_pixels_project_back_onto_themselves(seed):
    generator = np.random.default_rng(seed)
    depth = generator.uniform(0.5, 80, (6, 9))
    intrinsics = np.array([[300.0, 0, 4.2], [0, 310.0, 2.7], [0, 0, 1]])
    pose = random_pose(seed)
    points = unproject_depth(depth, intrinsics, pose)
    u, v, z = project(points.reshape(-1, 3), intrinsics, pose)
    rows, columns = np.divmod(np.arange(54), 9)
    np.testing.assert_allclose(u, columns, atol=2e-3)
    np.testing.assert_allclose(v, rows, atol=2e-3)
    np.testing.assert_allclose(z, depth.ravel(), rtol=1e-5)


def test_unproject_equals_one_pixel_at_a_time():
    depth = np.random.default_rng(0).uniform(1, 50, (5, 7))
    depth[2, 3] = np.nan
    intrinsics, pose = np.array([[70.0, 0, 3], [0, 72.0, 2], [0, 0, 1]]), random_pose(4)
    points = unproject_depth(depth, intrinsics, pose)
    for row in range(5):
        for column in range(7):
            ray = np.linalg.inv(intrinsics) @ [column, row, 1]
            expected = pose[:3, :3] @ (ray * depth[row, column]) + pose[:3, 3]
            np.testing.assert_allclose(points[row, column], expected, rtol=1e-5, atol=1e-5)
    assert np.isnan(points[2, 3]).all()


def test_rigid_means_finite_orthonormal_and_right_handed():
    pose = random_pose(1)
    assert is_rigid(pose)
    mirrored, scaled, lost = pose.copy(), pose.copy(), pose.copy()
    mirrored[:3, 0] *= -1
    scaled[:3, :3] *= 1.1
    lost[0, 3] = -np.inf
    assert not any(is_rigid(broken) for broken in (mirrored, scaled, lost, pose[:3]))
