"""Objects fetched whole, once, and read as files: RW3D_CACHE=FOLDER.

A copy is named by its SHA-256, which the completion record of its store promises, so that it can never be stale, and
several processes and collections may share the folder. It can be deleted at any time when nobody reads.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

from rw3d_common.errors import UserError, disk_errors
from rw3d_common.remote import CHECKSUM, RemotePath, client, import_obstore, remote_errors
from rw3d_common.schema import STORE_SUFFIX

RECORDS = ("zarr.json", "samples/zarr.json", "accumulated/zarr.json")
_checksums: dict[RemotePath, dict[str, str]] = {}  # by store, then by name in it


def cached(path: RemotePath) -> Path | None:
    """The local copy of an object, fetched now if need be; None without RW3D_CACHE, or where no record promises it.

    Raises:
        UserError: the object is not what its record promises, or the folder cannot be written.
        FileNotFoundError: there is no such object.
    """
    folder = os.environ.get("RW3D_CACHE")
    store = next((parent for parent in path.parents if parent.name.endswith(STORE_SUFFIX)), None)
    if not folder or store is None or path.name == "zarr.json":  # small, and a record has no checksum
        return None
    promised = promised_checksums(store).get(str(path.relative_to(store)))
    if promised is None:
        return None
    target = Path(folder, promised[:2], promised)
    if not target.is_file():
        _fetch(path, promised, target)
    return target


def promised_checksums(store: RemotePath) -> dict[str, str]:
    """SHA-256 by name of the objects of a store, as its completion records say; read once per process."""
    if store not in _checksums:
        files: dict[str, Any] = {}
        for record in RECORDS:
            try:
                files |= json.loads((store / record).read_bytes())["attributes"]["complete"]["files"]
            except (FileNotFoundError, KeyError, ValueError):
                continue  # a group that is not there; who opens a damaged one is told so
        _checksums[store] = {name: facts["sha256"] for name, facts in files.items()}
    return _checksums[store]


def _fetch(path: RemotePath, promised: str, target: Path) -> None:
    import_obstore(path)
    import obstore

    temporary = target.with_name(f"{target.name}.tmp-{uuid.uuid4().hex[:12]}")
    digest = hashlib.sha256()
    with disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file, remote_errors(path):
                for chunk in obstore.get(client(path), path.key).stream():
                    digest.update(chunk)
                    file.write(chunk)
            if digest.hexdigest() != promised:
                _checksums.clear()  # the store may have been replaced since its records were read
                raise UserError(
                    f"{path}: its {CHECKSUM} is not the one of the completion record, so it was altered or replaced; "
                    "open the store again, or upload it again"
                )
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
