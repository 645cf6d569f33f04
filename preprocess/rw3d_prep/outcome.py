"""What a run did, and the batches that failed: `failures.jsonl`, one JSON object per line."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rw3d_common.errors import Exit, UserError
from rw3d_common.log import log

FAILURES = "failures.jsonl"


@dataclass
class Outcome:
    """What a run did: scenes written and skipped now, and a sentence per batch that failed.

    `there` are the scenes of the run's part that lie on the disk when it ends, halves of skipped batches among them;
    `not_uploaded` has a sentence for each that is not on object storage as it should be.
    """

    written: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    there: list[str] = field(default_factory=list)
    not_uploaded: dict[str, str] = field(default_factory=dict)
    bad_input_only: bool = True

    def record(self, scene: str, error: Exception, failures: Path, **more: Any) -> None:
        """Note that a scene failed, here, in the log, and as a line of `failures`; bugs with their traceback."""
        self.failed[scene] = _append(failures, scene, error, more)
        self.bad_input_only &= isinstance(error, UserError)
        log.error(f"{scene} failed: {self.failed[scene]}")

    def record_upload(self, name: str, error: Exception, failures: Path) -> None:
        """Note in the same places that a scene, or the manifest, was not uploaded; it need not be made again."""
        self.not_uploaded[name] = _append(failures, name, error, {"stage": "upload"})
        log.error(f"{name} was not uploaded: {self.not_uploaded[name]}")

    def exit_code(self) -> Exit:
        """0 when everything is there, 2 when bad input left nothing at all, 3 when the rest went on."""
        if not self.failed:
            return Exit.PARTIAL if self.not_uploaded else Exit.COMPLETE
        nothing = not self.written and not self.skipped
        return Exit.BAD_INPUT if nothing and self.bad_input_only else Exit.PARTIAL


def _append(failures: Path, scene: str, error: Exception, more: Mapping[str, Any]) -> str:
    """Add a line to failures.jsonl, for bugs with their traceback; returns the error's sentence."""
    user_error = isinstance(error, UserError)
    sentence = str(error) if user_error else f"{type(error).__name__}: {error}"
    trace = None if user_error else "".join(traceback.format_exception(error))
    with failures.open("a", encoding="utf-8") as file:
        file.write(
            json.dumps({"scene": scene, "error": sentence, **more, "traceback": trace}, ensure_ascii=False) + "\n"
        )
    return sentence


def failed_scenes(failures: Path) -> set[str]:
    """The names of the scenes that a failures.jsonl lists as not made; none when there is no such file.

    Raises:
        UserError: a line is damaged.
    """
    if not failures.is_file():
        return set()
    names = set()
    for number, line in enumerate(failures.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            name = str(record["scene"])
            if record.get("stage") != "upload":
                names.add(name)
        except (ValueError, TypeError, KeyError):
            raise UserError(
                f"{failures}: line {number} is no record of a failed batch ({line[:60]}); delete that line, "
                "or run without --retry-failed, which makes all that is missing"
            ) from None
    return names


def forget_failures(failures: Path, size: int) -> None:
    """Drop the first `size` bytes of failures.jsonl: the lines of earlier runs, whose batches were tried again since.

    Called when a run ends by itself: one that is killed leaves both its own lines and those it was to try again.
    """
    if not failures.is_file():
        return
    recent = failures.read_bytes()[size:]
    if not recent:
        failures.unlink()
        return
    temporary = failures.with_name(f"{failures.name}.tmp")
    temporary.write_bytes(recent)
    temporary.replace(failures)
