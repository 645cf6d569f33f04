"""`rw3d-prep upload`: finished stores to object storage, whole, each with its completion record last.

Every object carries its SHA-256 as metadata. What is there with the right size and SHA-256 stays, so an upload that was
killed goes on with the same command. A store or group whose record changed is withdrawn before its objects are replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from rw3d_common.cache import RECORDS
from rw3d_common.collection import local_stores
from rw3d_common.errors import UserError
from rw3d_common.log import Advance
from rw3d_common.remote import (
    CHECKSUM,
    RemotePath,
    Unreachable,
    client,
    import_obstore,
    remote_errors,
    uploaded_checksum,
)
from rw3d_common.scene import Scene, open_scene
from rw3d_common.scene_accumulated import has_accumulated
from rw3d_common.scene_sample import has_samples
from rw3d_common.schema import STORE_SUFFIX
from rw3d_prep.publish import MANIFEST
from rw3d_prep.write import sha256_of

TRANSFERS = 8  # at a time; large files are sent in parts of their own
Checksums = Mapping[str, str]


@dataclass
class Uploaded:
    """What an upload did, in objects; `fault` says why it broke off, with `missing` objects not there."""

    sent: int = 0
    kept: int = 0
    bytes: int = 0
    missing: list[str] = field(default_factory=list)
    fault: str = ""
    needs_images: bool = False

    def add(self, other: Uploaded) -> None:
        """Count what another upload did as well."""
        self.sent, self.kept, self.bytes = self.sent + other.sent, self.kept + other.kept, self.bytes + other.bytes


@dataclass(frozen=True)
class _Part:
    """What one completion record promises: SHA-256 by name in the store. The record itself comes last."""

    record: str
    files: Checksums


def plan_upload(stores: Path, target: RemotePath) -> dict[RemotePath, Scene]:
    """The scenes at or below `stores`, by where they go: below `target` as they lie below `stores`.

    Raises:
        UserError: no finished scene there.
    """
    found = local_stores(stores)
    if not found:
        raise UserError(f"{stores}: no finished scene here; make some with `rw3d-prep reconstruct --out {stores}`")
    scenes = [open_scene(path) for path in found]
    if stores.name.endswith(STORE_SUFFIX):
        whole = target if target.name.endswith(STORE_SUFFIX) else target / f"{scenes[0].name}{STORE_SUFFIX}"
        return {whole: scenes[0]}
    return {target / scene.folder.relative_to(stores).as_posix(): scene for scene in scenes}


def upload(stores: Path, target: RemotePath, plan: Mapping[RemotePath, Scene], advance: Advance) -> Uploaded:
    """Upload the scenes of a plan, then the collection's manifest; safe to kill and to call again.

    Raises:
        UserError: no bucket, no credentials, or a local file that is not what its record promises.
    """
    result = Uploaded(needs_images=any(scene.files is None for scene in plan.values()))
    todo = {str(place / name) for place, scene in plan.items() for name in names_of(scene)}
    try:
        for place, scene in plan.items():
            _upload_store(scene, place, todo, result, advance)
        todo.add(str(target / MANIFEST))
        upload_manifest(stores, target, result)
        todo.clear()
    except Unreachable as error:
        result.fault, result.missing = str(error), sorted(todo)
    return result


def upload_scene(store: Path, stores: Path, target: RemotePath, result: Uploaded, advance: Advance) -> None:
    """Upload one scene of a collection to where `plan_upload` puts it; what `advance` raises abandons it.

    Raises:
        UserError: as `upload`.
        Unreachable: the connection broke for good.
    """
    _upload_store(open_scene(store), target / store.relative_to(stores).as_posix(), set(), result, advance)


def upload_manifest(stores: Path, target: RemotePath, result: Uploaded) -> None:
    """Upload a collection's manifest, where it has one.

    Raises:
        UserError: as `upload`.
        Unreachable: the connection broke for good.
    """
    manifest = stores / MANIFEST
    if manifest.is_file():
        _count(_send(manifest, target / MANIFEST, sha256_of(manifest), None), result)


def names_of(scene: Scene) -> list[str]:
    """Every object of a scene by name in its store."""
    return [name for part in _parts(scene) for name in (*part.files, part.record)]


def _parts(scene: Scene) -> list[_Part]:
    """The scene's own part, then those of groups that were added to it."""
    tables = [scene.attrs["complete"]["files"]]
    tables.append(scene.samples.record["files"] if has_samples(scene.path) else None)
    tables.append(scene.accumulated.record["files"] if has_accumulated(scene.path) else None)
    return [
        _Part(record, {name: facts["sha256"] for name, facts in files.items() if name != record})
        for record, files in zip(RECORDS, tables, strict=True)
        if files is not None
    ]


def _upload_store(scene: Scene, place: RemotePath, todo: set[str], result: Uploaded, advance: Advance) -> None:
    there, parts = place.sizes(), _parts(scene)
    records = {part.record: sha256_of(scene.folder / part.record) for part in parts}
    for part in parts:
        if part.record in there and uploaded_checksum(place / part.record) != records[part.record]:
            there = _withdraw(place, part.record, there, parts)

    def send(names: Iterable[tuple[str, str]]) -> None:
        threads = ThreadPoolExecutor(TRANSFERS)
        try:
            sent = {
                threads.submit(_send, scene.folder / name, place / name, checksum, there.get(name)): name
                for name, checksum in names
            }
            for future in as_completed(sent):
                _count(future.result(), result)
                todo.discard(str(place / sent[future]))
                advance(1, scene.name)
        finally:
            threads.shutdown(cancel_futures=True)

    send((name, checksum) for part in parts for name, checksum in part.files.items())
    send((name, checksum) for name, checksum in records.items() if name != RECORDS[0])
    send([(RECORDS[0], records[RECORDS[0]])])


def _withdraw(place: RemotePath, record: str, there: Mapping[str, int], parts: Iterable[_Part]) -> dict[str, int]:
    """Delete a record that will change, then what its part has no more; returns what is left."""
    keep = {name for part in parts for name in (*part.files, part.record)} - {record}
    group = record.removesuffix("zarr.json")  # "" for the whole store
    doomed = [record, *sorted(name for name in there if name.startswith(group) and name not in keep and name != record)]
    for name in doomed:
        _delete(place / name)
    return {name: size for name, size in there.items() if name not in doomed}


def _send(file: Path, place: RemotePath, checksum: str, there: int | None) -> int:
    """Upload one file unless it is there, and return its bytes, 0 where it was; `there` is the object's size, None where there is none or nobody knows."""
    import_obstore(place)
    import obstore

    try:
        size = file.stat().st_size
        if there == size and uploaded_checksum(place) == checksum:
            return 0
        if sha256_of(file) != checksum:
            raise UserError(f"{file}: altered since it was written; run `rw3d-prep verify` on its store and remake it")
    except FileNotFoundError:
        raise UserError(f"{file}: is missing; run `rw3d-prep verify` on its store and remake it") from None
    with remote_errors(place):
        obstore.put(client(place), place.key, file, attributes={CHECKSUM: checksum})
    return size


def _count(size: int, result: Uploaded) -> None:
    result.sent += size > 0
    result.kept += size == 0
    result.bytes += size


def _delete(place: RemotePath) -> None:
    import_obstore(place)
    import obstore

    with remote_errors(place):
        obstore.delete(client(place), place.key)
