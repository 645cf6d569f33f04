"""zarr's thread is waited for before the programs exit because of a signal."""

import subprocess
import sys

STOP_WHILE_ZARR_IS_BUSY = """
import time, zarr
from zarr.core import sync
from rw3d_common.stopping import let_zarr_finish

zarr.create_array({}, shape=(1,), dtype="u1")[:] = 1
sync.loop[0].call_soon_threadsafe(time.sleep, 1)
time.sleep(0.1)
let_zarr_finish()
"""


def test_a_busy_thread_of_zarr_is_waited_for():
    result = subprocess.run([sys.executable, "-c", STOP_WHILE_ZARR_IS_BUSY], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    hasty = STOP_WHILE_ZARR_IS_BUSY.replace("let_zarr_finish()", "")
    result = subprocess.run([sys.executable, "-c", hasty], capture_output=True, text=True, timeout=60)
    assert "Cannot close a running event loop" in result.stderr, "zarr waits by itself now: drop let_zarr_finish"


def test_another_signal_meanwhile_changes_nothing():
    impatient = STOP_WHILE_ZARR_IS_BUSY.replace(
        "let_zarr_finish()",
        "import os, signal, threading\nthreading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()"
        "\nlet_zarr_finish()",
    )
    result = subprocess.run([sys.executable, "-c", impatient], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")


def test_nothing_to_wait_for():
    code = "from rw3d_common.stopping import let_zarr_finish; let_zarr_finish()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
