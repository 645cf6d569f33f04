"""The MapAnything backend against recorded results of the real package, replayed by a fake model; no torch needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from rw3d_common.errors import UserError
from rw3d_common.images import read_image
from rw3d_prep.frames import Frame
from rw3d_prep.reconstruct import mapanything
from rw3d_prep.reconstruct.base import ViewGeometry
from rw3d_prep.reconstruct.mapanything import MapAnythingBackend, MapAnythingConfig
from rw3d_prep.reconstruct.pixel_maps import Resize, pixel_map_for

FIXTURE = Path(__file__).parents[2].parent / "shared" / "fixtures" / "mapanything" / "recorded_3views.npz"
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
WORLD = np.zeros(3)
Output = dict[str, "FakeTensor"]


class FakeTensor:
    """What the backend uses of a tensor."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def cpu(self) -> FakeTensor:
        return self

    def numpy(self) -> np.ndarray:
        return self.array

    def __getitem__(self, index: Any) -> FakeTensor:
        return FakeTensor(self.array[index])


class FakeModel:
    """Answers `infer` by `answer(views)` and remembers what it was asked."""

    def __init__(self, answer: Callable[[list[dict[str, Any]]], list[Output]], device: str = "cpu") -> None:
        self.answer, self.device = answer, device
        self.views: list[dict[str, Any]] = []
        self.options: dict[str, Any] = {}

    def infer(self, views: list[dict[str, Any]], **options: Any) -> list[Output]:
        self.views, self.options = [{**view, "img": view["img"].array} for view in views], options
        return self.answer(self.views)


def plausible(view: dict[str, Any]) -> dict[str, np.ndarray]:
    """One view's results: a plane one metre ahead of a camera at the world's origin, everything valid."""
    height, width = view["img"].shape[2:]
    points = np.ones((1, height, width, 3), np.float32)
    return {
        "pts3d": points,
        "conf": np.full((1, height, width), 2, np.float32),
        "depth_z": np.ones((1, height, width, 1), np.float32),
        "non_ambiguous_mask": np.ones((1, height, width), bool),
        "intrinsics": np.array([[[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]]], np.float32),
        "camera_poses": np.eye(4, dtype=np.float32)[None],
        "img_no_norm": (view["img"].transpose(0, 2, 3, 1) * STD + MEAN).astype(np.float32),
    }


def answer_with(change: Callable[[list[dict[str, np.ndarray]]], None] = lambda results: None) -> FakeModel:
    """A model of plausible results, after `change` was applied to them."""

    def answer(views: list[dict[str, Any]]) -> list[Output]:
        results = [plausible(view) for view in views]
        change(results)
        return [{key: FakeTensor(value) for key, value in result.items()} for result in results]

    return FakeModel(answer)


def use(monkeypatch: pytest.MonkeyPatch, model: FakeModel) -> FakeModel:
    monkeypatch.setattr(mapanything, "load_model", lambda config: model)
    monkeypatch.setattr(mapanything, "_tensor", lambda array, pin: FakeTensor(array))
    monkeypatch.setattr(mapanything, "depth_edges", lambda points, depth, mask: np.zeros_like(mask))
    return model


def frame(path: Path, number: int = 0) -> Frame:
    return Frame("train", "street", number, "", path)


def photos(folder: Path, *sizes: tuple[int, int]) -> list[Frame]:
    """Frames with noise images of (height, width), each different."""
    frames = []
    for number, size in enumerate(sizes):
        noise = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
        frames.append(frame(folder / f"{number}.png", number))
    return frames


def reconstruct(frames: list[Frame], **config: Any) -> list[ViewGeometry]:
    return list(MapAnythingBackend(MapAnythingConfig(**config)).reconstruct(frames, WORLD))


def assert_sentence(action: Callable[[], Any], *parts: str) -> None:
    """`action` raises a UserError of one sentence with all `parts`."""
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message and ". " not in message and not message.endswith(".")


# --- the recorded call ------------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Any, FakeModel, list[Frame]]:
    """The recorded arrays, a model that replays them, and frames whose images are the recorded ones."""
    if not FIXTURE.is_file():
        pytest.skip("shared/fixtures/mapanything/recorded_3views.npz is not beside this checkout")
    with np.load(FIXTURE) as archive:
        arrays = {name: archive[name] for name in archive.files}
    frames = []
    for view in range(3):
        Image.fromarray(arrays[f"v{view}__src_rgb"]).save(tmp_path / f"{view}.png")
        frames.append(frame(tmp_path / f"{view}.png", view))

    def answer(views: list[dict[str, Any]]) -> list[Output]:
        names = [[name for name in arrays if name.startswith(f"v{view}__out__")] for view in range(3)]
        outputs = [{name[9:]: FakeTensor(arrays[name]) for name in view} for view in names]
        for view, output in enumerate(outputs):  # recorded with masks applied; the backend asks for raw points
            output["pts3d"] = FakeTensor(arrays[f"v{view}__raw__pts3d"])
            del output["mask"]
        return outputs

    def edges(points: np.ndarray, depth: np.ndarray, mask: np.ndarray) -> np.ndarray:
        [view] = [view for view in range(3) if np.array_equal(points, arrays[f"v{view}__raw__pts3d"][0], True)]
        return mask & ~arrays[f"v{view}__out__mask"][0, ..., 0]

    # recorded on a small grid, which the configuration does not offer
    monkeypatch.setattr(mapanything, "target_size", lambda *arguments: tuple(arrays["meta_target_hw"]))
    model = use(monkeypatch, FakeModel(answer))
    monkeypatch.setattr(mapanything, "depth_edges", edges)
    return arrays, model, frames


def test_inputs_are_those_of_load_images(recorded: tuple[Any, FakeModel, list[Frame]]) -> None:
    arrays, model, frames = recorded
    reconstruct(frames)
    for number, view in enumerate(model.views):
        theirs = arrays[f"v{number}__in__img"]
        assert view["img"].shape == theirs.shape and view["img"].dtype == theirs.dtype
        assert view["data_norm_type"] == list(arrays[f"v{number}__in__data_norm_type"])
        # Another version of Pillow may round a few pixels to the neighbouring grey level (1/255 of one deviation).
        assert np.abs(view["img"] - theirs).max() <= 1 / 255 / STD.min() + 1e-6
        assert (view["img"] == theirs).mean() > 0.99


def test_recorded_results(recorded: tuple[Any, FakeModel, list[Frame]]) -> None:
    arrays, _, frames = recorded
    for number, view in enumerate(reconstruct(frames)):
        out = {name[9:]: array[0] for name, array in arrays.items() if name.startswith(f"v{number}__out__")}
        assert np.array_equal(view.valid, out["mask"][..., 0] & np.isfinite(out["pts3d"]).all(-1))
        assert 0 < view.valid.sum() < view.valid.size
        assert np.array_equal(view.points[view.valid], out["pts3d"][view.valid]) and view.points.dtype == np.float32
        assert np.array_equal(view.confidence, out["conf"]) and view.confidence.dtype == np.float32
        assert np.array_equal(view.camera_to_world, out["camera_poses"]) and view.camera_to_world.dtype == np.float64
        assert not np.shares_memory(view.points, arrays[f"v{number}__raw__pts3d"])


def test_recorded_pixel_map_and_intrinsics(recorded: tuple[Any, FakeModel, list[Frame]]) -> None:
    arrays, _, frames = recorded
    scale_u, offset_u, scale_v, offset_v = arrays["meta_affine_u0_ax_bx_v0_ay_by"]
    for number, view in enumerate(reconstruct(frames)):
        u, v = view.pixel_map.source_coordinates()
        assert view.pixel_map.image_size == (120, 320) and view.pixel_map.grid_size == (56, 140)
        assert u == pytest.approx(scale_u * np.arange(140) + offset_u, abs=1e-9)
        assert v == pytest.approx(scale_v * np.arange(56) + offset_v, abs=1e-9)
        grid = arrays[f"v{number}__out__intrinsics"][0].astype(float)
        source_from_grid = np.array([[scale_u, 0, offset_u], [0, scale_v, offset_v], [0, 0, 1]])
        assert view.intrinsics == pytest.approx(source_from_grid @ grid)
        assert view.pixel_map.grid_intrinsics(view.intrinsics) == pytest.approx(grid)


def test_recorded_colours_lie_where_the_map_says(recorded: tuple[Any, FakeModel, list[Frame]]) -> None:
    """The source's colour at the stored pixel is the picture's, and moving the map by a pixel makes it worse."""
    arrays, _, frames = recorded
    for number, view in enumerate(reconstruct(frames)):
        source, shown = arrays[f"v{number}__src_rgb"] / 255, arrays[f"v{number}__out__img_no_norm"][0]
        row, column = np.divmod(view.pixel_map.nearest_source_pixels().astype(int), source.shape[1])

        def error(down: int, right: int) -> float:
            moved = source[np.clip(row + down, 0, 119), np.clip(column + right, 0, 319)]  # noqa: B023
            return float(np.abs(moved - shown).mean())  # noqa: B023

        assert error(0, 0) < 0.05
        assert error(0, 0) < min(error(1, 0), error(-1, 0), error(0, 1), error(0, -1))


# --- what `infer` is asked --------------------------------------------------------------------------------------------


def test_options_on_a_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = use(monkeypatch, answer_with())
    reconstruct(photos(tmp_path, (30, 40)), mask_edges=False, memory_efficient=False)
    assert model.options == {
        "memory_efficient_inference": False,
        "minibatch_size": 1,
        "use_amp": False,
        "amp_dtype": "bf16",
        "apply_mask": False,
    }
    assert set(model.views[0]) == {"img", "data_norm_type", "instance"}
    assert model.views[0]["instance"] == "train/street/0000000000"


@pytest.mark.parametrize("amp", ["bf16", "fp16", "none"])
def test_precision_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, amp: str) -> None:
    model = use(monkeypatch, answer_with())
    model.device = "cuda:0"
    reconstruct(photos(tmp_path, (30, 40)), amp=amp, minibatch_size=7)
    assert model.options["use_amp"] is (amp != "none") and model.options["minibatch_size"] == 7
    assert amp in ("none", model.options["amp_dtype"])


def test_no_frames_need_no_model() -> None:
    assert reconstruct([]) == []


def test_out_of_memory_passes_through(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    def exhausted(views: list[dict[str, Any]]) -> list[Output]:
        raise OutOfMemoryError("CUDA out of memory")

    use(monkeypatch, FakeModel(exhausted))
    with pytest.raises(OutOfMemoryError):
        reconstruct(photos(tmp_path, (30, 40)))


# --- what is made of the results --------------------------------------------------------------------------------------


def test_validity_is_mask_and_finite(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def change(results: list[dict[str, np.ndarray]]) -> None:
        points, mask, confidence = results[0]["pts3d"][0], results[0]["non_ambiguous_mask"][0], results[0]["conf"][0]
        points[0, 0, 1] = np.nan
        points[0, 1] = np.inf
        points[0, 2] = 0  # the world's origin is a place like any other
        mask[0, 3] = False
        points[0, 3] = -0.0
        confidence[0, 4] = np.inf
        confidence[0, 5] = np.nan

    use(monkeypatch, answer_with(change))
    (view,) = reconstruct(photos(tmp_path, (30, 40)))
    assert view.valid[0, :7].tolist() == [False, False, True, False, True, False, True]
    assert view.valid.sum() == view.valid.size - 4
    assert view.confidence[0, 4] == np.inf and view.confidence[0, 6] == 2


def test_results_do_not_share_the_device_buffers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept: list[dict[str, np.ndarray]] = []
    use(monkeypatch, answer_with(kept.extend))
    (view,) = reconstruct(photos(tmp_path, (30, 40)))
    kept[0]["pts3d"][:] = kept[0]["conf"][:] = kept[0]["camera_poses"][:] = 77
    assert (view.points == 1).all() and (view.confidence == 2).all() and (view.camera_to_world == np.eye(4)).all()


def test_each_image_has_its_own_map_on_the_common_grid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, answer_with())
    sizes = [(30, 40), (60, 90), (45, 44)]
    for size, view in zip(sizes, reconstruct(photos(tmp_path, *sizes)), strict=True):
        assert view.pixel_map == pixel_map_for(size, view.points.shape[:2])


@pytest.mark.parametrize("resize", get_args(Resize))
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, orientation: int, resize: Resize) -> None:
    """The map is of the picture as displayed, and its pixels show the colours of the grid."""
    picture = np.zeros((48, 80, 3), np.uint8)
    picture[..., 0] = np.linspace(0, 255, 80)[None, :].round()
    picture[..., 1] = np.linspace(0, 255, 48)[:, None].round()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture).save(tmp_path / "turned.png", exif=exif)
    model = use(monkeypatch, answer_with())
    (view,) = reconstruct([frame(tmp_path / "turned.png")], resize=resize)
    assert view.pixel_map.image_size == ((80, 48) if orientation >= 5 else (48, 80))
    shown = (model.views[0]["img"][0].transpose(1, 2, 0) * STD + MEAN) * 255
    stored = read_image(tmp_path / "turned.png").reshape(-1, 3)[view.pixel_map.nearest_source_pixels()]
    assert np.abs(stored - shown).max() <= 0.5 * 255 / 47 + 4


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda results: results.pop(1), "returned 2 views for 3 images"),
        (lambda results: results.reverse(), "shows another picture than"),
        (lambda results: results[1]["img_no_norm"].fill(np.nan), "shows another picture than"),
        (lambda results: results[1]["camera_poses"].fill(np.nan), "no usable camera"),
    ],
)
def test_results_that_do_not_fit_the_frames(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: Callable[[list[Any]], None], sentence: str
) -> None:
    use(monkeypatch, answer_with(change))
    assert_sentence(lambda: reconstruct(photos(tmp_path, (30, 40), (30, 40), (30, 40))), sentence)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_an_unreadable_image_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, share: float) -> None:
    """`load_images` would drop it without a word and move all later results by one frame."""
    use(monkeypatch, answer_with())
    frames = photos(tmp_path, (30, 40), (30, 40))
    cut = tmp_path / "cut.jpg"
    Image.fromarray(read_image(frames[0].image)).save(cut)
    content = cut.read_bytes()
    cut.write_bytes(content[: int(share * len(content))])
    assert_sentence(lambda: reconstruct([frames[1], frame(cut)]), "cut.jpg")


def test_views_become_tensors(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    [photo] = photos(tmp_path, (14, 28))
    view = mapanything._view(photo, (14, 28), (14, 28), pin=False)
    assert view["img"].shape == (1, 3, 14, 28) and view["img"].dtype == torch.float32
    with torch.inference_mode():
        result = torch.ones(1, 2, 3)
    copy = mapanything._array(result)
    copy[:] = 5
    assert (result == 1).all()
