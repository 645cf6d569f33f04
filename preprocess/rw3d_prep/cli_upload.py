"""The command `rw3d-prep upload`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rw3d_common.errors import Exit, UserError
from rw3d_common.log import log, progress


def upload(
    stores: Annotated[Path, typer.Argument(help="A *.zarr scene, or a folder of them.")],
    target: Annotated[str, typer.Argument(help="Where they go, such as s3://bucket/stores/demo.")],
) -> None:
    """Upload finished scenes to S3, whole and with their checksums; credentials come from AWS_… in the environment.

    Objects that are there stay: after a crash or Ctrl-C, the same command goes on where it stopped. Exit codes: 0 all
    done, 2 bad input, 3 the connection broke and something is missing, 75 stopped by a signal.
    """
    raise typer.Exit(upload_stores(stores, target))


def upload_stores(stores: Path, target: str) -> Exit:
    """Upload and say what happened.

    Raises:
        UserError: no scenes, `target` is no URL of object storage, or what `rw3d_prep.upload.upload` raises.
    """
    from rw3d_common.remote import RemotePath, as_store_path
    from rw3d_prep.upload import names_of, plan_upload
    from rw3d_prep.upload import upload as run

    place = as_store_path(target)
    if not isinstance(place, RemotePath):
        raise UserError(f"{target}: no URL of object storage; give one such as s3://bucket/stores")
    plan = plan_upload(stores, place)
    objects = sum(len(names_of(scene)) for scene in plan.values())
    log.info(f"upload {len(plan)} scene{'s' * (len(plan) != 1)} ({objects:,} objects) of {stores} to {place}")
    with progress("upload", objects, "objects") as advance:
        result = run(stores, place, plan, advance)
    if result.fault:
        first = f"{len(result.missing):,} of {objects:,} objects are not there, the first {result.missing[0]}"
        log.error(f"rw3d-prep: {result.fault}; {first}")
        return Exit.PARTIAL
    log.info(f"{place}: {result.sent:,} objects ({result.bytes / 1e6:,.1f} MB) uploaded, {result.kept:,} were there")
    if result.needs_images:
        log.info("their images are not in the stores: readers need the data too, or reconstruct with --embed-images")
    return Exit.COMPLETE
