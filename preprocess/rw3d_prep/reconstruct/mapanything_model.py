"""Finding and loading weights, package and device of MapAnything and its like, and what to say when one is missing.

The package is not on PyPI and loads parts of itself from the network at run time; docs/mapanything.md tells how to
install it and to have everything local. torch and the package are imported inside functions only.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rw3d_common.cameras import F32
from rw3d_common.errors import UserError
from rw3d_prep.reconstruct import wrappers
from rw3d_prep.reconstruct.models import Network, model_of

if TYPE_CHECKING:
    from rw3d_prep.reconstruct.mapanything import MapAnythingConfig

GUIDE = "docs/mapanything.md"
WEIGHT_FILES = ("config.json", "model.safetensors")
EDGE_DEGREES, EDGE_DEPTH_SHARE = 5.0, 0.03  # the defaults of `infer`
WITH_DINOV2: tuple[Network, ...] = ("mapanything", "vggt")  # they build their encoder from DINOv2's code
PACKAGES = ("torch", "torchvision", "uniception", "mapanything")


def load_model(config: MapAnythingConfig) -> Any:
    """The model on its device, loaded once per process.

    Raises:
        UserError: what `require` refuses, or weights that do not fit the package.
    """
    device = require(config)
    revision = "" if config.weights is not None else pinned_revision(config)
    return _load_once(config.weights, config.model, revision, device)


def require(config: MapAnythingConfig) -> str:
    """Check that the model can run here, without loading it; returns the device.

    What needs neither torch nor a network is checked first, and the device before anything is downloaded.

    Raises:
        UserError: weights, package or GPU missing, or torch and torchvision of different builds.
    """
    network = model_of(config.model).network
    if config.weights is None:
        pinned_revision(config)
    else:
        weights_folder(config.weights)
    if config.device == "cpu" and network != "mapanything":
        raise UserError(
            f"{config.model} runs on a CUDA GPU only, for its wrapper in MapAnything's package asks for one; "
            "drop backend.device=cpu, or choose --model facebook/map-anything"
        )
    require_packages(network)
    device = choose_device(config.device)
    if config.weights is not None and network in WITH_DINOV2 and dinov2_code() is None:
        raise _no_dinov2()
    return device


@cache
def _load_once(weights: Path | None, model: str, revision: str, device: str) -> Any:
    folder = weights if weights is not None else _download(model, revision)
    network = model_of(model).network
    with _local_dinov2(), redirect_stdout(sys.stderr):  # the package prints; standard output is for tables and paths
        loaded = _from_pretrained(folder) if network == "mapanything" else _wrapped(network, folder)
        return loaded.to(device).eval()


@contextmanager
def _local_dinov2() -> Iterator[None]:
    """Have the encoder take DINOv2's code from torch.hub's cache if it is there, without a word to the network.

    The package asks torch.hub for it by its GitHub name, and torch.hub asks the network for the branch even then. VGGT
    also asks for DINOv2's weights, a gigabyte that its own replace at once.
    """
    code = dinov2_code()
    if code is None:
        yield
        return
    import torch

    original = torch.hub.load

    def load(repository: str, entry: str, *, force_reload: bool = False, **options: Any) -> Any:
        return original(str(code), entry, source="local", **{**options, "pretrained": False})

    torch.hub.load = load
    try:
        yield
    finally:
        torch.hub.load = original


def _from_pretrained(folder: Path) -> Any:
    from mapanything.models import MapAnything

    damaged = importlib.import_module("safetensors").SafetensorError
    try:
        encoder = json.loads((folder / "config.json").read_text(encoding="utf-8"))["encoder_config"]
        return MapAnything.from_pretrained(
            str(folder),
            local_files_only=True,
            strict=True,  # otherwise tensors that the file lacks stay random without a word
            encoder_config={**encoder, "torch_hub_pretrained": False},  # the encoder's weights are in the file too
        )
    except (RuntimeError, KeyError, TypeError, ValueError, OSError, damaged) as error:
        raise _misfit("mapanything", folder, error) from error


def _wrapped(network: Network, folder: Path) -> Any:
    damaged = importlib.import_module("safetensors").SafetensorError
    try:
        return wrappers.load(network, weights_folder(folder))
    except (RuntimeError, KeyError, TypeError, ValueError, OSError, ImportError, AttributeError, damaged) as error:
        raise _misfit(network, folder, error) from error


def _misfit(network: Network, folder: Path, error: Exception) -> UserError:
    if network in WITH_DINOV2 and dinov2_code() is None:  # torch.hub could not fetch it
        return _no_dinov2()
    return UserError(
        f"{folder}: these weights do not load into the installed MapAnything {package_version()} "
        f"({_brief(error)}); use the weights and the version that {GUIDE} names"
    )


def _no_dinov2() -> UserError:
    return UserError(
        f"DINOv2's code is not in {torch_home() / 'hub'}; clone github.com/facebookresearch/dinov2 there as "
        f"facebookresearch_dinov2_main ({GUIDE}), or set TORCH_HOME to where it is"
    )


def _download(model: str, revision: str) -> Path:
    """The folder of the weights in the hub's cache, fetched if they are not there yet."""
    from huggingface_hub import snapshot_download

    fetch = partial(snapshot_download, model, revision=revision, allow_patterns=list(WEIGHT_FILES))
    with suppress(OSError, ValueError, UserError):  # cache first: offline, asking the hub takes half a minute
        return weights_folder(Path(fetch(local_files_only=True)))
    try:
        return Path(fetch())
    except (OSError, ValueError) as error:  # every error of the hub's client is one of the two
        raise UserError(
            f"{model} at {revision} is neither in the local cache nor to be had from the hub ({_brief(error)}); "
            f"fetch it on a machine with a network ({GUIDE}) and pass the folder with --set backend.weights=DIR"
        ) from error


def depth_edges(points: F32, depth: F32, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """(H, W) bool: where `infer(mask_edges=True)` sees an edge, by the package's own functions and its defaults.

    That is where both normals and depth jump. Points (H, W, 3) and depth (H, W) in metres, `mask` (H, W) bool as in
    `non_ambiguous_mask`. Needs no GPU.
    """
    if not mask.any():
        return ~mask
    from mapanything.utils.geometry import depth_edge, normals_edge, points_to_normals

    with np.errstate(all="ignore"):  # what is masked out may be anything
        normals, with_normal = points_to_normals(points, mask=mask)
        turns = normals_edge(normals, tol=EDGE_DEGREES, mask=with_normal)
        return turns & depth_edge(depth, rtol=EDGE_DEPTH_SHARE, mask=mask)


def pinned_revision(config: MapAnythingConfig) -> str:
    """The hub commit to load: the configured one, or the one that this version pins for the model.

    Raises:
        UserError: neither is there; hub names are repointed, so nothing is loaded by name alone.
    """
    if config.revision is not None:
        return config.revision
    if (pinned := model_of(config.model).revision) is not None:
        return pinned
    raise UserError(
        f"{config.model}: no revision is pinned for these weights; take the commit hash from 'Files and versions' of "
        "its hub page and pass it with --set backend.revision=HASH"
    )


def weights_folder(folder: Path) -> Path:
    """`folder`, once it is known to hold all of WEIGHT_FILES.

    Raises:
        UserError: a file is missing.
    """
    missing = [name for name in WEIGHT_FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder}: no {' and no '.join(missing)} in the weights folder; "
            f"copy both files of the hub's repository there ({GUIDE})"
        )
    return folder


def require_packages(network: Network = "mapanything") -> None:
    """Check that the packages of `network` are there and that torch and torchvision load together.

    Raises:
        UserError: one is missing, or the two are of different builds.
    """
    missing = [name for name in packages_of(network) if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{'MapAnything' if network == 'mapanything' else network} needs {', '.join(missing)}, not installed here; "
            f"install as {GUIDE} says, or choose --backend stereo or --backend sensor"
        )
    try:
        _import_torchvision()
    except (ImportError, RuntimeError, OSError) as error:
        raise UserError(
            f"torch and torchvision are of different builds ({_brief(error)}); install both anew from the same "
            "index, for example pip install --force-reinstall torch torchvision"
        ) from error


def packages_of(network: Network) -> tuple[str, ...]:
    """The packages, by import name, that a network runs with."""
    own = wrappers.WRAPPERS[network].package if network != "mapanything" else None
    return PACKAGES if own is None else (*PACKAGES, own)


def _import_torchvision() -> None:
    import torchvision  # noqa: F401


def choose_device(choice: str) -> str:
    """ "cuda" or "cpu" for "auto", "cuda" or "cpu".

    Raises:
        UserError: a GPU is wanted and torch sees none.
    """
    if choice == "cpu":
        return "cpu"
    if _cuda_available():
        return "cuda"
    raise UserError(
        "MapAnything needs a CUDA GPU and torch sees none; choose --backend stereo or --backend sensor where the "
        "dataset allows it, or --set backend.device=cpu and be patient"
    )


def _cuda_available() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def torch_home() -> Path:
    """Where torch.hub keeps code and weights: TORCH_HOME, or torch/ in the user's cache."""
    cache_home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", f"{cache_home}/torch")).expanduser()


def dinov2_code() -> Path | None:
    """The folder with DINOv2's code in torch.hub's cache, or None."""
    folders = [torch_home() / "hub" / f"facebookresearch_dinov2_{branch}" for branch in ("main", "master")]
    return next((folder for folder in folders if (folder / "hubconf.py").is_file()), None)


def package_version() -> str:
    """Version of the installed package, with its commit where pip recorded one; 'not installed' without it."""
    try:
        package = importlib.metadata.distribution("mapanything")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    origin = json.loads(package.read_text("direct_url.json") or "{}")
    commit = origin.get("vcs_info", {}).get("commit_id", "")
    return f"{package.version} {commit}".strip()


def sha256(path: Path) -> str:
    """SHA-256 of a file, read once per process as long as its size and time stay the same."""
    status = path.stat()
    return _sha256_of(path, status.st_size, status.st_mtime_ns)


@cache
def _sha256_of(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _brief(error: Exception) -> str:
    return textwrap.shorten(str(error), 200, placeholder=" …")
