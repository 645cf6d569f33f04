"""What a process on a CPU does with memory that it frees."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from rw3d_train.memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory(torch.device("cpu"))
torch.set_num_threads(1)
for _ in range(20):  # 64 MiB each, as the activations of a step: freed before the next
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_memory_that_is_used_again_costs_no_new_pages():
    faults = {}
    for way in ("keep", "return"):
        command = [sys.executable, "-c", PROGRAM, way]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        faults[way] = int(done.stdout)
    assert faults["keep"] < 32 <= faults["return"]  # 64 MiB are 32 pages where pages are huge, 16,384 elsewhere
