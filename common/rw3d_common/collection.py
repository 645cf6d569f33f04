"""A folder of scenes: what `rw3d-prep reconstruct` writes and training reads."""

from __future__ import annotations

import html
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rw3d_common.errors import UserError
from rw3d_common.remote import RemotePath, StorePath, as_store_path
from rw3d_common.scene import Scene, open_scene
from rw3d_common.schema import STORE_SUFFIX


def store_paths(path: str | StorePath) -> list[StorePath]:
    """Every finished-name `*.zarr` store at or below `path`, sorted; temporary stores of running writers are not.

    On object storage, stores whose upload has not ended are not either.
    """
    path = as_store_path(path)
    return [*_remote_stores(path)] if isinstance(path, RemotePath) else [*local_stores(path)]


def local_stores(path: Path) -> list[Path]:
    """The stores at or below a folder of this machine; see `store_paths`."""
    if path.name.endswith(STORE_SUFFIX):
        return [path]
    found: list[Path] = []
    for folder, names, _ in os.walk(path):  # unlike rglob it minds no folder that vanishes under a running writer
        found += [Path(folder, name) for name in names if name.endswith(STORE_SUFFIX)]
        names[:] = [name for name in names if STORE_SUFFIX not in name]  # stores hold no stores
    return sorted(found)


def _remote_stores(path: RemotePath) -> list[RemotePath]:
    found = remote_folders(path)
    if found == [path]:
        return found
    with ThreadPoolExecutor(16) as threads:
        finished = list(threads.map(lambda store: (store / "zarr.json").is_file(), found))
    return sorted(store for store, done in zip(found, finished, strict=True) if done)


def remote_folders(path: RemotePath) -> list[RemotePath]:
    """The stores at or below a place on object storage, those whose upload has not ended among them."""
    if path.name.endswith(STORE_SUFFIX):
        return [path]
    found: list[RemotePath] = []
    todo = [path]
    while todo:
        for folder in todo.pop().folders():
            (found if folder.name.endswith(STORE_SUFFIX) else todo).append(folder)
    return sorted(found)


class Collection:
    """The finished scenes below a folder, in the order of their names; indexable, iterable, opened one by one.

    Raises:
        UserError: no folder, or no scene in it.
    """

    def __init__(self, path: str | StorePath) -> None:
        self.path = as_store_path(path)
        self.paths = store_paths(self.path)
        if not self.paths:
            state = "holds no finished scene" if self.path.is_dir() else "no such folder"
            raise UserError(f"{self.path}: {state}; make scenes with `rw3d-prep reconstruct --out {self.path}`")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Scene:
        """The scene at `index`, opened; negative indices count from the end.

        Raises:
            UserError: no scene of this index, or one that cannot be opened.
        """
        if not -len(self) <= index < len(self):
            raise UserError(f"{self.path}: no scene {index}; this collection has scenes 0 to {len(self) - 1}")
        return open_scene(self.paths[index])

    def __iter__(self) -> Iterator[Scene]:
        return (open_scene(path) for path in self.paths)

    def _rows(self) -> list[tuple[str, str, str, str]]:
        rows = []
        for scene in self:
            counts = scene.attrs["complete"]
            share = counts["labelled_points"] / max(counts["points"], 1)
            rows.append((scene.name, f"{len(scene):,}", f"{scene.n_points:,}", f"{share:.1%}"))
        return rows

    def __repr__(self) -> str:
        lines = [f"Collection of {len(self)} scene{'s' * (len(self) != 1)} in {self.path}"]
        for name, views, points, share in self._rows():
            lines.append(f"  {name}  {views:>4} views  {points:>12} points  {share:>6} labelled")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head = "<th style='text-align:left'>scene</th><th>views</th><th>points</th><th>labelled</th>"
        body = "".join(
            f"<tr><td style='text-align:left'>{html.escape(name)}</td>"
            f"<td>{views}</td><td>{points}</td><td>{share}</td></tr>"
            for name, views, points, share in self._rows()
        )
        return f"<table><caption>{html.escape(str(self.path))}</caption><tr>{head}</tr>{body}</table>"


def open_collection(path: str | StorePath) -> Collection:
    """Open a folder of finished scenes, or what of one was uploaded to an s3:// URL.

    Raises:
        UserError: no folder, or no scene in it.
    """
    return Collection(path)
