"""A command of rw3d-prep as a user types it, in this process."""

from __future__ import annotations

import logging
import sys

import pytest

from rw3d_prep import cli


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code; what it says is on standard output and error. The logger is left as it was."""
    log = logging.getLogger("rw3d")
    before = log.handlers[:], log.propagate, log.level
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["rw3d-prep", *arguments])
        patch.setattr(cli.signal, "signal", lambda *_: None)
        patch.setenv("COLUMNS", "220")
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main()
        finally:
            log.handlers[:], log.propagate, level = before
            log.setLevel(level)
    return int(ended.value.code or 0)
