"""Sim(3) between scenes that overlap, kept in `alignment.json` beside them, and chains of scenes in one world.

    links = align(Path("stores/kitti360"))
    drives = chains(open_collection("stores/kitti360"), links, max_residual=0.05)

Scenes stay as they are: each keeps its own world, and what relates them is derived and can be made anew at any time.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rw3d_common.collection import open_collection
from rw3d_common.config import config_hash
from rw3d_common.errors import UserError, disk_errors
from rw3d_common.log import Advance, log
from rw3d_common.scene import Scene
from rw3d_common.schema import STORE_SUFFIX
from rw3d_prep.overlap import correspondences, shared_views
from rw3d_prep.sim3 import Sim3, robust_sim3

ALIGNMENT = "alignment.json"


@dataclass(frozen=True)
class Link:
    """How a scene lies to the one before it in its sequence, from the pixels that both have.

    `sim3` leads from the scene's world to the predecessor's; it is None where too few pixels agree to tell.
    `residual` is the median distance of the same pixel's two points as a share of its depth, `residual_metres` in the
    predecessor's world; `inlier_share` of `correspondences` are within 5 % of the depth. `made_of` are the SHA-256 of
    both scenes' completion records, which hold those of their files.
    """

    scene: str
    predecessor: str
    shared_views: int
    correspondences: int
    sim3: Sim3 | None
    residual: float
    residual_metres: float
    inlier_share: float
    made_of: tuple[str, str]


@dataclass(frozen=True)
class Placed:
    """A scene, the way from its world into the first one's of its chain, and which of its views (V,) are new in it."""

    scene: Scene
    to_first: Sim3
    new: npt.NDArray[np.bool_]


def alone(scene: Scene) -> Placed:
    """A scene as a chain of its own."""
    return Placed(scene, Sim3.identity(), np.ones(len(scene), bool))


def align(path: Path, advance: Advance = lambda amount=1, note="": None) -> list[Link]:
    """The links of all overlapping neighbours at or below `path`; new ones are added to its alignment.json.

    Links whose two scenes are still the same are kept. A single scene has none, and no file is written for it.

    Raises:
        UserError: no scene here, one that cannot be read, or alignment.json is damaged or cannot be written.
    """
    collection = open_collection(path)
    known = {link.made_of: link for link in read_alignment(path)}
    links = []
    for earlier, later in neighbours(collection):
        made_of = (config_hash(earlier.attrs["complete"]), config_hash(later.attrs["complete"]))
        link = known.get(made_of) or _link(earlier, later, made_of)
        if link is not None:
            links.append(link)
        advance()
    if links != list(known.values()):
        _write(path, links)
    return links


def neighbours(scenes: Iterable[Scene]) -> list[tuple[Scene, Scene]]:
    """Each scene with views and the next one of its sequence, by first frame."""
    ordered = sorted((scene for scene in scenes if len(scene)), key=_place)
    return [pair for _, drive in groupby(ordered, key=_sequence) for pair in pairwise(drive)]


def _place(scene: Scene) -> tuple[str, str, int, int]:
    frames = scene.view_table["frame_id"]
    return (*_sequence(scene), int(frames[0]), int(frames[-1]))


def _sequence(scene: Scene) -> tuple[str, str]:
    return scene.attrs["split"], scene.attrs["sequence"]


def _link(earlier: Scene, later: Scene, made_of: tuple[str, str]) -> Link | None:
    pairs = correspondences(earlier, later)
    if not pairs.views:
        return None
    fit = robust_sim3(pairs.source, pairs.target, pairs.depth, pairs.weights)
    unknown = float("inf")
    return Link(
        scene=later.name,
        predecessor=earlier.name,
        shared_views=pairs.views,
        correspondences=len(pairs.depth),
        sim3=fit.sim3 if fit else None,
        residual=fit.residual if fit else unknown,
        residual_metres=fit.residual_metres if fit else unknown,
        inlier_share=fit.inlier_share if fit else 0.0,
        made_of=made_of,
    )


def chains(scenes: Iterable[Scene], links: Sequence[Link], max_residual: float) -> list[list[Placed]]:
    """The scenes with views, each chain of overlapping ones in the world of its first.

    A new chain begins with every sequence, and where neighbours share no frame: at a gap, which the log names.

    Raises:
        UserError: no scenes overlap at all, or two neighbours do not fit as well as `max_residual` asks for.
    """
    ordered = sorted((scene for scene in scenes if len(scene)), key=_place)
    by_scene = {(link.predecessor, link.scene): link for link in links}
    pairs = neighbours(ordered)
    if pairs and not any((a.name, b.name) in by_scene for a, b in pairs):
        first, second = pairs[0]
        raise UserError(
            f"{second.path} and {_title(first)}: share no frame, so nothing tells how their worlds lie to each other; "
            "reconstruct with --overlap 10 into another --out"
        )
    found = [[alone(scene)] for scene in ordered[:1]]
    for earlier, later in pairwise(ordered):
        link = by_scene.get((earlier.name, later.name))
        if link is None:
            found.append([alone(later)])
            if _sequence(earlier) == _sequence(later):
                log.warning(f"{later.name} shares no frame with {_title(earlier)} and begins a cloud of its own")
            continue
        new = np.ones(len(later), bool)
        new[shared_views(earlier, later)[:, 1]] = False
        step = _usable(link, earlier, later, max_residual)
        found[-1].append(Placed(later, found[-1][-1].to_first @ step, new))
    return found


def _title(scene: Scene) -> str:
    return scene.path.name.removesuffix(STORE_SUFFIX)


def _usable(link: Link, earlier: Scene, later: Scene, max_residual: float) -> Sim3:
    pair = f"{later.path} and {_title(earlier)}"
    if link.sim3 is None:
        raise UserError(
            f"{pair}: their {link.correspondences} shared pixels determine no similarity; reconstruct with a larger --overlap"
        )
    if link.residual > max_residual:
        raise UserError(
            f"{pair}: the same pixels lie {link.residual:.1%} of their depth apart (median; --max-residual allows "
            f"{max_residual:.1%}), so merging them would show ghosts; see `rw3d-prep inspect` for the one that is "
            "unhealthy, or raise --max-residual"
        )
    return link.sim3


def read_alignment(path: Path) -> list[Link]:
    """The links in `path`'s alignment.json; none when there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    file = path / ALIGNMENT
    if not file.is_file():
        return []
    try:
        return [_from_json(item) for item in json.loads(file.read_text(encoding="utf-8"))["links"]]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file}: cannot be read ({error}); delete it, it is made anew") from error


def _write(path: Path, links: Sequence[Link]) -> None:
    temporary = path / f"{ALIGNMENT}.tmp-{uuid.uuid4().hex[:12]}"  # several jobs may end together
    with disk_errors(path):
        temporary.write_text(json.dumps({"links": [_to_json(link) for link in links]}, indent=1), encoding="utf-8")
        temporary.replace(path / ALIGNMENT)


def _to_json(link: Link) -> dict[str, Any]:
    values = {**asdict(link), "sim3": None}
    if link.sim3 is None:
        return {**values, "residual": None, "residual_metres": None}  # JSON knows no infinity
    rotation, translation = link.sim3.rotation.tolist(), link.sim3.translation.tolist()
    return {**values, "sim3": {"scale": link.sim3.scale, "rotation": rotation, "translation": translation}}


def _from_json(item: dict[str, Any]) -> Link:
    sim3 = item["sim3"]
    if sim3 is not None:
        sim3 = Sim3(float(sim3["scale"]), np.reshape(sim3["rotation"], (3, 3)), np.reshape(sim3["translation"], 3))
    first, second = item["made_of"]
    residuals = {key: float("inf") if item[key] is None else item[key] for key in ("residual", "residual_metres")}
    return Link(**{**item, **residuals, "sim3": sim3, "made_of": (first, second)})
