"""The other models of MapAnything's package: loading, what their results mean, and which licences are refused."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from builders import kitti360_tree
from rw3d_common.errors import UserError
from rw3d_prep import cli, doctor
from rw3d_prep.attributes import scene_attributes
from rw3d_prep.config import load_config
from rw3d_prep.frames import Frame
from rw3d_prep.reconstruct import mapanything, mapanything_model, wrappers
from rw3d_prep.reconstruct.base import ViewGeometry
from rw3d_prep.reconstruct.mapanything import MapAnythingBackend, MapAnythingConfig
from rw3d_prep.reconstruct.models import KNOWN, model_of

WRAPPED = sorted(name for name, model in KNOWN.items() if model.network != "mapanything")
FREE = {
    "facebook/map-anything-apache",
    "facebook/map-anything-apache-v1",
    "depth-anything/DA3-BASE",
    "depth-anything/DA3-SMALL",
}
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
REVISION = "0123456789abcdef0123456789abcdef01234567"


def assert_sentence(action: Callable[[], Any], *parts: str) -> None:
    """`action` raises a UserError of one sentence with all `parts`."""
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message and not message.endswith(".")


# --- what their results mean ------------------------------------------------------------------------------------------


class FakeWrapper:
    """Answers `forward` as the package's wrappers do: six geometric keys and a confidence, tensors of batch 1."""

    def __init__(self, confidence: Callable[[int, int], np.ndarray], lost: int = 0) -> None:
        import torch

        self.torch, self.confidence, self.lost = torch, confidence, lost
        self.views: list[dict[str, Any]] = []

    def parameters(self) -> Any:
        return iter([self.torch.zeros(1)])

    def __call__(self, views: list[dict[str, Any]]) -> list[dict[str, Any]]:
        assert self.torch.is_inference_mode_enabled()
        self.views = [{**view} for view in views]
        return [self._see(view, number) for number, view in enumerate(views)][self.lost :]

    def _see(self, view: dict[str, Any], number: int) -> dict[str, Any]:
        height, width = view["img"].shape[2:]
        row, column = np.mgrid[:height, :width]
        flat = np.stack([(column - 30.5) / 80, (row - 20.25) / 90, np.ones((height, width))], -1)
        camera = flat * 5
        turned = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])  # a quarter turn about y
        points = camera @ turned.T + [number, 2, 3]
        points[0, 0] = np.inf
        outputs = {
            "pts3d": points,
            "pts3d_cam": camera,
            "ray_directions": flat / np.linalg.norm(flat, axis=-1, keepdims=True),
            "depth_along_ray": np.linalg.norm(camera, axis=-1, keepdims=True),
            "cam_trans": np.array([number, 2.0, 3.0]),
            "cam_quats": np.array([0, np.sqrt(0.5), 0, np.sqrt(0.5)]),
            "conf": self.confidence(height, width),
        }
        return {key: self.torch.from_numpy(np.float32(value)[None]) for key, value in outputs.items()}


def from_one(height: int, width: int) -> np.ndarray:
    return 1 + np.exp(np.linspace(-4, 4, height * width)).reshape(height, width)


def logits(height: int, width: int) -> np.ndarray:
    return np.linspace(-7, 7, height * width).reshape(height, width, 1)


CONFIDENCES = {"vggt": from_one, "da3": from_one, "pi3": logits, "pi3x": logits}


def photos(folder: Path) -> list[Frame]:
    frames = []
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
        frames.append(Frame("train", "street", number, "", folder / f"{number}.png"))
    return frames


def run(
    monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, **values: Any
) -> tuple[FakeWrapper, list[ViewGeometry]]:
    pytest.importorskip("torch", reason="torch is not installed")
    fake = FakeWrapper(CONFIDENCES[model_of(name).network], **values)
    monkeypatch.setattr(mapanything, "load_model", lambda config: fake)
    config = MapAnythingConfig(model=name, device="cpu", mask_edges=False, resize="longest_side", resolution=70)
    return fake, list(MapAnythingBackend(config).reconstruct(photos(folder), np.zeros(3)))


@pytest.mark.parametrize("name", WRAPPED)
def test_results_become_views(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    fake, views = run(monkeypatch, tmp_path, name)
    height, width = views[0].valid.shape
    for number, view in enumerate(views):
        assert view.valid.sum() == view.valid.size - 1 and not view.valid[0, 0], "no mask: what is finite is valid"
        assert view.points.shape == (height, width, 3) and view.points.dtype == np.float32
        expected = CONFIDENCES[KNOWN[name].network](height, width).reshape(height, width).astype(np.float32)
        assert np.array_equal(view.confidence, expected), "raw, logits negative"
        turned = [[0, 0, 1, number], [0, 1, 0, 2], [-1, 0, 0, 3], [0, 0, 0, 1]]
        assert view.camera_to_world == pytest.approx(np.array(turned), abs=1e-6)
        on_grid = view.pixel_map.grid_intrinsics(view.intrinsics)
        assert on_grid == pytest.approx(np.array([[80, 0, 30.5], [0, 90, 20.25], [0, 0, 1]]), abs=1e-3)
        assert set(fake.views[number]) == {"img", "data_norm_type", "instance"}


@pytest.mark.parametrize("name", WRAPPED)
def test_pictures_are_normalised_as_each_model_wants(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    fake, _ = run(monkeypatch, tmp_path, name)
    (view, _), kind = fake.views, {"vggt": "identity", "pi3": "identity", "pi3x": "identity", "da3": "dinov2"}
    image = np.moveaxis(view["img"][0].numpy(), 0, -1)
    assert view["data_norm_type"] == [kind[KNOWN[name].network]]
    shown = image if kind[KNOWN[name].network] == "identity" else image * STD + MEAN
    assert shown.min() >= -1e-6 and shown.max() <= 1 + 1e-6 and shown.std() > 0.2
    assert (image.min() < -0.5) == (kind[KNOWN[name].network] == "dinov2")


def test_a_lost_view_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert_sentence(lambda: run(monkeypatch, tmp_path, "yyfz233/Pi3", lost=1), "yyfz233/Pi3 returned 1 views for 2")


@pytest.mark.parametrize("broken", ["cam_quats", "cam_trans", "ray_directions"])
def test_a_camera_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: str) -> None:
    see = FakeWrapper._see

    def worse(self: FakeWrapper, view: dict[str, Any], number: int) -> dict[str, Any]:
        output = see(self, view, number)
        output[broken] = output[broken] * float("nan")
        return output

    monkeypatch.setattr(FakeWrapper, "_see", worse)
    assert_sentence(lambda: run(monkeypatch, tmp_path, "facebook/VGGT-1B"), "street/0000000000", "no usable camera")


def test_the_camera_is_fitted_by_least_squares() -> None:
    """Against numpy's solver over all rays that are looked at, with noise and rays that are none."""
    rng = np.random.default_rng(0)
    row, column = np.mgrid[:42, :70]
    rays = np.stack([(column - 33) / 61, (row - 22) / 64, np.ones(row.shape)], -1) + rng.normal(0, 1e-2, (42, 70, 3))
    rays[8, 8], rays[12, 12] = np.nan, -rays[12, 12]
    samples = rays[::4, ::4].reshape(-1, 3)
    seen = np.isfinite(samples).all(-1) & (samples[:, 2] > 0)
    slopes, pixels = samples[seen, :2] / samples[seen, 2:], np.stack([column, row], -1)[::4, ::4].reshape(-1, 2)[seen]
    expected = [
        np.linalg.lstsq(np.column_stack([slopes[:, axis], np.ones(len(slopes))]), pixels[:, axis])[0] for axis in (0, 1)
    ]
    fitted = wrappers.fitted_intrinsics(rays)
    assert fitted[[0, 1], [0, 1]] == pytest.approx([expected[0][0], expected[1][0]])
    assert fitted[:2, 2] == pytest.approx([expected[0][1], expected[1][1]])
    for useless in (rays * np.nan, np.tile([0.0, 0.0, 1.0], (42, 70, 1))):
        assert not np.isfinite(wrappers.fitted_intrinsics(useless)).all()


def test_identity_states_unit_and_confidence() -> None:
    def identity(name: str) -> dict[str, str]:
        return MapAnythingBackend(MapAnythingConfig(model=name, revision=REVISION)).identity()

    assert {name for name in WRAPPED if identity(name)["metric"] == "true"} == {
        "yyfz233/Pi3X",
        "depth-anything/DA3NESTED-GIANT-LARGE-1.1",
    }
    assert {name for name in WRAPPED if "logit" in identity(name)["confidence"]} == {"yyfz233/Pi3", "yyfz233/Pi3X"}
    assert "metric" not in identity("facebook/map-anything")
    config = load_config("kitti360", None, None, None, [])
    for name, unit in (("facebook/VGGT-1B", "of the model's own"), ("yyfz233/Pi3X", "metres")):
        attributes = scene_attributes(config, "train", "s", Path(), identity(name), np.zeros(3))
        assert attributes["axes"].endswith(unit) and attributes["backend"]["model"] == name


def test_the_grid_is_that_of_the_training() -> None:
    sizes = {name: MapAnythingConfig(model=name).resolution for name in KNOWN}
    assert {name for name, size in sizes.items() if size == 504} == {name for name in WRAPPED if "DA3" in name}
    assert set(sizes.values()) == {504, 518}
    assert MapAnythingConfig(model="facebook/VGGT-1B", resolution=504).resolution == 504


# --- loading ----------------------------------------------------------------------------------------------------------


class Network:
    """Stands in for a class of the hub's mixin."""

    asked: tuple[Any, ...] = ()

    @classmethod
    def from_pretrained(cls, *where: str, **options: Any) -> Network:
        loaded = cls()
        loaded.asked = (*where, options)
        return loaded


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A package whose wrappers ask the hub for weights by a fixed name, as the real ones do, and a machine with a GPU."""

    def factory(network: str, **arguments: Any) -> Any:
        if network == "vggt":  # asks for DINOv2 with its weights
            sys.modules["torch"].hub.load("facebookresearch/dinov2", "dinov2_vitl14_reg")
        loaded = modules[network].from_pretrained("somewhere/on-the-hub", force_download=True)
        wrapped = SimpleNamespace(network=network, arguments=arguments, asked=loaded.asked)
        wrapped.to = lambda device: wrapped
        wrapped.eval = lambda: wrapped
        return wrapped

    modules = {network: type(network, (Network,), {}) for network in wrappers.WRAPPERS}
    for network, wrapper in wrappers.WRAPPERS.items():
        module = SimpleNamespace(**{wrapper.network: modules[network]})
        monkeypatch.setitem(sys.modules, f"mapanything.models.external.{network}", module)
    monkeypatch.setitem(sys.modules, "mapanything.models", SimpleNamespace(model_factory=factory))
    monkeypatch.setitem(sys.modules, "safetensors", SimpleNamespace(SafetensorError=ZeroDivisionError))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(mapanything_model, "_import_torchvision", lambda: None)
    monkeypatch.setattr(mapanything_model, "_cuda_available", lambda: True)
    monkeypatch.setattr(mapanything_model, "dinov2_code", lambda: Path("code"))
    hub = SimpleNamespace(asked=[], load=lambda *what, **options: hub.asked.append((what, options)))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(hub=hub))
    return SimpleNamespace(**modules, hub=hub)


def weights_in(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"test")
    return folder


@pytest.mark.parametrize("name", WRAPPED)
def test_weights_come_from_the_folder_and_must_be_complete(package: Any, tmp_path: Path, name: str) -> None:
    weights = weights_in(tmp_path / "weights")
    loaded = mapanything_model.load_model(MapAnythingConfig(model=name, weights=weights))
    network = KNOWN[name].network
    assert (loaded.network, loaded.arguments["name"]) == (network, network)
    assert loaded.asked == (str(weights), {"local_files_only": True, "strict": True})
    assert loaded.arguments.get("geometric_input_config", {"overall_prob": 0}) == {"overall_prob": 0}
    encoder = (("code", "dinov2_vitl14_reg"), {"source": "local", "pretrained": False})
    assert package.hub.asked == ([encoder] if network == "vggt" else [])
    asked = getattr(package, network).from_pretrained("someone/else").asked
    assert asked == ("someone/else", {}), "the package is left as it was"


def test_weights_come_from_the_hub_at_a_revision(package: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fetched: list[Any] = []

    def snapshot_download(model: str, revision: str, **options: Any) -> str:
        fetched.append((model, revision))
        return str(weights_in(tmp_path / "cache"))

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    config = MapAnythingConfig(model="yyfz233/Pi3", revision=REVISION)
    assert mapanything_model.load_model(config).asked[0] == str(tmp_path / "cache")
    assert set(fetched) == {("yyfz233/Pi3", REVISION)}


@pytest.mark.parametrize("error", [RuntimeError, KeyError, ZeroDivisionError])
def test_weights_that_do_not_fit_are_named(
    package: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: type[Exception]
) -> None:
    def misfit(*where: str, **options: Any) -> None:
        raise error("Missing key(s) in state_dict")

    monkeypatch.setattr(package.vggt, "from_pretrained", misfit)
    config = MapAnythingConfig(model="facebook/VGGT-1B", weights=weights_in(tmp_path / "misfit"))
    assert_sentence(lambda: mapanything_model.load_model(config), "misfit", "do not load", "Missing key(s)")


def test_dinov2_is_asked_for_where_it_is_needed(package: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mapanything_model, "dinov2_code", lambda: None)
    weights = weights_in(tmp_path / "weights")
    for name in WRAPPED:
        config = MapAnythingConfig(model=name, weights=weights)
        if KNOWN[name].network == "vggt":
            assert_sentence(lambda: mapanything_model.require(config), "DINOv2's code", "TORCH_HOME")  # noqa: B023
        else:
            assert mapanything_model.require(config) == "cuda"


@pytest.mark.parametrize("name", WRAPPED)
def test_nothing_is_loaded_by_name_alone(name: str) -> None:
    assert_sentence(
        lambda: MapAnythingBackend(MapAnythingConfig(model=name)).require(), name, "--set backend.revision=HASH"
    )


def test_a_package_of_its_own_is_named(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"pi3", "depth_anything_3"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in own else object())
    for name, lacking in (("yyfz233/Pi3X", "pi3x needs pi3"), ("depth-anything/DA3-BASE", "needs depth_anything_3")):
        config = MapAnythingConfig(model=name, revision=REVISION)
        assert_sentence(lambda: mapanything_model.require(config), lacking, "docs/mapanything.md")  # noqa: B023
    for name in ("yyfz233/Pi3", "facebook/VGGT-1B"):
        assert mapanything_model.require(MapAnythingConfig(model=name, revision=REVISION)) == "cuda"


def test_wrappers_need_a_gpu(package: Any) -> None:
    config = MapAnythingConfig(model="yyfz233/Pi3", revision=REVISION, device="cpu")
    assert_sentence(lambda: mapanything_model.require(config), "yyfz233/Pi3", "CUDA GPU only", "backend.device=cpu")


# --- licences ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*KNOWN, "someone/else"])
def test_commercial_policy(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Refused before anything is looked for; what is allowed passes on to the checks of the machine."""
    checked: list[Any] = []
    monkeypatch.setattr(mapanything, "require", checked.append)
    backend = MapAnythingBackend(MapAnythingConfig(model=name, licence_policy="commercial"))
    if name in FREE:
        backend.require()
        assert checked == [backend.config]
        return
    licence = "unknown" if name == "someone/else" else "CC-BY-NC-4.0"
    assert_sentence(backend.require, name, licence, "--model facebook/map-anything-apache")
    assert_sentence(backend.load_model, name, licence)
    assert not checked
    MapAnythingBackend(MapAnythingConfig(model=name)).require()


def test_known_weights_in_a_folder_keep_their_licence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever name they are given."""
    digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"  # of b"test"
    monkeypatch.setattr(mapanything, "require", lambda config: "cuda")
    config = MapAnythingConfig(
        model="facebook/map-anything-apache", weights=weights_in(tmp_path / "w"), licence_policy="commercial"
    )
    MapAnythingBackend(config).require()
    name = "facebook/map-anything"
    monkeypatch.setitem(KNOWN, name, KNOWN[name]._replace(sha256=digest))
    assert_sentence(MapAnythingBackend(config).require, f"{name}: ", "CC-BY-NC-4.0")


def test_the_command_refuses_a_licence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kitti360_tree(tmp_path / "kitti", frames=range(2))
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    arguments = ["--dataset", "kitti360", "--root", str(tmp_path / "kitti"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["rw3d-prep", "reconstruct", *arguments, "--licence-policy", "commercial"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "CC-BY-NC-4.0" in said and "Traceback" not in said
    assert not [*(tmp_path / "out").rglob("*.zarr*")]


# --- doctor -----------------------------------------------------------------------------------------------------------


def test_doctor_names_the_weights_at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    weights_in(tmp_path / "x")  # somebody else's folder
    for name in ("yyfz233--Pi3", "depth-anything--DA3-BASE"):
        folder = tmp_path / f"models--{name}" / "snapshots"
        folder.mkdir(parents=True)
        weights_in(folder / REVISION)
    check = doctor._weights()
    assert check.ok is None and "--revision" in check.mend
    assert check.found == f"yyfz233/Pi3 at {REVISION[:12]}, depth-anything/DA3-BASE at {REVISION[:12]}"
