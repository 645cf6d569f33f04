"""MapAnything (facebookresearch/map-anything, v1.1.1): metric geometry from images alone, through its `infer`.

Frames and results are matched by identity, not by position alone. MapAnything's own `load_images` drops files that it
cannot read and numbers what is left, so it is not used: every frame is decoded here (EXIF orientation applied, errors
name the file), put on the grid by `pixel_maps.resample` and normalised, which gives bit for bit the tensors of
`load_images` (a test compares them with recorded ones). It also keeps one full-size image in memory instead of all of
them. Results carry no name either, so each must show its own frame's picture (`img_no_norm`) before it is believed.

The package, torch and the weights are touched only when a batch is reconstructed: docs/mapanything.md installs them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from rw3d_common.cameras import F64, is_rigid
from rw3d_common.config import Section
from rw3d_common.errors import UserError
from rw3d_common.images import image_size, read_image
from rw3d_common.labels import U8
from rw3d_prep.frames import Frame
from rw3d_prep.reconstruct.base import RawView, ViewGeometry
from rw3d_prep.reconstruct.mapanything_model import (
    GUIDE,
    KNOWN,
    LICENCES,
    depth_edges,
    load_model,
    package_version,
    pinned_revision,
    require,
    sha256,
    weights_folder,
)
from rw3d_prep.reconstruct.pixel_maps import PATCH, Resize, Size, pixel_map_for, resample, target_size

DECODERS = min(os.cpu_count() or 1, 8)  # threads; 8 decode faster than any GPU takes the images
PROBE = 8  # of the result's picture, every 8th pixel of every 8th row is compared
NORMALISATION = "dinov2"  # the encoder refuses pictures normalised for another one
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)


class MapAnythingConfig(Section):
    """What to run MapAnything with."""

    kind: Literal["mapanything"] = "mapanything"
    model: str = "facebook/map-anything"
    """Hub name of the weights; `facebook/map-anything-apache` is the one that allows commercial use."""
    revision: str | None = None
    """Commit hash of the weights on the hub, since names there are repointed; None = the one this version pins."""
    weights: Path | None = None
    """Local folder with config.json and model.safetensors, used instead of the hub; nothing is downloaded then."""
    resize: Resize = "fixed_mapping"
    """fixed_mapping: grids the model was trained on, may cut off image margins; longest_side: keeps nearly all."""
    resolution: int = 518
    """Longest side of the grid in pixels: a multiple of 14; 518 is the resolution of the training."""
    memory_efficient: bool = True
    """Run the dense heads in small groups of views: slower, and the peak of GPU memory is far lower."""
    minibatch_size: int | None = Field(default=None, ge=1)
    """Views per group of the dense heads; None = as many as free GPU memory allows (1 on a CPU)."""
    amp: Literal["bf16", "fp16", "none"] = "bf16"
    """Precision on a GPU; bf16 is what MapAnything's authors run. A CPU always computes in float32."""
    mask_edges: bool = True
    """Leave out points at depth edges, which float between foreground and background."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto: the GPU, and an error without one; cpu works, at half a minute to a minute per view."""

    @model_validator(mode="after")
    def _resolution_fits(self) -> Self:
        if self.resize == "fixed_mapping" and self.resolution not in (518, 504):
            raise ValueError(f"resize=fixed_mapping knows resolutions 518 and 504, not {self.resolution}")
        if self.resolution < PATCH or self.resolution % PATCH:
            raise ValueError(f"resolution {self.resolution} is no multiple of {PATCH}, the model's patch size")
        return self


@dataclass(frozen=True)
class Loaded:
    """The images of a batch as `infer` takes them; `target` (height, width) is the grid that they share."""

    sizes: list[Size]
    target: Size
    views: list[dict[str, Any]]


class MapAnythingBackend:
    """The `Backend` of MapAnything: images in, a predicted metric world out; poses and `world_offset` are ignored."""

    needs: tuple[str, ...] = ()

    def __init__(self, config: MapAnythingConfig) -> None:
        self.config = config

    def identity(self) -> dict[str, str]:
        """Name, model, revision, licence and version. Weights of a folder are recognised by their SHA-256.

        Raises:
            UserError: the configured weights folder is incomplete, or the revision is not pinned.
        """
        model, revision = self._weights_identity()
        return {
            "name": "mapanything",
            "model": model,
            "revision": revision,
            "licence": LICENCES.get(model, "unknown"),
            "version": package_version(),
        }

    def require(self) -> None:
        """Check package, weights and device without loading the model.

        Raises:
            UserError: one of them is missing; the message says what to do or which other backend to take.
        """
        require(self.config)

    def _weights_identity(self) -> tuple[str, str]:
        if self.config.weights is None:
            return self.config.model, pinned_revision(self.config)
        digest = sha256(weights_folder(self.config.weights) / "model.safetensors")
        for name, known in KNOWN.items():
            if known.sha256 == digest:
                return name, known.revision
        return self.config.model, f"sha256:{digest}"

    def reconstruct(self, frames: Sequence[Frame], world_offset: F64) -> Iterator[ViewGeometry]:
        """One ViewGeometry per frame, in order, in the world that the model predicts (the scene's own, metres).

        Confidence is MapAnything's raw `conf` in [1, ∞].

        Raises:
            UserError: an image, the weights or the installation cannot be used, or the results do not fit the frames.
            torch.OutOfMemoryError: the batch is too large for the device.
        """
        if frames:
            self.load_model()
            for frame, raw in zip(frames, self.infer(frames, self.load(frames)), strict=True):
                yield self.finish(frame, raw)

    def load_model(self) -> None:
        """Load the model onto its device, once per process.

        Raises:
            UserError: the weights or the installation cannot be used.
        """
        load_model(self.config)

    def load(self, frames: Sequence[Frame]) -> Loaded:
        """Decode, resize and normalise the images of a batch, in pinned memory where a GPU will fetch them.

        Raises:
            UserError: an image cannot be used.
        """
        sizes = [image_size(frame.image) for frame in frames]
        target = target_size(sizes, self.config.resize, self.config.resolution)
        pin = self.config.device != "cpu"
        with ThreadPoolExecutor(DECODERS, "decode") as pool:
            views = list(pool.map(lambda frame, size: _view(frame, size, target, pin), frames, sizes))
        return Loaded(sizes, target, views)

    def infer(self, frames: Sequence[Frame], loaded: Loaded) -> Iterator[RawView]:
        """Run the model and copy its views off the device one by one; see `GpuBackend.infer`."""
        outputs = self._infer(load_model(self.config), frames, loaded.views)
        outputs.reverse()
        for frame, size, view in zip(frames, loaded.sizes, loaded.views, strict=True):
            output = outputs.pop()  # the list must not keep alive what has been copied
            _require_same_picture(frame, view["img"], output)
            view.clear()  # its image lies on the device
            yield _raw_view(frame, size, loaded.target, output)

    def finish(self, frame: Frame, raw: RawView) -> ViewGeometry:
        """Mask depth edges (0.1–0.2 CPU seconds) and lead intrinsics and cells back to the source image."""
        mask = raw.mask & ~depth_edges(raw.points, raw.depth, raw.mask) if self.config.mask_edges else raw.mask
        # The mask may be True where the point is NaN or infinite.
        valid = mask & np.isfinite(raw.points).all(-1) & ~np.isnan(raw.confidence)
        pixel_map = pixel_map_for(raw.image_size, valid.shape)
        intrinsics = pixel_map.source_intrinsics(raw.intrinsics.astype(np.float64))
        pose = raw.camera_to_world.astype(np.float64)
        return ViewGeometry(raw.points, raw.confidence, valid, intrinsics, pose, pixel_map)

    def _infer(self, model: Any, frames: Sequence[Frame], views: list[dict[str, Any]]) -> list[dict[str, Any]]:
        on_gpu = str(model.device).startswith("cuda")
        outputs = model.infer(
            views,
            memory_efficient_inference=self.config.memory_efficient,
            minibatch_size=self.config.minibatch_size or (None if on_gpu else 1),
            use_amp=on_gpu and self.config.amp != "none",  # on a CPU it would quietly mean float16
            amp_dtype="bf16" if self.config.amp == "none" else self.config.amp,
            apply_mask=False,  # `finish` does that where it holds up no GPU
        )
        if len(outputs) != len(frames):
            raise UserError(
                f"MapAnything returned {len(outputs)} views for {len(frames)} images ({frames[0]} …); "
                f"install the version that {GUIDE} names"
            )
        return list(outputs)


def _view(frame: Frame, size: Size, target: Size, pin: bool) -> dict[str, Any]:
    """What `infer` takes for one frame: float32 (1, 3, h, w), normalised as `load_images` does."""
    normalised = (_picture(frame, size, target).astype(np.float32) / np.float32(255) - _MEAN) / _STD
    planes = np.ascontiguousarray(normalised.transpose(2, 0, 1)[None])
    return {"img": _tensor(planes, pin), "data_norm_type": [NORMALISATION], "instance": str(frame)}


def _picture(frame: Frame, size: Size, target: Size) -> U8:
    """The frame's image on the grid, (h, w, 3) uint8 RGB."""
    image = read_image(frame.image)
    if image.shape[:2] != size:
        raise UserError(f"{frame.image}: header says {size[::-1]} pixels, data {image.shape[1::-1]}; save it anew")
    return resample(image, target)


def _tensor(array: np.ndarray, pin: bool) -> Any:
    import torch

    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if pin else tensor


def _array(tensor: Any) -> np.ndarray:
    """A tensor of batch 1 as an array of our own, so that nothing of the device's shared storage stays alive."""
    on_host = tensor.cpu()
    array = on_host.numpy()[0]
    return np.array(array) if on_host is tensor else array


def _require_same_picture(frame: Frame, given: Any, output: dict[str, Any]) -> None:
    normalised = np.moveaxis(_array(given[:, :, ::PROBE, ::PROBE]), 0, -1)
    shown = _array(output["img_no_norm"][:, ::PROBE, ::PROBE])
    picture = normalised * _STD + _MEAN
    if shown.shape != picture.shape or not np.abs(shown - picture).max() <= 0.5 / 255:
        raise UserError(
            f"{frame}: MapAnything's result shows another picture than {frame.image}; "
            f"install the version that {GUIDE} names"
        )


def _raw_view(frame: Frame, size: Size, target: Size, output: dict[str, Any]) -> RawView:
    points, depth = _array(output["pts3d"]), _array(output["depth_z"])[..., 0]
    pose = _array(output["camera_poses"])
    if points.shape[:2] != target or not is_rigid(pose.astype(np.float64)):
        raise UserError(
            f"{frame}: MapAnything gave no usable camera or grid (pose {pose.round(3).tolist()}); "
            "leave this frame out, or try --set backend.amp=none"
        )
    return RawView(
        image_size=size,
        points=points.astype(np.float32, copy=False),
        depth=depth.astype(np.float32, copy=False),
        confidence=_array(output["conf"]).astype(np.float32, copy=False),
        mask=_array(output["non_ambiguous_mask"]).astype(bool, copy=False),
        intrinsics=_array(output["intrinsics"]),
        camera_to_world=pose,
    )
