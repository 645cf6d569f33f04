"""The commands `rw3d-prep align`, `view` and `export`. Heavy packages are imported inside the command that needs them."""

from __future__ import annotations

from enum import StrEnum
from itertools import groupby
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
        typer.Option("--merge", help="One cloud per sequence, of scenes that share frames (`reconstruct --overlap`)."),
    ] = False,
    max_residual: MaxResidual = 0.05,
) -> None:
    """Write scenes as PLY point clouds that MeshLab, CloudCompare and Open3D open."""
    from rw3d_common.collection import open_collection
    from rw3d_prep.export import export_merged, export_ply

    collection = open_collection(stores)
    if not merge:
        for scene in collection:
            path = ply if len(collection) == 1 and ply.suffix == ".ply" else ply / f"{scene.name}.ply"
            log.info(f"{path}: {export_ply(scene, path, color.value):,} points")
        return
    chains = _chains(stores, collection, max_residual)
    for name, chain in chains.items():
        path = ply if len(chains) == 1 and ply.suffix == ".ply" else ply / f"{name}.ply"
        log.info(f"{path}: {export_merged(chain, path, color.value):,} points of {len(chain)} scenes")


def view(
    stores: Stores,
    out: Annotated[Path, typer.Option(help="The page to write. It needs no network and no other file.")] = Path("view.html"),
    scene: Annotated[
        str | None, typer.Option(help="Which scene of a folder, by its name or the end of it. Default: the largest.")
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="The whole sequence, if its scenes share frames (`reconstruct --overlap`).")
    ] = False,
    max_residual: MaxResidual = 0.05,
    points: Annotated[int, typer.Option(min=1, max=2_000_000, help="Most points on the page, 20 bytes each.")] = 200_000,
    color: Annotated[Color, typer.Option(help="The colours to begin with; the page can switch.")] = Color.rgb,
    png: Annotated[Path | None, typer.Option(help="Also write a picture of the cloud in these colours.")] = None,
) -> None:  # fmt: skip
    """Write a web page that shows a scene, or a whole sequence, as a cloud to turn around in."""
    from rw3d_common.collection import open_collection
    from rw3d_prep.align import alone
    from rw3d_prep.view import sample_cloud, write_page, write_png

    collection = open_collection(stores)
    chosen = _chosen(collection, scene)
    if merge:
        sequence = [other for other in collection if _sequence(other) == _sequence(chosen) and len(other)]
        (chain,) = _chains(stores, sequence, max_residual).values()
    else:
        chain = [alone(chosen)]
    cloud = sample_cloud(chain, points)
    write_page(cloud, out, color.value)
    what = f"{len(chain)} scenes of {_sequence(chosen)}" if merge else chosen.name
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


def _chains(stores: Path, scenes: Collection | list[Scene], max_residual: float) -> dict[str, list[Placed]]:
    from rw3d_prep.align import chain

    links = _links(stores)
    with_views = sorted((scene for scene in scenes if len(scene)), key=_sequence)
    if not with_views:
        raise UserError(f"{stores}: only point clouds without views, which have nothing to be merged by; drop --merge")
    return {name: chain(members, links, max_residual) for name, members in groupby(with_views, key=_sequence)}


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
