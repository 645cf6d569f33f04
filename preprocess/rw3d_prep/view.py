"""`rw3d-prep view`: a scene, or scenes of one world, as a page that any browser opens without network or other files."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rw3d_common.cameras import F32, F64, project
from rw3d_common.errors import UserError, disk_errors
from rw3d_common.labels import IGNORE, U8, ClassMap
from rw3d_prep.align import Placed
from rw3d_prep.picture import beside, fitting_intrinsics, overview_camera, splat

LABELLED_SHARE = 0.25  # of the points at most are drawn from the labelled ones, which would hardly show otherwise
DIMMED = 0.45  # photo colours, behind labels


@dataclass(frozen=True)
class ViewCloud:
    """A sample of the points of one or several scenes, n in all, in a world around their middle.

    `position` (n, 3) float32 metres; `color` (n, 3) uint8; `label` and `truth` (n,) uint8 train ids, 255 = none (`truth`
    is None where a scene has none); `confidence` (n,) uint8 rank within its scene; `view` and `scene` (n,) index over
    all, a view of −1 for points of no view. `camera` (4, 4) looks at them from behind the first view; `total` is the
    number of points that there are.
    """

    title: str
    classes: ClassMap
    total: int
    position: F32
    color: U8
    label: U8
    truth: U8 | None
    confidence: U8
    view: npt.NDArray[np.int64]
    scene: npt.NDArray[np.int64]
    camera: F64


def sample_cloud(chain: Sequence[Placed], points: int) -> ViewCloud:
    """At most so many points of the scenes of a chain, always the same ones. One scene is in memory at a time.

    Frames that several scenes have come from the first of them.

    Raises:
        UserError: there are no points, or they cannot be read.
    """
    counts = [int(_points_per_part(placed)[_is_new(placed)].sum()) for placed in chain]
    total = sum(counts)
    if not total:
        raise UserError(f"{chain[0].scene.path}: has no points to show; reconstruct it with another --backend")
    parts, views = [], 0
    for number, (placed, count) in enumerate(zip(chain, counts, strict=True)):
        parts.append(_sample(placed, min(points, total) * count // total, number, views))
        views += len(placed.scene)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    first = chain[0].scene
    with_truth = all(placed.scene.has_truth for placed in chain)
    camera = overview_camera(first, columns["position"]) if len(first) else beside(columns["position"])
    middle = np.median(columns["position"], axis=0)
    camera[:3, 3] -= middle
    return ViewCloud(
        title=first.name if len(chain) == 1 else f"{first.attrs['split']}/{first.attrs['sequence']}",
        classes=first.classes,
        total=total,
        position=(columns.pop("position") - middle).astype(np.float32),
        truth=columns.pop("truth") if with_truth else None,
        camera=camera,
        **{name: columns[name] for name in ("color", "label", "confidence", "view", "scene")},
    )


def _points_per_part(placed: Placed) -> npt.NDArray[np.int64]:
    """(1 + V,) how many points belong to no view, and to each view."""
    return np.diff(placed.scene.view_table["point_offset"], prepend=0)


def _is_new(placed: Placed) -> npt.NDArray[np.bool_]:
    """(1 + V,) bool: the points of no view, and of views that no earlier scene of the chain has."""
    return np.append(True, placed.new)


def _sample(placed: Placed, budget: int, number: int, views_before: int) -> dict[str, npt.NDArray[Any]]:
    scene, rng = placed.scene, np.random.default_rng(number)
    kept = np.repeat(_is_new(placed), _points_per_part(placed))
    label = scene.read("label")
    labelled = np.flatnonzero(kept & (label != IGNORE))
    others = np.flatnonzero(kept & (label == IGNORE))
    quota = min(len(labelled), max(int(LABELLED_SHARE * budget), budget - len(others)))
    rest = min(len(others), budget - quota)
    chosen = [rng.choice(rows, size, replace=False) for rows, size in ((labelled, quota), (others, rest))]
    rows = np.sort(np.concatenate(chosen))
    view = np.searchsorted(scene.view_table["point_offset"], rows, side="right") - 1
    return {
        "position": placed.to_first.apply(scene.read("position")[rows]),
        "color": scene.read("color")[rows],
        "label": label[rows],
        "truth": scene.read("truth")[rows] if scene.has_truth else np.full(len(rows), IGNORE, np.uint8),
        "confidence": scene.colors("confidence")[rows, 0],
        "view": np.where(view < 0, -1, view + views_before),
        "scene": np.full(len(rows), number),
    }


def colorings(cloud: ViewCloud) -> dict[str, U8]:
    """(n, 3) uint8 by what they show: rgb, label, truth where it is known, confidence, view, scene of several."""
    shown = {"rgb": cloud.color, "label": _painted(cloud, cloud.label)}
    if cloud.truth is not None:
        shown["truth"] = _painted(cloud, cloud.truth)
    shown["confidence"] = np.repeat(cloud.confidence[:, None], 3, axis=1)
    shown["view"] = _hues(cloud.view)
    if cloud.scene.any():
        shown["scene"] = _hues(cloud.scene)
    return shown


def _painted(cloud: ViewCloud, label: U8) -> U8:
    dimmed = (DIMMED * cloud.color).astype(np.uint8)
    return np.where((label != IGNORE)[:, None], cloud.classes.palette[label], dimmed)


def _hues(index: npt.NDArray[np.int64]) -> U8:
    """One colour per index, far from its neighbours'; black for −1."""
    hues = np.random.default_rng(0).integers(60, 255, (int(index.max()) + 2, 3)).astype(np.uint8)
    hues[-1] = 0
    return hues[index]


def write_page(cloud: ViewCloud, path: Path, first: str = "rgb") -> None:
    """Write the page, with the colours that `first` names; `view.html` in this package is its template.

    Raises:
        UserError: no such colours, or the file cannot be written.
    """
    shown = colorings(cloud)
    if first not in shown:
        raise UserError(f"{cloud.title}: no '{first}' to colour by; this scene has {', '.join(shown)}")
    preferred = ", labelled ones preferred" if (cloud.label != IGNORE).any() else ""
    modes = [
        {"name": name, "colors": _base64(colors), "legend": _legend(cloud, name)} for name, colors in shown.items()
    ]
    data = {
        "title": cloud.title,
        "facts": f"{len(cloud.position):,} of {cloud.total:,} points{preferred}",
        "position": _base64(cloud.position),
        "modes": modes,
        "first": list(shown).index(first),
        "eye": cloud.camera[:3, 3].tolist(),
        "up": _up(cloud.camera).tolist(),
        **_viewpoint(cloud),
    }
    template = resources.files("rw3d_prep").joinpath("view.html").read_text(encoding="utf-8")
    page = template.replace("__DATA__", json.dumps(data).replace("<", "\\u003c"))  # no tag may end the script early
    _publish(path, page.encode())


def _up(camera: F64) -> F64:
    """(3,) upwards for the page to turn around: the world axis nearest to the camera's, as its world is built on one."""
    up = np.zeros(3)
    nearest = int(np.argmax(np.abs(camera[:3, 1])))
    up[nearest] = -np.sign(camera[nearest, 1])
    return up


def _viewpoint(cloud: ViewCloud) -> dict[str, Any]:
    """Where the page looks first, in which direction and how wide, and the spacing that points of even density have.

    `forward` (3,); `focal` length in half heights of the picture; `distance` in metres to what the page turns around.
    """
    lens = fitting_intrinsics(cloud.position, cloud.camera, 1600, 900)
    middle = np.array([(800 - lens[0, 2]) / lens[0, 0], (450 - lens[1, 2]) / lens[1, 1], 1])
    depth = project(cloud.position, np.eye(3), cloud.camera)[2]
    ahead = depth[depth > 0]
    extent = np.quantile(cloud.position, [0.05, 0.95], axis=0)
    area = float(np.sort(extent[1] - extent[0])[1:].prod())
    return {
        "forward": (cloud.camera[:3, :3] @ middle).tolist(),
        "focal": float(np.clip(lens[1, 1] / 450, 1, 4)),
        "distance": float(np.median(ahead)) if len(ahead) else 1.0,
        "spacing": float(np.sqrt(max(area, 1e-6) / len(cloud.position))),
    }


def _legend(cloud: ViewCloud, name: str) -> list[tuple[str, str, str]]:
    """Name, CSS colour and number of points of each class or end of the scale."""
    if name == "confidence":
        return [("least in its scene", "#000000", ""), ("most", "#ffffff", "")]
    label = {"label": cloud.label, "truth": cloud.truth}.get(name)
    if label is None:
        return []
    counts = np.bincount(label, minlength=256)
    rows = [
        (item.name, f"#{bytes(item.color).hex()}", f"{counts[item.train_id]:,}")
        for item in cloud.classes.classes
        if counts[item.train_id]
    ]
    return [*rows, ("unlabelled", "#444444", f"{counts[IGNORE]:,}")]


def write_png(cloud: ViewCloud, path: Path, by: str = "rgb", width: int = 1280, height: int = 720) -> None:
    """Write a picture of the cloud from the page's first viewpoint, without a browser.

    Raises:
        UserError: no such colours, or the file cannot be written.
    """
    from io import BytesIO

    from PIL import Image

    shown = colorings(cloud)
    if by not in shown:
        raise UserError(f"{cloud.title}: no '{by}' to colour by; this scene has {', '.join(shown)}")
    intrinsics = fitting_intrinsics(cloud.position, cloud.camera, width, height)
    u, v, z = project(cloud.position, intrinsics, cloud.camera)
    encoded = BytesIO()
    Image.fromarray(splat(u, v, z, shown[by], width, height)).save(encoded, "PNG")
    _publish(path, encoded.getvalue())


def _publish(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)


def _base64(values: npt.NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")
