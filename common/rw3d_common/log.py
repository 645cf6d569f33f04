"""The one logger, progress that suits terminal and log file alike, and `metrics.jsonl`."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger("rw3d")
LINE_EVERY_SECONDS = 30.0


def configure(verbose: bool = False) -> None:
    """Send the logger to standard error, plainly; standard output stays free for tables and paths."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    log.propagate = False


def console() -> Console:
    """Where tables go: standard output, as wide as the terminal, and wide enough for whole names in a file."""
    from rich.console import Console

    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 170
    return Console(width=wide)


class Advance(Protocol):
    """Called after each finished unit; `note` is shown beside the bar."""

    def __call__(self, amount: int = 1, note: str = "") -> None: ...


@contextmanager
def progress(title: str, total: int, unit: str) -> Iterator[Advance]:
    """Progress over `total` units: a bar with ETA on a terminal, a log line every 30 s (and at the end) otherwise.

    Nothing where the logger is set to errors only, as in all but one of several training processes.
    """
    if sys.stderr.isatty() and log.isEnabledFor(logging.WARNING):
        with _bar(title, total, unit) as advance:
            yield advance
    else:
        yield _Lines(title, total, unit)


@contextmanager
def _bar(title: str, total: int, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, note="")

        def advance(amount: int = 1, note: str = "") -> None:
            bar.update(task, advance=amount, note=note)

        yield advance


class _Lines:
    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done, self.started = 0, time.monotonic()
        self.last = self.started

    def __call__(self, amount: int = 1, note: str = "") -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.last < LINE_EVERY_SECONDS and self.done < self.total:
            return
        self.last = now
        elapsed = now - self.started
        left = elapsed / self.done * (self.total - self.done) if self.done else float("nan")
        log.info(
            f"{self.title}: {self.done}/{self.total} {self.unit}, {elapsed:.0f} s, about {left:.0f} s left {note}".rstrip()
        )


class Metrics:
    """Appends one JSON object per line to `metrics.jsonl`; each line is written whole and carries the time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **values: Any) -> None:
        line = json.dumps({"time": round(time.time(), 3), **values}, allow_nan=False, default=str)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
