"""`rw3d-prep export`: a scene as a PLY file that any viewer opens."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rw3d_common.errors import disk_errors
from rw3d_common.scene import Coloring, Scene


def export_ply(scene: Scene, path: Path, by: Coloring = "rgb") -> int:
    """Write the scene's points to a binary PLY; returns how many.

    Vertex properties: x, y, z (float32 metres, scene world), red, green, blue, confidence, label, view. The file
    appears only when it is complete.

    Raises:
        DiskFull: no space left.
    """
    from plyfile import PlyData, PlyElement

    columns: list[tuple[str, str]] = [(axis, "f4") for axis in "xyz"]
    columns += [("red", "u1"), ("green", "u1"), ("blue", "u1"), ("confidence", "f4"), ("label", "u1"), ("view", "u2")]
    vertices = np.empty(scene.n_points, columns)
    position, color = scene.read("position"), scene.colors(by)
    for axis, name in enumerate("xyz"):
        vertices[name] = position[:, axis]
    for channel, name in enumerate(("red", "green", "blue")):
        vertices[name] = color[:, channel]
    vertices["confidence"], vertices["label"] = scene.read("confidence"), scene.read("label")
    vertices["view"] = np.repeat(np.arange(len(scene)), np.diff(scene.view_table["point_offset"]))
    comments = [f"rw3d scene {scene.name}", f"world_offset {' '.join(map(str, scene.world_offset))}"]
    temporary = path.with_name(f"{path.name}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        PlyData([PlyElement.describe(vertices, "vertex")], comments=comments).write(str(temporary))
        temporary.replace(path)
    return scene.n_points
