"""Backends: what turns a batch of frames into geometry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np
from pydantic import Field

from rw3d_prep.frames import Frame
from rw3d_prep.reconstruct.base import Backend
from rw3d_prep.reconstruct.images import ImagesConfig
from rw3d_prep.reconstruct.mapanything import MapAnythingConfig
from rw3d_prep.reconstruct.sensor import SensorConfig
from rw3d_prep.reconstruct.stereo import StereoConfig

BackendConfig = Annotated[MapAnythingConfig | StereoConfig | SensorConfig | ImagesConfig, Field(discriminator="kind")]
KINDS = ("mapanything", "stereo", "sensor", "images")


def make_backend(config: BackendConfig) -> Backend:
    """The backend of a configuration; heavy packages are imported when it first works.

    Raises:
        UserError: something the backend needs is not on this machine.
    """
    match config.kind:
        case "mapanything":
            from rw3d_prep.reconstruct.mapanything import MapAnythingBackend

            return MapAnythingBackend(config)
        case "stereo":
            from rw3d_prep.reconstruct.stereo import StereoBackend

            return StereoBackend(config)
        case "sensor":
            from rw3d_prep.reconstruct.sensor import SensorBackend

            return SensorBackend(config)
        case "images":
            from rw3d_prep.reconstruct.images import ImagesBackend

            return ImagesBackend(config)


def usable_frames(frames: Sequence[Frame], needs: Sequence[str]) -> tuple[list[Frame], list[str]]:
    """The frames that have what a backend needs, and one sentence per need that others lack ('a|b' = either)."""
    kept, notes = list(frames), []
    for need in needs:
        fit = [frame for frame in kept if any(getattr(frame, name) is not None for name in need.split("|"))]
        if len(fit) < len(kept):
            names = {"camera_to_world": "pose", "right": "right image", "accumulated": "accumulated LiDAR"}
            what = names.get(need, need.replace("|", " or "))
            hint = " (single images need none: --batch-size 1)" if need == "camera_to_world" else ""
            notes.append(f"{len(kept) - len(fit):,} of {len(frames):,} frames have no {what} and are dropped{hint}")
        kept = fit
    return kept, notes


def in_own_world(frames: Sequence[Frame]) -> list[Frame]:
    """The frames; those without a pose that are alone at their time get the identity: their world is their camera's.

    Only for batches of one frame, which have no other frame to agree with.
    """
    moments = Counter((frame.split, frame.sequence, frame.id) for frame in frames)
    return [
        replace(frame, camera_to_world=np.eye(4))
        if frame.camera_to_world is None and moments[frame.split, frame.sequence, frame.id] == 1
        else frame
        for frame in frames
    ]
