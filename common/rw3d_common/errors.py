"""Errors that are the user's to mend, and the exit codes of both programs."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path


class Exit(IntEnum):
    """Exit codes of `rw3d-prep` and `rw3d-train`; 1 is left to Python itself and means a bug of ours."""

    COMPLETE = 0
    BAD_INPUT = 2
    PARTIAL = 3
    STOPPED = 75  # sysexits' EX_TEMPFAIL: the same command resumes


class UserError(Exception):
    """Bad input or configuration: one sentence that names the file, the value and the mend. Exit code 2."""


class DiskFull(UserError):
    """No space left where output is written: every later batch would fail too, so the run stops."""


class Stopped(BaseException):
    """SIGTERM, SIGINT or SIGUSR1 arrived. Not an Exception, so that per-batch handling never takes it for a failure."""


_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn 'no space left' below `path` into DiskFull and 'not writable' into UserError; other errors pass through.

    Raises:
        DiskFull: on ENOSPC or EDQUOT.
        UserError: a missing permission, a read-only disk, or a file where a folder should be.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"{path}: no space left on this disk ({error.strerror}); free some or write elsewhere, "
                "then run the same command again: finished scenes are kept"
            ) from error
        if error.errno in _NOT_WRITABLE:
            where = f" at {error.filename}" if error.filename else ""
            raise UserError(
                f"{path}: cannot be written ({error.strerror}{where}); make it a folder that you may write to, "
                "or choose another --out"
            ) from error
        raise
