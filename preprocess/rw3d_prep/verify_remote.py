"""What `rw3d-prep verify` needs of stores on object storage: every object read in full, and what is there at all."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rw3d_common.cache import RECORDS
from rw3d_common.collection import remote_folders
from rw3d_common.remote import RemotePath, client, import_obstore, remote_errors, uploaded_checksum

TRANSFERS = 4  # objects read at a time
CHUNK_BYTES = 4 << 20  # of each that are in memory, about


def object_table(store: RemotePath) -> dict[str, dict[str, Any]]:
    """SHA-256 and size of every object of a store but its root zarr.json, as `write.file_table` has them of files.

    Objects are streamed past, so memory does not depend on their size; RW3D_CACHE is not asked.

    Raises:
        Unreachable: no answer, or one that broke off again and again.
    """
    names = [name for name in store.sizes() if name != "zarr.json"]
    with ThreadPoolExecutor(TRANSFERS) as threads:
        return dict(zip(names, threads.map(lambda name: _facts(store / name), names), strict=True))


def record_faults(store: RemotePath) -> list[str]:
    """Completion records that are not what was uploaded: nothing else promises their SHA-256, but their metadata does."""
    faults = []
    for record in RECORDS:
        try:
            there = _facts(store / record)["sha256"]
        except FileNotFoundError:
            continue
        uploaded = uploaded_checksum(store / record)
        if uploaded is None:
            faults.append(f"{record} was not put there by `rw3d-prep upload`: it bears no SHA-256")
        elif uploaded != there:
            faults.append(f"{record} was altered (SHA-256 differs from when it was uploaded)")
    return faults


def unfinished_uploads(path: RemotePath) -> list[str]:
    """A sentence for each store at or below `path` whose root zarr.json, which is uploaded last, is not there."""
    return [
        f"{store}: its zarr.json, which comes last, is not there; end its upload with `rw3d-prep upload`"
        for store in remote_folders(path)
        if not (store / "zarr.json").is_file()
    ]


def _facts(place: RemotePath) -> dict[str, Any]:
    import_obstore(place)
    import obstore

    digest, size = hashlib.sha256(), 0
    with remote_errors(place):
        for chunk in obstore.get(client(place), place.key).stream(min_chunk_size=CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return {"sha256": digest.hexdigest(), "size": size}
