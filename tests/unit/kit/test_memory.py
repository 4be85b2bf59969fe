"""The settings are a process's for good, so each test looks at one of its own."""

import subprocess
import sys

_PROGRAM = """
import mmap, resource
from pathlib import Path
from services.kit import memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

memory.tune()
before = resident()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    pieces = [bytes(bytearray(8 << 20)) for _ in range(2)]
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
del pieces
memory.give_back()
print(faults * mmap.PAGESIZE >> 20, resident() - before >> 20)
"""


def _measured() -> tuple[int, int]:
    command = [sys.executable, "-c", _PROGRAM]
    words = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()
    return int(words[0]), int(words[1])


def test_large_buffers_are_used_again_and_given_back() -> None:
    fetched, kept = _measured()  # in MiB
    assert fetched < 100, "of the 640 that were used"
    assert kept < 16
