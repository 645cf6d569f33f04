"""Labels of one scene carried to the views that see the same surface (the other half of Rewis3d's Figure 4).

    for view in carry_labels(open_scene(path), CarryConfig(), movable=()):
        view.label          # (n,) train ids that other views give to the points of this one, 255 = none

A view gathers: each of its points is looked up in the labelled views around it in time. Own annotations take no part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import Field

from rw3d_common.config import Section
from rw3d_common.labels import IGNORE, U8, ClassMap
from rw3d_common.scene import Scene
from rw3d_prep.visibility import Limits, Maps, Points, cast_votes, read_view
from rw3d_prep.votes import contested, decide


class CarryConfig(Section):
    window: int = Field(20, ge=1)
    """Frames before and after a view that it takes labels from; all their cameras count."""
    spread: float | None = Field(None, gt=0, le=20)
    """Pixels of the source image: a label counts for points around it by a Gaussian of this standard deviation, cut at
    2.5 times it. none: 1.5, and 0.3 for measured geometry, since a LiDAR sees past the edges that its camera sees."""
    depth_absolute: float = Field(0.05, ge=0)
    """Metres by which two views' depths of one surface may differ …"""
    depth_relative: float = Field(0.08, ge=0, lt=1)
    """… plus this share of the depth. Half the difference costs a vote 40 % of its weight."""
    reprojection: float = Field(2.0, ge=0)
    """Cells by which what the source measures may miss the point's own place, beyond the usual gap between points."""
    min_share: float = Field(0.7, gt=0.5, le=1)
    """Share of a point's votes that the winning class needs; else the point stays unlabelled."""
    min_weight: float = Field(0.05, ge=0)
    """Weight of all votes that a point needs; one perfect vote weighs 1."""


@dataclass(frozen=True, eq=False)
class CarriedView:
    """What other views say about the n points of view `index`: `label` (n,) uint8 train ids, 255 = nothing.

    `contested` counts points whose votes disagreed. `own` (H, W) uint8 is the view's own annotation, None without one;
    `points` and `maps` as `visibility.read_view` gives them.
    """

    index: int
    label: U8
    contested: int
    own: U8 | None
    points: Points
    maps: Maps


def carry_labels(scene: Scene, config: CarryConfig, movable: Sequence[int]) -> Iterator[CarriedView]:
    """Yield every view of a scene, in order of time, with the labels that other views give to its points.

    Labels of classes without surface are never carried; those of `movable` train ids only between views of the same
    frame id. Memory is that of the labelled views within the window.

    Raises:
        UserError: points or label images that cannot be read.
    """
    order, time = _order_of_time(scene)
    spread = config.spread or (0.3 if scene.attrs["backend"]["name"] == "sensor" else 1.5)
    limits = Limits(spread, config.depth_absolute, config.depth_relative, config.reprojection)
    always = carriable(scene.classes)
    resting = always.copy()
    resting[list(movable)] = False
    window = _Window(scene, limits)
    for view in order:
        around = order[np.abs(time[order] - time[view]) <= config.window]
        window.forget_before(time, time[view] - config.window)
        own, points, target = window.read(int(view))
        votes = np.zeros((len(points.position), len(scene.classes)), np.float32)
        for source in around[scene.view_table["has_label"][around] & (around != view)]:
            allowed = always if time[source] == time[view] else resting
            cast_votes(points, target, window.read(int(source))[2], allowed, limits, votes)
        label = decide(votes, config.min_share, config.min_weight)
        dispute = contested(votes, config.min_share, config.min_weight)
        yield CarriedView(int(view), label, dispute, own, points, target)


def carriable(classes: ClassMap) -> npt.NDArray[np.bool_]:
    """(256,) bool by train id: classes with a surface; False for 255."""
    flags = np.zeros(256, bool)
    flags[: len(classes)] = True
    return flags & classes.in_3d & (np.arange(256) != IGNORE)


def _order_of_time(scene: Scene) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Views in order of time, and (V,) the rank of each view's frame id among those of the scene."""
    table = scene.view_table
    time = np.unique(table["frame_id"], return_inverse=True)[1].reshape(-1).astype(np.int64)
    return np.lexsort((table["camera"], time)), time


class _Window:
    """The labelled views that are in use, each read once; others are read and not kept."""

    def __init__(self, scene: Scene, limits: Limits) -> None:
        self.scene, self.limits = scene, limits
        self.kept: dict[int, tuple[U8 | None, Points, Maps]] = {}

    def read(self, view: int) -> tuple[U8 | None, Points, Maps]:
        """Own annotation, points and maps of a view."""
        if view in self.kept:
            return self.kept[view]
        own = self.scene.read_label(view)
        read = (own, *read_view(self.scene, view, own, self.limits))
        if own is not None:
            self.kept[view] = read
        return read

    def forget_before(self, time: npt.NDArray[np.int64], first: int) -> None:
        """Drop views of frames that come before rank `first`."""
        for view in [view for view in self.kept if time[view] < first]:
            del self.kept[view]
