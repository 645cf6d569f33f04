"""Places on S3 and other object storage, with the few members of `pathlib.Path` that reading a store needs.

    open_scene("s3://bucket/stores/demo/train/…/0000000000-0000000019.zarr")

Credentials, endpoint and region come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL,
AWS_REGION, …). With RW3D_CACHE=FOLDER, objects are fetched whole, once, and read as files: see `cache.py`. Needs the
extra `s3` (obstore), imported with the first request. Every process makes clients of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from rw3d_common.errors import UserError

# pathlib makes s3:/bucket of s3://bucket, and command lines and recipes hold paths: one slash is as good as two.
_URL = re.compile(r"(s3|gs|az):/{1,2}([^/]+)/*(.*)")
RETRY = {
    "max_retries": 8,
    "retry_timeout": timedelta(seconds=90),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=15), "base": 2},
}
TIMEOUT = "60s"  # of one request; longer transfers are parts or go on where they broke off
LISTINGS = 5  # times that a listing is asked for whose answer breaks off
CHECKSUM = "sha256"  # the metadata of an object that holds its SHA-256: an ETag is none
_owner: list[int] = []  # the process whose threads serve the clients


class Unreachable(UserError):
    """Object storage does not answer, or breaks off again and again: the same command may work later."""


@dataclass(frozen=True, order=True)
class RemotePath:
    """An object, or the objects whose keys start with `key` and a slash; `bucket` is scheme and name, s3://bucket."""

    bucket: str
    key: str

    def __truediv__(self, name: str | PurePosixPath) -> RemotePath:
        return RemotePath(self.bucket, f"{self.key}/{name}".strip("/"))

    def joinpath(self, *names: str) -> RemotePath:
        return self / "/".join(names)

    def __str__(self) -> str:
        return f"{self.bucket}/{self.key}"

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name

    @property
    def parent(self) -> RemotePath:
        return RemotePath(self.bucket, self.key.rpartition("/")[0])

    @property
    def parents(self) -> tuple[RemotePath, ...]:
        folders = [str(folder) for folder in PurePosixPath(self.key).parents]
        return tuple(RemotePath(self.bucket, "" if folder == "." else folder) for folder in folders)

    def relative_to(self, other: RemotePath) -> PurePosixPath:
        return PurePosixPath(self.key).relative_to(other.key)

    def resolve(self) -> RemotePath:
        """Itself: a key is absolute."""
        return self

    def is_file(self) -> bool:
        """There is an object of this key."""
        try:
            self.size()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """There are objects below this key."""
        return bool(self.sizes())

    def exists(self) -> bool:
        """There is such an object, or a group or array that was uploaded whole: its zarr.json comes last."""
        return self.is_file() or (self / "zarr.json").is_file()

    def size(self) -> int:
        """Bytes of this object.

        Raises:
            FileNotFoundError: there is none.
        """
        import_obstore(self)
        import obstore

        with remote_errors(self):
            return int(obstore.head(client(self), self.key)["size"])

    def sizes(self) -> dict[str, int]:
        """Bytes of every object below this key, by name relative to it; one request per 1,000 objects."""
        import_obstore(self)
        import obstore

        found = _listed(self, lambda: [item for batch in obstore.list(client(self), f"{self.key}/") for item in batch])
        return {PurePosixPath(item["path"]).relative_to(self.key).as_posix(): int(item["size"]) for item in found}

    def folders(self) -> list[RemotePath]:
        """The common prefixes one level below this key."""
        import_obstore(self)
        import obstore

        found = _listed(self, lambda: obstore.list_with_delimiter(client(self), f"{self.key}/" if self.key else None))
        return [RemotePath(self.bucket, prefix.strip("/")) for prefix in found["common_prefixes"]]

    def read_bytes(self) -> bytes:
        """The whole object.

        Raises:
            FileNotFoundError: there is none.
        """
        import_obstore(self)
        import obstore

        with remote_errors(self):
            return bytes(obstore.get(client(self), self.key).bytes())

    def read_range(self, offset: int, length: int) -> bytes:
        """`length` > 0 bytes from `offset`, fewer where the object ends.

        Raises:
            FileNotFoundError: there is no such object.
        """
        import_obstore(self)
        import obstore

        with remote_errors(self):
            return bytes(obstore.get_range(client(self), self.key, start=offset, length=length))


StorePath = Path | RemotePath
AnyPath = TypeVar("AnyPath", Path, RemotePath)


def as_store_path(path: str | StorePath) -> StorePath:
    """A RemotePath of an s3://, gs:// or az:// URL, a Path of anything else."""
    if isinstance(path, RemotePath):
        return path
    if match := _URL.fullmatch(str(path)):
        scheme, bucket, key = match.groups()
        return RemotePath(f"{scheme}://{bucket}", key.strip("/"))
    return Path(path)


def _listed(path: RemotePath, ask: Callable[[], Any]) -> Any:
    """What `ask` lists; obstore repeats requests by itself, but not a listing that breaks off within the answer."""
    for attempt in range(LISTINGS):
        try:
            with remote_errors(path):
                return ask()
        except Unreachable as error:
            if "response body" not in str(error) or attempt + 1 == LISTINGS:
                raise
    raise AssertionError("LISTINGS is positive")


def uploaded_checksum(path: RemotePath) -> str | None:
    """The SHA-256 that an object was uploaded with; None for an object of other tools, or none at all."""
    import_obstore(path)
    import obstore

    try:
        with remote_errors(path):
            attributes = obstore.get(client(path), path.key, options={"head": True}).attributes
    except FileNotFoundError:
        return None
    checksum: str | None = attributes.get(CHECKSUM)
    return checksum


def import_obstore(path: RemotePath) -> None:
    """Raise UserError where the extra `s3` is not installed, or this process is a fork of one that used it."""
    try:
        import obstore  # noqa: F401
    except ImportError as error:
        raise UserError(f"{path}: reading object storage needs the extra s3: pip install 'rw3d[s3]'") from error
    if _owner and _owner[0] != os.getpid():
        raise UserError(
            f"{path}: this process was forked from one that had read object storage, whose threads it lacks; start it with "
            "multiprocessing_context='forkserver' or 'spawn'"
        )


def client(path: RemotePath) -> Any:
    """This process's obstore client for the bucket of `path`; call `import_obstore` before."""
    _owner[:] = [os.getpid()]
    settings = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    return _client(path.bucket, settings)


@cache
def _client(bucket: str, settings: tuple[tuple[str, str], ...]) -> Any:
    from obstore.store import from_url

    endpoint = dict(settings).get("AWS_ENDPOINT_URL", "")
    options: dict[str, Any] = {"timeout": TIMEOUT, "connect_timeout": "10s"}
    if endpoint.startswith("http://"):
        options["allow_http"] = True  # who names such an endpoint wants it
    return from_url(bucket, client_options=options, retry_config=RETRY)  # type: ignore[call-overload]


@contextmanager
def remote_errors(path: RemotePath) -> Iterator[None]:
    """Turn what obstore raises about `path` into one sentence; FileNotFoundError means that there is no such object.

    Raises:
        UserError: no such bucket, no or refused credentials.
        Unreachable: no answer, or one that breaks off, after all retries.
    """
    from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

    try:
        yield
    except (BaseError, FileNotFoundError) as error:
        text = str(error)
        if "NoSuchBucket" in text:
            raise UserError(f"{path}: there is no bucket {path.bucket}; create it, or mend its name") from None
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(2, "no such object", str(path)) from None
        if isinstance(error, PermissionDeniedError | UnauthenticatedError):
            raise UserError(
                f"{path}: access was refused ({_brief(text)}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of a user "
                "who may use this bucket"
            ) from None
        if "/latest/api/token" in text or "/latest/meta-data" in text:
            raise UserError(
                f"{path}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for "
                "a public bucket"
            ) from None
        raise Unreachable(
            f"{path}: no answer, or one that broke off ({_brief(text)}); check the network and AWS_ENDPOINT_URL, then "
            "run the same command again"
        ) from None


def _brief(text: str) -> str:
    """The sentence of an error of obstore, without the structure and the reply that follow it."""
    return " ".join(re.split(r"\n|Debug source|<\?xml|: *<", text)[0].split()).rstrip(" :")[:240]
