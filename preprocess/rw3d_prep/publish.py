"""`manifest.json` of a collection: what lies in it, with SHA-256 and size per file."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

import numpy as np

from rw3d_common.collection import local_stores
from rw3d_common.scene import Scene, open_scene
from rw3d_prep.health import scene_health
from rw3d_prep.write import is_still, sha256_of

MANIFEST = "manifest.json"


def write_manifest(out: Path) -> None:
    """Write `manifest.json` of the finished scenes in `out`, atomically; it can be made anew at any time.

    Runs that end together take turns, so that the last one lists the scenes of all.
    """
    temporary = out / f"{MANIFEST}.tmp"
    while True:
        with temporary.open("a", encoding="utf-8") as file:  # "a" spares what another run is writing
            fcntl.flock(file, fcntl.LOCK_EX)
            if not is_still(temporary, file.fileno()):  # that run has published this very file
                continue
            file.truncate(0)
            json.dump(_manifest(out), file, indent=1, ensure_ascii=False)
            file.flush()
            temporary.replace(out / MANIFEST)
            return


def _manifest(out: Path) -> dict[str, Any]:
    scenes = [open_scene(path) for path in local_stores(out)]
    entries = {scene.folder.relative_to(out).as_posix(): _entry(scene) for scene in scenes}
    return {"scenes": entries, "class_points": _class_points(scenes)}


def _entry(scene: Scene) -> dict[str, Any]:
    root = scene.folder / "zarr.json"
    files = {**scene.attrs["complete"]["files"], "zarr.json": {"sha256": sha256_of(root), "size": root.stat().st_size}}
    keys = ("dataset", "split", "sequence", "config_hash", "class_map_hash")
    return {
        **{key: scene.attrs[key] for key in keys},
        **{key: scene.attrs["complete"][key] for key in ("views", "points", "labelled_points", "finished")},
        **({"health": scene_health(scene).to_json()} if len(scene) else {}),
        "files": files,
    }


def _class_points(scenes: list[Scene]) -> dict[str, int]:
    """Sparsely labelled points per class name, over all scenes."""
    totals: dict[str, int] = {}
    for scene in scenes:
        counts = scene.attrs["complete"]["class_points"]["label"]
        for item in scene.classes.classes:
            totals[item.name] = totals.get(item.name, 0) + counts.get(str(item.train_id), 0)
    return {name: int(np.int64(count)) for name, count in totals.items()}
