"""The commands `rw3d-prep align`, `view` and `export`. Heavy packages are imported inside the command that needs them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rw3d_common.errors import UserError
from rw3d_common.log import console, log

if TYPE_CHECKING:
    from rw3d_common.collection import Collection
    from rw3d_common.scene import Scene
    from rw3d_prep.align import Link, Placed


class Color(StrEnum):
    rgb = "rgb"
    label = "label"
    truth = "truth"
    confidence = "confidence"
    view = "view"


Stores = Annotated[Path, typer.Argument(help="A *.zarr scene, or a folder of them.")]
MaxResidual = Annotated[
    float,
    typer.Option(
        min=0,
        help="With --merge: the most that the same pixels of two scenes may lie apart, in shares of their depth (median).",
    ),
]


def align(stores: Stores) -> None:
    """Find how scenes that share frames (`reconstruct --overlap`) lie to each other: a Sim(3) for each neighbour.

    Writes alignment.json into the folder. What is there and still of the same scenes is kept.
    """
    from rw3d_prep.report import alignment_table

    links = _links(stores)
    if not links:
        raise UserError(f"{stores}: no two scenes share a frame; reconstruct with --overlap 10 into another --out")
    console().print(alignment_table(links))
    log.info(f"next: rw3d-prep export {stores} --merge --ply drive.ply, or rw3d-prep view {stores} --merge")


def export(
    stores: Stores,
    ply: Annotated[Path, typer.Option(help="The PLY file to write, or a folder for several.")],
    color: Annotated[Color, typer.Option(help="What the colours show.")] = Color.rgb,
    merge: Annotated[
        bool,
        typer.Option("--merge", help="Scenes that share frames (`reconstruct --overlap`) as one cloud."),
    ] = False,
    max_residual: MaxResidual = 0.05,
) -> None:
    """Write scenes as PLY point clouds that MeshLab, CloudCompare and Open3D open."""
    from rw3d_common.collection import open_collection
    from rw3d_prep.align import chains
    from rw3d_prep.export import export_merged, export_ply

    collection = open_collection(stores)
    if not any(scene.n_points for scene in collection):
        raise UserError(f"{stores}: no scene has points to write; reconstruct them with another --backend")
    if not merge:
        for scene in collection:
            path = ply if len(collection) == 1 and ply.suffix == ".ply" else ply / f"{scene.name}.ply"
            log.info(f"{path}: {export_ply(scene, path, color.value):,} points")
        return
    drives = chains(collection, _links(stores), max_residual)
    for drive in drives:
        path = ply if len(drives) == 1 and ply.suffix == ".ply" else ply / f"{_title(drive)}.ply"
        log.info(f"{path}: {export_merged(drive, path, color.value):,} points of {len(drive)} scenes")


def view(
    stores: Stores,
    out: Annotated[Path, typer.Option(help="The page to write. It needs no network and no other file.")] = Path("view.html"),
    scene: Annotated[
        str | None, typer.Option(help="Which scene of a folder, by its name or the end of it. Default: the largest.")
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="With all scenes that it shares frames with, and theirs (`reconstruct --overlap`).")
    ] = False,
    max_residual: MaxResidual = 0.05,
    points: Annotated[int, typer.Option(min=1, max=2_000_000, help="Most points on the page, about 40 bytes each.")] = 200_000,
    color: Annotated[Color, typer.Option(help="The colours to begin with; the page can switch.")] = Color.rgb,
    png: Annotated[Path | None, typer.Option(help="Also write a picture of the cloud in these colours.")] = None,
) -> None:  # fmt: skip
    """Write a web page that shows a scene, or a whole sequence, as a cloud to turn around in."""
    from rw3d_common.collection import open_collection
    from rw3d_prep.align import alone, chains
    from rw3d_prep.view import sample_cloud, write_page, write_png

    collection = open_collection(stores)
    chosen = _chosen(collection, scene)
    drive = [alone(chosen)]
    if merge and len(chosen):
        same = [other for other in collection if _sequence(other) == _sequence(chosen)]
        drives = chains(same, _links(stores), max_residual)
        drive = next(drive for drive in drives if any(placed.scene.name == chosen.name for placed in drive))
    cloud = sample_cloud(drive, points)
    write_page(cloud, out, color.value)
    what = f"{len(drive)} scene{'s' * (len(drive) > 1)}, {_title(drive)}"
    log.info(f"{out}: {len(cloud.position):,} of {cloud.total:,} points of {what}; open it in a browser")
    if len(collection) > 1 and scene is None:
        log.info(f"{len(collection)} scenes are here: --scene NAME shows another")
    if png:
        write_png(cloud, png, color.value)
        log.info(f"{png}: a picture of it")


def _links(stores: Path) -> list[Link]:
    from rw3d_common.collection import store_paths
    from rw3d_common.log import progress
    from rw3d_prep.align import align as run

    with progress("align", max(len(store_paths(stores)) - 1, 0), "pairs") as advance:
        return run(stores, advance)


def _title(drive: list[Placed]) -> str:
    """split/sequence/first-last frame of a chain of scenes; a single cloud without views keeps its name."""
    first, last = drive[0].scene, drive[-1].scene
    if not len(first):
        return first.name
    frames = first.view_table["frame_id"][0], last.view_table["frame_id"][-1]
    return f"{_sequence(first)}/{frames[0]:010d}-{frames[1]:010d}"


def _sequence(scene: Scene) -> str:
    return f"{scene.attrs['split']}/{scene.attrs['sequence']}"


def _chosen(collection: Collection, name: str | None) -> Scene:
    if name is None:
        return max(collection, key=lambda scene: scene.n_points)
    found = [scene for scene in collection if scene.name.endswith(name.removesuffix(".zarr"))]
    if len(found) != 1:
        state = f"{len(found)} scenes end" if found else "no scene ends"
        known = ", ".join(scene.name for scene in (found or list(collection))[:5])
        raise UserError(f"{collection.path}: {state} with '{name}' (--scene); there are {known}")
    return found[0]
