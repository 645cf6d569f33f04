"""What a run did, and the batches that failed: `failures.jsonl`, one JSON object per line."""

from __future__ import annotations

import json
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rw3d_common.errors import Exit, UserError
from rw3d_common.log import log

FAILURES = "failures.jsonl"


@dataclass
class Outcome:
    """What a run did: scenes written and skipped now, and a sentence per batch that failed."""

    written: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    bad_input_only: bool = True

    def record(self, scene: str, error: Exception, failures: Path, **more: Any) -> None:
        """Note that a scene failed, here, in the log, and as a line of `failures`; bugs with their traceback."""
        user_error = isinstance(error, UserError)
        self.failed[scene] = str(error) if user_error else f"{type(error).__name__}: {error}"
        self.bad_input_only &= user_error
        log.error(f"{scene} failed: {self.failed[scene]}")
        trace = None if user_error else "".join(traceback.format_exception(error))
        line = {"scene": scene, "error": self.failed[scene], **more, "traceback": trace}
        with failures.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def exit_code(self) -> Exit:
        """0 when everything is there, 2 when bad input left nothing at all, 3 when the rest went on."""
        if not self.failed:
            return Exit.COMPLETE
        nothing = not self.written and not self.skipped
        return Exit.BAD_INPUT if nothing and self.bad_input_only else Exit.PARTIAL


def failed_scenes(failures: Path) -> set[str]:
    """The names of the scenes that a failures.jsonl lists; none when there is no such file.

    Raises:
        UserError: a line is damaged.
    """
    if not failures.is_file():
        return set()
    names = set()
    for number, line in enumerate(failures.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            names.add(str(json.loads(line)["scene"]))
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
