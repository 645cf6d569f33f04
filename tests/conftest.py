"""Hypothesis: reproducible runs, and no time limits, because machines differ. The logger is left as each test found it."""

import logging

import pytest
from hypothesis import settings

settings.register_profile("rw3d", deadline=None, derandomize=True)
settings.load_profile("rw3d")


@pytest.fixture(autouse=True)
def logger_as_it_was():
    """A command that runs within a test lets the logger write to what that test captured, which is closed afterwards."""
    log = logging.getLogger("rw3d")
    handlers, propagate, level = log.handlers[:], log.propagate, log.level
    yield
    log.handlers[:], log.propagate = handlers, propagate
    log.setLevel(level)
