"""The table `views/` of a scene, collected while its views stream past."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rw3d_common.cameras import F64
from rw3d_common.images import ImageSource
from rw3d_prep.frames import Frame
from rw3d_prep.fuse import FusedView
from rw3d_prep.health import view_health
from rw3d_prep.reconstruct.base import ViewGeometry


class ViewRows:
    """Collects the rows of `views/` as the views stream past."""

    def __init__(self, root: Path, world_offset: F64, shared: int = 0) -> None:
        """`world_offset` (3,) metres is taken off given poses; the first `shared` frames are in an earlier scene too."""
        self.root = (root if root.is_dir() else root.parent).resolve()  # a video's frames lie beside it
        self.world_offset, self.shared = world_offset, shared
        self.rows: list[dict[str, Any]] = []
        self.cameras: list[str] = []
        self.images: list[str] = []
        self.labels: list[str | None] = []
        self.truths: list[str | None] = []

    def _relative(self, source: ImageSource) -> str:
        if isinstance(source, Path):
            return os.path.relpath(source.resolve(), self.root)
        return f"{os.path.relpath(source.path.resolve(), self.root)}#{source.member}"

    def _given(self, frame: Frame) -> F64:
        """The frame's own pose in the scene's recentred world, NaN where it has none."""
        if frame.camera_to_world is None:
            return np.full((4, 4), np.nan)
        given = frame.camera_to_world.copy()
        given[:3, 3] -= self.world_offset
        return given

    def add(self, frame: Frame, geometry: ViewGeometry, fused: FusedView, previous: ViewGeometry | None) -> None:
        if frame.camera not in self.cameras:
            self.cameras.append(frame.camera)
        self.images.append(self._relative(frame.image))
        self.labels.append(self._relative(frame.label) if frame.label else None)
        self.truths.append(self._relative(frame.truth) if frame.truth else None)
        pixel_map = geometry.pixel_map
        health = view_health(geometry, fused.position, previous)
        self.rows.append(
            {
                "frame_id": frame.id,
                "camera": self.cameras.index(frame.camera),
                "image_size": pixel_map.image_size,
                "grid_size": pixel_map.grid_size,
                "pixel_map": (
                    pixel_map.column_scale,
                    pixel_map.column_offset,
                    pixel_map.row_scale,
                    pixel_map.row_offset,
                ),
                "intrinsics": geometry.intrinsics,
                "camera_to_world": geometry.camera_to_world,
                "given_camera_to_world": self._given(frame),
                "has_label": frame.label is not None,
                "shared": len(self.rows) < self.shared,
                "confidence_threshold": fused.confidence_threshold,
                "covered": pixel_map.covered_fraction(),
                "finite_share": fused.finite_share,
                **asdict(health),
            }
        )

    def tables(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The columns of `views/`, and the strings that go into its attributes."""
        columns = {key: np.stack([np.asarray(row[key]) for row in self.rows]) for key in self.rows[0]}
        strings = {"cameras": self.cameras, "images": self.images, "labels": self.labels, "truths": self.truths}
        return columns, strings
