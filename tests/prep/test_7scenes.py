"""200 real RGB-D frames, end to end: the geometry of every stored point is checked against its own image and others.

Needs the recorded sequence beside the checkout (not part of the project: its licence is research only).
"""

from pathlib import Path

import numpy as np
import pytest

from rw3d_common import open_scene
from rw3d_common.cameras import project
from rw3d_common.images import read_image
from rw3d_prep.config import load_config
from rw3d_prep.pipeline import reconstruct
from rw3d_prep.reconstruct.sensor import read_depth
from rw3d_prep.verify import verify

SEQUENCE = Path(__file__).parents[2].parent / "shared" / "data" / "7scenes_rgbd_seq"
pytestmark = pytest.mark.skipif(
    not SEQUENCE.is_dir(), reason="the recorded 7-Scenes sequence is not beside this checkout"
)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    out = tmp_path_factory.mktemp("7scenes")
    outcome = reconstruct(load_config("rgbd", None, None, None, []), SEQUENCE, out, workers=1)
    assert outcome.exit_code() == 0
    (name,) = outcome.written
    assert verify(out) == []
    return open_scene(out / f"{name}.zarr")


def test_every_frame_is_a_view_of_one_scene(scene):
    assert len(scene) == 200
    assert scene.view_table["frame_id"].tolist() == list(range(0, 1000, 5))
    assert scene.n_points > 50_000_000


def test_points_project_onto_their_own_pixel_within_a_hundredth(scene):
    for index in range(len(scene)):
        view = scene.view(index)
        u, v, _ = project(view.position, view.intrinsics, view.camera_to_world)
        rows, columns = view.rows_columns.T
        assert np.abs(u - columns).max() < 0.01
        assert np.abs(v - rows).max() < 0.01


def test_colours_are_those_of_the_pixel(scene):
    for index in range(0, len(scene), 10):
        view = scene.view(index)
        rows, columns = view.rows_columns.T
        np.testing.assert_array_equal(view.color, read_image(view.image)[rows, columns])


def test_points_of_one_view_agree_with_the_depth_of_others(scene):
    """Within 3 cm for at least 80 % of co-visible points (those not hidden behind a nearer surface)."""
    agreeing = visible = 0
    for index in range(0, 190, 10):
        view, other = scene.view(index), scene.view(index + 5)
        u, v, z = project(view.position[::7], other.intrinsics, other.camera_to_world)
        seen = (z > 0) & (u > -0.5) & (v > -0.5) & (u < 639.5) & (v < 479.5)
        rows, columns = np.rint(v[seen]).astype(int), np.rint(u[seen]).astype(int)
        depth = read_depth(Path(str(other.image).replace("color.jpg", "depth.png")))[rows, columns] / 1000
        covisible = (depth > 0) & (z[seen] < depth + 0.1)  # what lies further back is hidden there
        agreeing += np.count_nonzero(np.abs(z[seen] - depth)[covisible] < 0.03)
        visible += np.count_nonzero(covisible)
    assert agreeing / visible >= 0.8, f"{agreeing / visible:.1%} of {visible:,} points"
