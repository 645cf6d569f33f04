"""VGGT, Pi3, Pi3X and Depth Anything 3 through the wrappers in MapAnything's package (v1.1.1).

A wrapper has `forward(views)` only and returns six geometric keys and a confidence per view: no picture to recognise
the frame by, no mask, no intrinsics. Its views come back in the order in which they were stacked. torch and the package
are imported inside functions.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rw3d_common.cameras import F64
from rw3d_prep.reconstruct.models import Network

Array = npt.NDArray[Any]
STEP = 4  # the camera is fitted to every 4th ray of every 4th row
KEYS = ("pts3d", "pts3d_cam", "ray_directions", "cam_trans", "cam_quats", "conf")
_NO_INPUTS = {"overall_prob": 0.0}  # the wrappers draw by chance which geometric inputs they use: none


class Wrapper(NamedTuple):
    """The class whose `from_pretrained` a wrapper asks for weights, what it is built with, and the package it needs."""

    network: str
    arguments: Mapping[str, Any]
    package: str | None = None


WRAPPERS: dict[Network, Wrapper] = {
    "vggt": Wrapper("VGGT", {}),
    "pi3": Wrapper("Pi3", {}),
    "pi3x": Wrapper("Pi3X", {"geometric_input_config": _NO_INPUTS}, "pi3"),
    "da3": Wrapper("DepthAnything3", {"hf_model_name": "", "geometric_input_config": _NO_INPUTS}, "depth_anything_3"),
}


def load(network: Network, folder: Path) -> Any:
    """The wrapped model with the weights of `folder`, on the CPU; errors are those of the package.

    Wrappers name a hub repository without a revision, so their request is led to the folder. It is strict: tensors that
    the file lacks would otherwise stay random without a word.
    """
    factory = importlib.import_module("mapanything.models").model_factory
    wrapper = WRAPPERS[network]
    module = importlib.import_module(f"mapanything.models.external.{network}")
    with _weights_from(folder, getattr(module, wrapper.network)):
        return factory(network, name=network, torch_hub_force_reload=False, **wrapper.arguments)


@contextmanager
def _weights_from(folder: Path, network: Any) -> Iterator[None]:
    original = network.from_pretrained
    network.from_pretrained = lambda *_, **__: original(str(folder), local_files_only=True, strict=True)
    try:
        yield
    finally:
        network.from_pretrained = original


def infer(model: Any, views: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One output per view. Like MapAnything's `infer`, it moves the views' images to the model's device."""
    import torch

    device = next(model.parameters()).device
    for view in views:
        view["img"] = view["img"].to(device, non_blocking=True)
    with torch.inference_mode():
        return list(model(views))


def completed(output: Mapping[str, Array]) -> dict[str, Array]:
    """What MapAnything's `infer` would have given for one view, from the KEYS of a wrapper, all without batch axis.

    `pts3d` (H, W, 3), `depth_z` (H, W, 1), `conf` (H, W) as the model gives it, `non_ambiguous_mask` (H, W): True where
    the point is finite, for these models state no mask; `intrinsics` (3, 3) of the grid, fitted to the rays;
    `camera_poses` (4, 4) from the quaternion (x, y, z, w).
    """
    points = output["pts3d"]
    return {
        "pts3d": points,
        "depth_z": output["pts3d_cam"][..., 2:],
        "conf": output["conf"].reshape(points.shape[:2]),  # Pi3 has an axis more
        "non_ambiguous_mask": np.asarray(np.isfinite(points).all(-1)),
        "intrinsics": fitted_intrinsics(output["ray_directions"]),
        "camera_poses": _pose(output["cam_quats"], output["cam_trans"]),
    }


def fitted_intrinsics(rays: Array) -> F64:
    """The pinhole matrix (3, 3) that fits rays (H, W, 3) best, in pixels with centres at integers; NaN where none does.

    Least squares of column = fx · x/z + cx, and rows likewise; Pi3's rays are not quite a pinhole's.
    """
    row, column = np.mgrid[: rays.shape[0] : STEP, : rays.shape[1] : STEP].reshape(2, -1)
    x, y, z = rays[::STEP, ::STEP].reshape(-1, 3).astype(np.float64).T
    seen = np.isfinite(x) & np.isfinite(y) & (z > 0)
    if not seen.any():
        return np.full((3, 3), np.nan)
    fx, cx = _line(x[seen] / z[seen], column[seen])
    fy, cy = _line(y[seen] / z[seen], row[seen])
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def _line(slope: F64, pixel: Array) -> tuple[float, float]:
    """Focal length and centre of pixel = f · slope + c; not finite where the slopes are all the same."""
    away = slope - slope.mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        focal = away @ pixel / (away @ away)
        return float(focal), float(pixel.mean() - focal * slope.mean())


def _pose(quaternion: Array, position: Array) -> F64:
    from scipy.spatial.transform import Rotation

    pose = np.full((4, 4), np.nan)
    if np.isfinite(quaternion).all() and quaternion.any():
        pose = np.eye(4)
        pose[:3, :3] = Rotation.from_quat(quaternion).as_matrix()
        pose[:3, 3] = position
    return pose
