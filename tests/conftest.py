"""Hypothesis: reproducible runs, and no time limits, because machines differ."""

from hypothesis import settings

settings.register_profile("rw3d", deadline=None, derandomize=True)
settings.load_profile("rw3d")
