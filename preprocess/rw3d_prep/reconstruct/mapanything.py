"""MapAnything (facebookresearch/map-anything, v1.1.1): metric geometry from images alone, through its `infer`.

Frames and results are matched by identity, not by position alone. MapAnything's own `load_images` drops files that it
cannot read and numbers what is left, so it is not used: every frame is decoded here (EXIF orientation applied, errors
name the file), put on the grid by `pixel_maps.resample` and normalised, which gives bit for bit the tensors of
`load_images` (a test compares them with recorded ones). It also keeps one full-size image in memory instead of all of
them. Results carry no name either, so each must show its own frame's picture (`img_no_norm`) before it is believed.

The package, torch and the weights are touched only when a batch is reconstructed: docs/mapanything.md installs them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from rw3d_prep.reconstruct.base import ViewGeometry
from rw3d_prep.reconstruct.mapanything_model import (
    GUIDE,
    KNOWN,
    LICENCES,
    load_model,
    package_version,
    pinned_revision,
    require,
    sha256,
    weights_folder,
)
from rw3d_prep.reconstruct.pixel_maps import PATCH, Resize, Size, pixel_map_for, resample, target_size

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

        Confidence is MapAnything's raw `conf` in [1, ∞]. All results stay on the device until their turn comes.

        Raises:
            UserError: an image, the weights or the installation cannot be used, or the results do not fit the frames.
            torch.OutOfMemoryError: the batch is too large for the device.
        """
        if not frames:
            return
        model = load_model(self.config)
        sizes = [image_size(frame.image) for frame in frames]
        target = target_size(sizes, self.config.resize, self.config.resolution)
        pictures = [_picture(frame, size, target) for frame, size in zip(frames, sizes, strict=True)]
        outputs = self._infer(model, frames, pictures)
        outputs.reverse()
        for frame, size, picture in zip(frames, sizes, pictures, strict=True):
            output = outputs.pop()  # the list must not keep alive what has been copied
            _require_same_picture(frame, picture, output)
            yield _view_geometry(frame, size, target, output)

    def _infer(self, model: Any, frames: Sequence[Frame], pictures: Sequence[U8]) -> list[dict[str, Any]]:
        on_gpu = str(model.device).startswith("cuda")
        views = [_view(str(frame), picture) for frame, picture in zip(frames, pictures, strict=True)]
        outputs = model.infer(
            views,
            memory_efficient_inference=self.config.memory_efficient,
            minibatch_size=self.config.minibatch_size or (None if on_gpu else 1),
            use_amp=on_gpu and self.config.amp != "none",  # on a CPU it would quietly mean float16
            amp_dtype="bf16" if self.config.amp == "none" else self.config.amp,
            apply_mask=True,  # without it there is no `mask` among the results
            mask_edges=self.config.mask_edges,
        )
        if len(outputs) != len(frames):
            raise UserError(
                f"MapAnything returned {len(outputs)} views for {len(frames)} images ({frames[0]} …); "
                f"install the version that {GUIDE} names"
            )
        return list(outputs)


def _picture(frame: Frame, size: Size, target: Size) -> U8:
    """The frame's image on the grid, (h, w, 3) uint8 RGB."""
    image = read_image(frame.image)
    if image.shape[:2] != size:
        raise UserError(f"{frame.image}: header says {size[::-1]} pixels, data {image.shape[1::-1]}; save it anew")
    return resample(image, target)


def _view(name: str, picture: U8) -> dict[str, Any]:
    """What `infer` takes for one picture: float32 (1, 3, h, w), normalised as `load_images` does."""
    normalised = (picture.astype(np.float32) / np.float32(255) - _MEAN) / _STD
    planes = np.ascontiguousarray(normalised.transpose(2, 0, 1)[None])
    return {"img": _tensor(planes), "data_norm_type": [NORMALISATION], "instance": name}


def _tensor(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(array)


def _array(tensor: Any) -> np.ndarray:
    """A tensor of batch 1 as an array of our own, so that nothing of the device's shared storage stays alive."""
    return np.array(tensor.cpu().numpy()[0])


def _require_same_picture(frame: Frame, picture: U8, output: dict[str, Any]) -> None:
    shown = _array(output["img_no_norm"])
    if shown.shape != picture.shape or not np.abs(shown - picture / np.float32(255)).max() <= 0.5 / 255:
        raise UserError(
            f"{frame}: MapAnything's result shows another picture than {frame.image}; "
            f"install the version that {GUIDE} names"
        )


def _view_geometry(frame: Frame, size: Size, target: Size, output: dict[str, Any]) -> ViewGeometry:
    points = _array(output["pts3d"]).astype(np.float32, copy=False)
    confidence = _array(output["conf"]).astype(np.float32, copy=False)
    # The mask may be True where the point is NaN or infinite, and points that it excludes are 0, −0 or NaN alike.
    valid = _array(output["mask"])[..., 0].astype(bool) & np.isfinite(points).all(-1) & ~np.isnan(confidence)
    pose = _array(output["camera_poses"]).astype(np.float64)
    if points.shape[:2] != target or not is_rigid(pose):
        raise UserError(
            f"{frame}: MapAnything gave no usable camera or grid (pose {pose.round(3).tolist()}); "
            "leave this frame out, or try --set backend.amp=none"
        )
    pixel_map = pixel_map_for(size, target)
    intrinsics = pixel_map.source_intrinsics(_array(output["intrinsics"]).astype(np.float64))
    return ViewGeometry(points, confidence, valid, intrinsics, pose, pixel_map)
