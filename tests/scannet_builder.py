"""A tiny ScanNetV2, written from its documentation: official scene lists, exported frames, label PNGs and meshes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from builders import Size, save_image, scannet_tree
from ply_builder import vertex_table, write_ply

# raw id → (raw category, NYU40 id), as in the official table; ids above 255 are why label PNGs have 16 bits
CATEGORIES = {1: ("wall", 1), 2: ("chair", 5), 3: ("floor", 2), 22: ("ceiling", 22), 1163: ("object", 40)}
COLUMNS = ("id", "raw_category", "category", "count", "nyu40id", "eigen13id", "nyuClass", "nyu40class")
COLOR_SIZE: Size = (48, 64)


def scannet_root(
    root: Path,
    train: Sequence[str] = ("scene0000_00",),
    val: Sequence[str] = ("scene0011_00",),
    frames: Iterable[int] = range(4),
    lost: Sequence[int] = (),
    seed: int = 0,
) -> Path:
    """Scenes with frames, labels of every frame, and a mesh; poses of `lost` frames hold −inf."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "scannetv2_train.txt").write_text("".join(f"{scene}\n" for scene in train))
    (root / "scannetv2_val.txt").write_text("".join(f"{scene}\n" for scene in val))
    rows = [COLUMNS, *((raw, name, name, 7, nyu40, 0, name, name) for raw, (name, nyu40) in CATEGORIES.items())]
    (root / "scannetv2-labels.combined.tsv").write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    ids = list(frames)
    for index, scene in enumerate((*train, *val)):
        folder = scannet_tree(root / "scans" / scene, ids, lost, COLOR_SIZE, seed=seed + index)
        for frame in ids:
            save_image(folder / "label-filt" / f"{frame}.png", raw_labels())
        scannet_mesh(folder)
        (folder / f"{scene}.txt").write_text("axisAlignment = " + " ".join(map(str, np.eye(4).ravel())) + "\n")
    return root


def raw_labels(size: Size = COLOR_SIZE) -> npt.NDArray[np.uint16]:
    """Raw ids (H, W): wall over floor, a chair, an object, and an unannotated border."""
    labels = np.full(size, 1, np.uint16)
    labels[size[0] // 2 :] = 3
    labels[size[0] // 2 : -4, 8:20] = 2
    labels[4:10, 30:40] = 1163
    labels[:, :2] = 0
    return labels


def scannet_mesh(folder: Path, vertices: int = 300, seed: int = 0) -> tuple[Path, Path]:
    """Both meshes of a scene. The labelled one is painted in label colours, as the official ones are."""
    rng = np.random.default_rng(seed)
    xyz = rng.uniform(0.2, 4.0, (vertices, 3)).astype(np.float32)
    label = rng.choice(np.array([0, 1, 2, 5, 22, 40], np.uint16), vertices)
    paths = []
    for suffix, color in (("", rng.integers(0, 256, (vertices, 3))), (".labels", np.repeat(label[:, None], 3, axis=1))):
        columns = [(name, "f4", xyz[:, axis]) for axis, name in enumerate("xyz")]
        columns += [(name, "u1", color[:, channel]) for channel, name in enumerate(("red", "green", "blue"))]
        columns += [("alpha", "u1", np.full(vertices, 255))]
        columns += [("label", "u2", label)] if suffix else []
        path = folder / f"{folder.name}_vh_clean_2{suffix}.ply"
        paths.append(write_ply(path, vertex_table(columns), [(0, 1, 2), (2, 3, 4)]))
    return paths[0], paths[1]
