"""`rw3d-prep reconstruct --upload`: scenes go to object storage while others are made.

One thread uploads finished scenes in turn, so that no GPU waits for the network. What cannot be uploaded stays on the
disk, is a line in failures.jsonl, and goes up with the same command, which uploads what of its scenes is not there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from rw3d_common.errors import UserError
from rw3d_common.log import log
from rw3d_common.remote import RemotePath, Unreachable, as_store_path
from rw3d_common.schema import STORE_SUFFIX
from rw3d_prep.outcome import Outcome
from rw3d_prep.publish import MANIFEST
from rw3d_prep.upload import Uploaded, upload_manifest, upload_scene


def upload_target(url: str) -> RemotePath:
    """The place that a URL names, which answers.

    Raises:
        UserError: no URL of object storage, no such bucket, no credentials, or no answer: better now than in hours.
    """
    place = as_store_path(url)
    if not isinstance(place, RemotePath):
        raise UserError(f"--upload {url}: no URL of object storage; give one such as s3://bucket/stores")
    place.folders()
    return place


class RunUploads:
    """Uploads scenes from `out` to `target` in a thread of its own; without a target it does nothing.

    Use as a context manager. When the block is left early, what waits is dropped and the scene under way is abandoned
    at its next object; without its completion record it is no store, and the same command goes on with it.
    """

    def __init__(self, out: Path, target: RemotePath | None) -> None:
        self.out, self.target = out, target
        self.stopped = threading.Event()
        self.fault = ""  # the connection broke for good, as far as this run is concerned
        self.uploads: dict[str, Future[Uploaded]] = {}
        self.thread = ThreadPoolExecutor(1, "upload")

    def __enter__(self) -> RunUploads:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopped.set()
        self.thread.shutdown(wait=kind is None, cancel_futures=True)

    def add(self, name: str) -> None:
        """Upload the finished scene of this name when the thread has come to it; returns at once."""
        if self.target and name not in self.uploads:
            self.uploads[name] = self.thread.submit(self._upload, name, self.target)

    def finish(self, names: Iterable[str], outcome: Outcome, failures: Path) -> None:
        """Upload what of `names` has not been added either, wait for all, and record what is not there."""
        if not self.target:
            return
        for name in names:
            self.add(name)
        waiting = sum(not future.done() for future in self.uploads.values())
        log.info(f"upload to {self.target}: {len(self.uploads) - waiting} scenes are through, {waiting} remain")
        total = Uploaded()
        for name, future in self.uploads.items():
            try:
                total.add(future.result())
            except Exception as error:  # noqa: BLE001 - one scene must not keep the others from going up; nothing is hidden
                outcome.record_upload(name, error, failures)
        if not outcome.not_uploaded:
            self._upload_manifest(total, outcome, failures, self.target)
        log.info(
            f"{self.target}: {total.sent:,} objects ({total.bytes / 1e6:,.1f} MB) uploaded, {total.kept:,} were there"
        )

    def _upload(self, name: str, target: RemotePath) -> Uploaded:
        if self.fault:  # not a minute of retries for each scene that follows
            raise Unreachable(self.fault)
        result = Uploaded()
        try:
            upload_scene(self.out / f"{name}{STORE_SUFFIX}", self.out, target, result, self._go_on)
        except Unreachable as error:
            self.fault = str(error)
            raise
        return result

    def _go_on(self, amount: int = 1, note: str = "") -> None:
        if self.stopped.is_set():
            raise CancelledError

    def _upload_manifest(self, total: Uploaded, outcome: Outcome, failures: Path, target: RemotePath) -> None:
        """The collection's manifest, last; where other shards are still at work there is none yet."""
        try:
            upload_manifest(self.out, target, total)
        except UserError as error:
            outcome.record_upload(MANIFEST, error, failures)
