"""MapAnything (facebookresearch/map-anything, v1.1.1) and the feed-forward models that its package wraps.

MapAnything predicts metric geometry from images, and from what else the dataset knows where `use` says so, through its
`infer`; for VGGT, Pi3, Pi3X and Depth Anything 3 see `wrappers`.

Frames and results are matched by identity, not by position alone. MapAnything's own `load_images` drops files that it
cannot read and numbers what is left, so it is not used: every frame is decoded here (EXIF orientation applied, errors
name the file), put on the grid by `pixel_maps.resample` and normalised, which gives bit for bit the tensors of
`load_images` (a test compares them with recorded ones). It also keeps one full-size image in memory instead of all of
them. MapAnything's results carry no name either, so each must show its own frame's picture (`img_no_norm`) before it is
believed.

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
from pydantic import Field, field_validator, model_validator

from rw3d_common.cameras import F64, is_rigid
from rw3d_common.config import Section
from rw3d_common.errors import UserError
from rw3d_common.images import image_size, read_image
from rw3d_common.labels import U8
from rw3d_prep.frames import Frame
from rw3d_prep.reconstruct import wrappers
from rw3d_prep.reconstruct.base import RawView, ViewGeometry
from rw3d_prep.reconstruct.geometric_inputs import NEEDS, GeometricInput, anchor, inputs_of, moved, recentred_pose
from rw3d_prep.reconstruct.mapanything_model import (
    GUIDE,
    depth_edges,
    load_model,
    package_version,
    pinned_revision,
    require,
    sha256,
    weights_folder,
)
from rw3d_prep.reconstruct.models import KNOWN, LicencePolicy, Model, model_of, refuse_licence
from rw3d_prep.reconstruct.pixel_maps import PATCH, Resize, Size, pixel_map_for, resample, target_size

DECODERS = min(os.cpu_count() or 1, 8)  # threads; 8 decode faster than any GPU takes the images
PROBE = 8  # of the result's picture, every 8th pixel of every 8th row is compared
OUTPUTS = ("pts3d", "depth_z", "conf", "non_ambiguous_mask", "intrinsics", "camera_poses")  # what is kept of `infer`'s
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)


class MapAnythingConfig(Section):
    """What to run MapAnything, or another model of its package, with."""

    kind: Literal["mapanything"] = "mapanything"
    model: str = "facebook/map-anything"
    """Hub name of the weights; docs/mapanything.md lists those of other models, their licences and what they need."""
    licence_policy: LicencePolicy = "any"
    """commercial: refuse weights whose licence forbids commercial use or is not known."""
    revision: str | None = None
    """Commit hash of the weights on the hub, since names there are repointed; None = the one this version pins."""
    weights: Path | None = None
    """Local folder with config.json and model.safetensors, used instead of the hub; nothing is downloaded then."""
    resize: Resize = "fixed_mapping"
    """fixed_mapping: grids the model was trained on, may cut off image margins; longest_side: keeps nearly all."""
    resolution: int = 518
    """Longest side of the grid in pixels: a multiple of 14; by default that of the model's training, 518 or 504."""
    use: tuple[GeometricInput, ...] = ()
    """What MapAnything is told beside the pictures; with poses the scene's world is the dataset's."""
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

    @model_validator(mode="before")
    @classmethod
    def _resolution_of_the_model(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("model"), str):
            return {"resolution": model_of(values["model"]).resolution, **values}
        return values

    @field_validator("use")
    @classmethod
    def _each_once(cls, use: tuple[GeometricInput, ...]) -> tuple[GeometricInput, ...]:
        return tuple(name for name in NEEDS if name in use)

    @model_validator(mode="after")
    def _use_fits(self) -> Self:
        if self.use and model_of(self.model).network != "mapanything":
            raise ValueError(
                f"use: {self.model} is given pictures only; leave `use` out, or choose a MapAnything model"
            )
        if "depth" in self.use and "intrinsics" not in self.use:
            raise ValueError("use: depth means nothing without intrinsics; say use=[intrinsics, depth]")
        return self

    @model_validator(mode="after")
    def _resolution_fits(self) -> Self:
        if self.resize == "fixed_mapping" and self.resolution not in (518, 504):
            raise ValueError(f"resize=fixed_mapping knows resolutions 518 and 504, not {self.resolution}")
        if self.resolution < PATCH or self.resolution % PATCH:
            raise ValueError(f"resolution {self.resolution} is no multiple of {PATCH}, the model's patch size")
        return self


@dataclass(frozen=True)
class Loaded:
    """The images of a batch as `infer` takes them; `target` (height, width) is the grid that they share.

    `reference` (4, 4) is the first view's given pose in the scene's world, None where the world is the model's own.
    """

    sizes: list[Size]
    target: Size
    views: list[dict[str, Any]]
    reference: F64 | None = None


class MapAnythingBackend:
    """The `Backend` of MapAnything and its like: images in, a predicted world out.

    The world is the model's own, and `world_offset` is ignored, unless poses are given (`use`): then it is moved so that
    the first camera is where the dataset has it.
    """

    def __init__(self, config: MapAnythingConfig) -> None:
        self.config = config

    @property
    def needs(self) -> tuple[str, ...]:
        """What `use` names."""
        return tuple(NEEDS[name] for name in self.config.use)

    @property
    def _model(self) -> Model:
        return model_of(self.config.model)

    @property
    def _wrapped(self) -> bool:
        return self._model.network != "mapanything"

    def identity(self) -> dict[str, str]:
        """Name, model, revision, licence and version. Weights of a folder are recognised by their SHA-256.

        For models other than MapAnything also whether their world is in metres, and what their confidence is.

        Raises:
            UserError: the configured weights folder is incomplete, or the revision is not pinned.
        """
        model, revision = self._weights_identity()
        identity = {
            "name": "mapanything",
            "model": model,
            "revision": revision,
            "licence": model_of(model).licence,
            "version": package_version(),
        }
        if self._wrapped:
            identity |= {"metric": str(self._model.metric).lower(), "confidence": self._model.confidence}
        return identity

    def require(self) -> None:
        """Check licence, package, weights and device without loading the model.

        Raises:
            UserError: the licence is refused or one is missing; the message says what to do or to take instead.
        """
        self._require_licence()
        require(self.config)

    def _require_licence(self) -> None:
        if self.config.licence_policy != "any":
            model = self.config.model if self.config.weights is None else self._weights_identity()[0]
            refuse_licence(model, self.config.licence_policy)

    def _weights_identity(self) -> tuple[str, str]:
        if self.config.weights is None:
            return self.config.model, pinned_revision(self.config)
        digest = sha256(weights_folder(self.config.weights) / "model.safetensors")
        for name, known in KNOWN.items():
            if known.sha256 == digest:
                return name, str(known.revision)
        return self.config.model, f"sha256:{digest}"

    def reconstruct(self, frames: Sequence[Frame], world_offset: F64) -> Iterator[ViewGeometry]:
        """One ViewGeometry per frame, in order, in the world that the model predicts, or in the dataset's with poses.

        Confidence is the model's own, raw: MapAnything's is in [1, ∞].

        Raises:
            UserError: an image, the weights or the installation cannot be used, or the results do not fit the frames.
            torch.OutOfMemoryError: the batch is too large for the device.
        """
        if frames:
            self.load_model()
            for frame, raw in zip(frames, self.infer(frames, self.load(frames, world_offset)), strict=True):
                yield self.finish(frame, raw)

    def load_model(self) -> None:
        """Load the model onto its device, once per process.

        Raises:
            UserError: the licence is refused, or the weights or the installation cannot be used.
        """
        self._require_licence()
        load_model(self.config)

    def load(self, frames: Sequence[Frame], world_offset: F64 | None = None) -> Loaded:
        """Decode, resize and normalise the images of a batch, in pinned memory where a GPU will fetch them.

        With poses their world is the dataset's minus `world_offset` (3,), by default the first camera's position, as in
        every scene of posed frames.

        Raises:
            UserError: an image or what `use` names cannot be used.
        """
        sizes = [image_size(frame.image) for frame in frames]
        target = target_size(sizes, self.config.resize, self.config.resolution)
        reference = None
        offset = np.zeros(3) if world_offset is None else world_offset
        if "poses" in self.config.use:
            if world_offset is None:
                offset = recentred_pose(frames[0], offset)[:3, 3]
            reference = recentred_pose(frames[0], offset)
        with ThreadPoolExecutor(DECODERS, "decode") as pool:
            views = list(pool.map(lambda frame, size: self._view(frame, size, target, offset), frames, sizes))
        return Loaded(sizes, target, views, reference)

    def _view(self, frame: Frame, size: Size, target: Size, offset: F64) -> dict[str, Any]:
        pin = self.config.device != "cpu"
        given = inputs_of(frame, self.config.use, pixel_map_for(size, target), offset)
        tensors = {key: _tensor(values, pin) for key, values in given.items()}
        return {**_view(frame, size, target, pin, self._model.normalisation), **tensors}

    def infer(self, frames: Sequence[Frame], loaded: Loaded) -> Iterator[RawView]:
        """Run the model and copy its views off the device one by one; see `GpuBackend.infer`."""
        outputs = self._infer(load_model(self.config), frames, loaded.views)
        outputs.reverse()
        to_world = None
        for frame, size, view in zip(frames, loaded.sizes, loaded.views, strict=True):
            output = outputs.pop()  # the list must not keep alive what has been copied
            if self._wrapped:
                arrays = wrappers.completed({key: _array(output[key]) for key in wrappers.KEYS})
            else:
                _require_same_picture(frame, view["img"], output)
                arrays = {key: _array(output[key]) for key in OUTPUTS}
            view.clear()  # its image lies on the device
            raw = _raw_view(frame, size, loaded.target, arrays)
            if to_world is None and loaded.reference is not None:
                to_world = anchor(loaded.reference, raw.camera_to_world)
            yield raw if to_world is None else moved(raw, to_world)

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
        outputs = wrappers.infer(model, views) if self._wrapped else self._infer_mapanything(model, views)
        if len(outputs) != len(frames):
            raise UserError(
                f"{self.config.model} returned {len(outputs)} views for {len(frames)} images ({frames[0]} …); "
                f"install the version that {GUIDE} names"
            )
        return outputs

    def _infer_mapanything(self, model: Any, views: list[dict[str, Any]]) -> list[dict[str, Any]]:
        on_gpu = str(model.device).startswith("cuda")
        outputs = model.infer(
            views,
            memory_efficient_inference=self.config.memory_efficient,
            minibatch_size=self.config.minibatch_size or (None if on_gpu else 1),
            use_amp=on_gpu and self.config.amp != "none",  # on a CPU it would quietly mean float16
            amp_dtype="bf16" if self.config.amp == "none" else self.config.amp,
            apply_mask=False,  # `finish` does that where it holds up no GPU
        )
        return list(outputs)


def _view(frame: Frame, size: Size, target: Size, pin: bool, normalisation: str = "dinov2") -> dict[str, Any]:
    """What a model takes for one frame: float32 (1, 3, h, w), normalised as `load_images` does ("identity": 0 to 1).

    An encoder refuses pictures normalised for another one.
    """
    picture = _picture(frame, size, target).astype(np.float32) / np.float32(255)
    normalised = picture if normalisation == "identity" else (picture - _MEAN) / _STD
    planes = np.ascontiguousarray(normalised.transpose(2, 0, 1)[None])
    return {"img": _tensor(planes, pin), "data_norm_type": [normalisation], "instance": str(frame)}


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


def _raw_view(frame: Frame, size: Size, target: Size, output: dict[str, np.ndarray]) -> RawView:
    points, pose, intrinsics = output["pts3d"], output["camera_poses"], output["intrinsics"]
    rigid = is_rigid(pose.astype(np.float64))
    if points.shape[:2] != target or not rigid or not np.isfinite(intrinsics).all():
        raise UserError(
            f"{frame}: the model gave no usable camera or grid (pose {pose.round(3).tolist()}, intrinsics "
            f"{intrinsics.round(3).tolist()}); leave this frame out, or, with MapAnything, try --set backend.amp=none"
        )
    return RawView(
        image_size=size,
        points=points.astype(np.float32, copy=False),
        depth=output["depth_z"][..., 0].astype(np.float32, copy=False),
        confidence=output["conf"].astype(np.float32, copy=False),
        mask=output["non_ambiguous_mask"].astype(bool, copy=False),
        intrinsics=intrinsics.astype(np.float32, copy=False),
        camera_to_world=pose.astype(np.float32, copy=False),
    )
