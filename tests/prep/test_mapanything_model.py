"""Configuration, identity and loading of MapAnything, with stand-ins for torch and the package."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from rw3d_common.errors import UserError
from rw3d_prep.reconstruct import mapanything, mapanything_model
from rw3d_prep.reconstruct.mapanything import MapAnythingBackend, MapAnythingConfig
from rw3d_prep.reconstruct.models import KNOWN

# --- configuration and identity ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"resolution": 512},
        {"resize": "longest_side", "resolution": 500},
        {"minibatch_size": 0},
        {"reize": "x"},
        {"amp": "fp8"},
    ],
)
def test_wrong_configuration_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MapAnythingConfig(**wrong)


def test_identity_of_the_pinned_weights() -> None:
    identity = MapAnythingBackend(MapAnythingConfig()).identity()
    assert set(identity) == {"name", "model", "revision", "licence", "version"}
    assert identity["licence"] == "CC-BY-NC-4.0" and len(identity["revision"]) == 40
    free = MapAnythingBackend(MapAnythingConfig(model="facebook/map-anything-apache")).identity()
    assert free["licence"] == "Apache-2.0" and free["revision"] != identity["revision"]


def test_identity_of_a_folder_comes_from_its_content(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    backend = MapAnythingBackend(MapAnythingConfig(weights=weights_in(tmp_path)))
    digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"  # of b"test"
    assert backend.identity()["revision"] == f"sha256:{digest}"
    apache = KNOWN["facebook/map-anything-apache"]
    known = {"facebook/map-anything-apache": apache._replace(sha256=digest)}
    monkeypatch.setattr(mapanything, "KNOWN", known)
    identity = backend.identity()
    assert (identity["model"], identity["licence"]) == ("facebook/map-anything-apache", "Apache-2.0")
    assert identity["revision"] == apache.revision


# --- loading ----------------------------------------------------------------------------------------------------------


def weights_in(folder: Path) -> Path:
    (folder / "config.json").write_text('{"name": "x", "encoder_config": {"size": "giant"}}')
    (folder / "model.safetensors").write_bytes(b"test")
    return folder


def dinov2_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    code = folder / "hub" / "facebookresearch_dinov2_main"
    code.mkdir(parents=True)
    (code / "hubconf.py").touch()
    monkeypatch.setenv("TORCH_HOME", str(folder))
    return code


def pretend(monkeypatch: pytest.MonkeyPatch, cuda: bool = True) -> None:
    """All packages are installed, with or without a GPU."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(mapanything_model, "_import_torchvision", lambda: None)
    monkeypatch.setattr(mapanything_model, "_cuda_available", lambda: cuda)


def assert_sentence(action: Callable[[], Any], *parts: str) -> None:
    """`action` raises a UserError of one sentence with all `parts`."""
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message and ". " not in message and not message.endswith(".")


def load(**config: Any) -> Any:
    return mapanything_model.load_model(MapAnythingConfig(**config))


def test_incomplete_weights_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert_sentence(lambda: load(weights=tmp_path), str(tmp_path), "no config.json", "docs/mapanything.md")
    absent = tmp_path / "absent"
    assert_sentence(lambda: load(weights=absent), "no config.json and no model.safetensors")


def test_a_model_without_a_pinned_revision() -> None:
    assert_sentence(lambda: load(model="someone/else"), "someone/else", "--set backend.revision=HASH")


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mapanything" else object())
    assert_sentence(load, "needs mapanything, not installed", "docs/mapanything.md", "--backend stereo")


def test_torchvision_of_another_build(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    pretend(monkeypatch)
    monkeypatch.setattr(mapanything_model, "_import_torchvision", broken)
    assert_sentence(load, "torchvision::nms", "pip install --force-reinstall torch torchvision")


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_no_gpu(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    pretend(monkeypatch, cuda=False)
    alternatives = ("--backend stereo", "--backend sensor", "--set backend.device=cpu")
    assert_sentence(lambda: load(device=device), *alternatives)


def test_missing_dinov2_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    weights = weights_in(tmp_path)
    assert_sentence(lambda: load(weights=weights), str(tmp_path / "cache" / "hub"), "facebookresearch_dinov2_main")


def test_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: Any, **options: Any) -> str:
        raise FileNotFoundError("no connection\nand a long explanation")

    pretend(monkeypatch)
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=unreachable))
    assert_sentence(load, "facebook/map-anything", "no connection", "--set backend.weights=DIR")


class FakePackage:
    """Stands for `mapanything.models.MapAnything`: loads DINOv2 through torch.hub as the real one does."""

    def __init__(self, torch: SimpleNamespace) -> None:
        self.torch, self.loads = torch, []  # type: ignore[var-annotated]

    def from_pretrained(self, folder: str, **options: Any) -> FakePackage:
        self.loads.append((folder, options))
        self.torch.hub.load("facebookresearch/dinov2", "dinov2_vitg14", force_reload=False, pretrained=False)
        return self

    def to(self, device: str) -> FakePackage:
        self.device = device
        return self

    def eval(self) -> FakePackage:
        return self


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> FakePackage:
    """torch, safetensors and mapanything as stand-ins; `torch.calls` lists what reached torch.hub."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    hub = SimpleNamespace(load=lambda *arguments, **options: calls.append((arguments, options)))
    fake = FakePackage(SimpleNamespace(hub=hub, calls=calls))
    pretend(monkeypatch)
    monkeypatch.setitem(sys.modules, "torch", fake.torch)
    monkeypatch.setitem(sys.modules, "safetensors", SimpleNamespace(SafetensorError=ArithmeticError))
    monkeypatch.setitem(sys.modules, "mapanything", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "mapanything.models", SimpleNamespace(MapAnything=fake))
    return fake


def test_offline_loading(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: FakePackage) -> None:
    """Strict, from local files, without DINOv2's own weights, without a question to the network, and once."""
    weights, code, before = weights_in(tmp_path), dinov2_in(tmp_path, monkeypatch), package.torch.hub.load
    assert load(weights=weights) is load(weights=weights, mask_edges=False) is package
    encoder = {"size": "giant", "torch_hub_pretrained": False}
    assert package.loads == [(str(weights), {"local_files_only": True, "strict": True, "encoder_config": encoder})]
    assert package.torch.calls == [((str(code), "dinov2_vitg14"), {"source": "local", "pretrained": False})]
    assert package.torch.hub.load is before and package.device == "cuda"


def test_hub_loading_asks_for_the_pinned_revision(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: FakePackage
) -> None:
    asked: list[Any] = []

    def snapshot_download(model: str, local_files_only: bool = False, **options: Any) -> str:
        if local_files_only:
            return str(tmp_path)  # as the hub's client does when only a part of the files is cached
        asked.append((model, options["revision"], options["allow_patterns"]))
        return str(weights_in(tmp_path))

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    load(model="someone/else", revision="a" * 40, device="cpu")
    mapanything_model._load_once.cache_clear()
    load(model="someone/else", revision="a" * 40, device="cpu")  # from the cache now
    assert asked == [("someone/else", "a" * 40, ["config.json", "model.safetensors"])]
    assert package.torch.calls[0][0][0] == "facebookresearch/dinov2" and package.device == "cpu"


@pytest.mark.parametrize("error", [RuntimeError("Missing key(s)\nmore"), ArithmeticError("file is cut off")])
def test_weights_that_do_not_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: FakePackage, error: Exception
) -> None:
    def from_pretrained(folder: str, **options: Any) -> None:
        raise error

    monkeypatch.setattr(package, "from_pretrained", from_pretrained)
    weights = weights_in(tmp_path)
    dinov2_in(tmp_path, monkeypatch)
    assert_sentence(lambda: load(weights=weights), str(weights), "do not load", " ".join(str(error).split()))
