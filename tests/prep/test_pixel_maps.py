"""The grid and its exact map against recorded facts of MapAnything and against brute force."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rw3d_common.cameras import NO_PIXEL
from rw3d_common.errors import UserError
from rw3d_prep.reconstruct.pixel_maps import FIXED_MAPPING, PATCH, Resize, pixel_map_for, resample, target_size

CONTRACT = Path(__file__).parents[2].parent / "shared" / "fixtures" / "mapanything" / "contract.json"
needs_contract = pytest.mark.skipif(
    not CONTRACT.is_file(), reason="shared/fixtures/mapanything/contract.json is not beside this checkout"
)
ROW = ("ds", "mode", "set", "size")
SIDES = st.integers(20, 3000)
SIZES = st.tuples(SIDES, SIDES)


def recorded_rows() -> list[dict[str, Any]]:
    return json.loads(CONTRACT.read_text())["resize_mapping"]["table"] if CONTRACT.is_file() else []


@needs_contract
def test_resolution_tables_are_those_of_the_package() -> None:
    recorded = json.loads(CONTRACT.read_text())["resolution_mappings"]
    ours = {
        str(longest): {str(aspect): list(size) for aspect, size in table.items()}
        for longest, table in FIXED_MAPPING.items()
    }
    assert ours == recorded


@needs_contract
@pytest.mark.parametrize("row", recorded_rows(), ids=lambda row: "-".join(str(row[key]) for key in ROW))
def test_recorded_mapping(row: dict[str, Any]) -> None:
    width, height = row["src"]
    target = tuple(row["target_hw"])
    if row["mode"] in get_args(Resize):
        assert target_size([(height, width)], row["mode"], row["set"] or row["size"]) == target
    pixel_map = pixel_map_for((height, width), target)
    exact = row["exact"]
    ours = (pixel_map.column_scale, pixel_map.column_offset, pixel_map.row_scale, pixel_map.row_offset)
    assert ours == pytest.approx((exact["ax"], exact["bx"], exact["ay"], exact["by"]), abs=1e-12)
    u, v = pixel_map.source_coordinates()
    assert (u[0], u[-1]) == pytest.approx(row["range_u"]) and (v[0], v[-1]) == pytest.approx(row["range_v"])
    assert pixel_map.covered_fraction() == pytest.approx(np.prod(row["coverage"]), abs=1e-9)


@given(size=SIZES, others=st.lists(SIZES, max_size=3), resize=st.sampled_from(get_args(Resize)))
@settings(max_examples=150, deadline=None)
def test_nearest_pixels_are_those_of_the_exact_map(
    size: tuple[int, int], others: list[tuple[int, int]], resize: Resize
) -> None:
    try:
        target = target_size([size, *others], resize, 518)
    except UserError as error:  # only strips have no grid
        assert resize == "longest_side" and "no grid" in str(error)
        return
    assert max(target) == 518 and min(target) >= PATCH and not target[0] % PATCH and not target[1] % PATCH
    pixels = pixel_map_for(size, target).nearest_source_pixels()
    assert pixels.shape == target and (pixels != NO_PIXEL).all()  # the grid never leaves the image
    rows, columns = np.divmod(pixels.astype(np.int64), size[1])
    assert (rows == rows[:, :1]).all() and (columns == columns[:1]).all()
    assert_nearest(rows[:, 0], size[0], target[0], size, target)
    assert_nearest(columns[0], size[1], target[1], size, target)


def assert_nearest(chosen: np.ndarray, side: int, cells: int, size: tuple[int, int], target: tuple[int, int]) -> None:
    """Compare the pixels of one axis with a search through all pixel centres around the exact rational coordinates."""
    scale = max(target[0] / size[0], target[1] / size[1]) + 1e-8
    resized = int(side * scale)
    crop = (resized - cells) // 2
    assert crop >= 0 and crop + cells <= resized
    middles = [Fraction(2 * (cell + crop) + 1, 2) for cell in range(cells)]
    exact = np.array([float(middle * Fraction(side, resized) - Fraction(1, 2)) for middle in middles])
    distances = np.abs(exact[:, None] - np.arange(side)[None, :])
    assert (distances[np.arange(cells), chosen] <= distances.min(1) + 1e-9).all()


@given(size=st.tuples(st.integers(20, 400), st.integers(20, 400)), resize=st.sampled_from(get_args(Resize)))
@settings(max_examples=30, deadline=None)
def test_colours_at_the_stored_pixels_are_those_of_the_grid(size: tuple[int, int], resize: Resize) -> None:
    """On a picture whose colour tells its place, a cell and its stored pixel agree to the half pixel between them."""
    try:
        target = target_size([size], resize, 518)
    except UserError:
        return
    picture = ramp(size)
    pixels = pixel_map_for(size, target).nearest_source_pixels()
    stored = picture.reshape(-1, 3)[pixels].astype(float)
    seen = resample(picture, target).astype(float)
    for channel, side in ((0, size[1]), (1, size[0])):
        assert np.abs(stored - seen)[..., channel].max() <= 0.5 * 255 / (side - 1) + 4


def ramp(size: tuple[int, int]) -> np.ndarray:
    """An (H, W, 3) uint8 picture: red grows to the right, green downwards."""
    picture = np.zeros((*size, 3), np.uint8)
    picture[..., 0] = np.linspace(0, 255, size[1])[None, :].round()
    picture[..., 1] = np.linspace(0, 255, size[0])[:, None].round()
    return picture


def test_enlarging_is_bicubic() -> None:
    """The recorded call shrinks its images; small ones such as CamVid's are enlarged, with another kernel."""
    picture = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    larger = Image.fromarray(picture).resize((522, 392), resample=Image.Resampling.BICUBIC)
    assert np.array_equal(resample(picture, (392, 518)), np.asarray(larger.crop((2, 0, 520, 392))))


def test_one_grid_for_images_of_different_sizes() -> None:
    sizes = [(376, 1408), (480, 640)]
    target = target_size(sizes, "fixed_mapping", 518)
    assert target == (252, 518)  # mean aspect 2.54 lies nearest to 2.056
    assert {pixel_map_for(size, target).image_size for size in sizes} == set(sizes)


def test_a_strip_has_no_grid() -> None:
    with pytest.raises(UserError, match="cut them into pieces"):
        target_size([(20, 3000)], "longest_side", 518)
