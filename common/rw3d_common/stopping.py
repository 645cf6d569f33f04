"""What both programs do before they exit because of a signal."""

from __future__ import annotations

import signal
import sys


def let_zarr_finish(seconds: float = 30) -> None:
    """Wait for the write or read of zarr that a signal interrupted, at most so long.

    Zarr works in a thread of its own and gives it 0.2 s when Python exits. On a busy machine what it is at takes longer,
    and the user would see a traceback below the sentence that says how to go on. Another signal in the meantime, from an
    impatient user or scheduler, changes nothing; without this it would end in a traceback too.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    sync = sys.modules.get("zarr.core.sync")
    if sync is not None and sync.loop[0] is not None and sync.iothread[0] is not None:
        sync.loop[0].call_soon_threadsafe(sync.loop[0].stop)
        sync.iothread[0].join(seconds)
