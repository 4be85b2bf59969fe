"""What is measured, and what the existing NLDS takes for it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

KIB, GIB = 1 << 10, 1 << 30

PUT, GET, ARCHIVE, SAFE, RECALL, GET_FROM_TAPE = (
    "put", "get from cache", "archive", "archive until safe", "recall to cache", "get from tape",
)  # fmt: skip
OPERATIONS = (PUT, GET, ARCHIVE, SAFE, RECALL, GET_FROM_TAPE)
CP, RCLONE_UP, RCLONE_DOWN, XRDCP_UP, XRDCP_DOWN = (
    "cp -r", "rclone up", "rclone down", "xrdcp up", "xrdcp down",
)  # fmt: skip
PEERS = (CP, RCLONE_UP, RCLONE_DOWN, XRDCP_UP, XRDCP_DOWN)

PEER_OF: Mapping[str, str] = {
    PUT: RCLONE_UP,
    GET: RCLONE_DOWN,
    ARCHIVE: XRDCP_UP,
    RECALL: XRDCP_DOWN,
}
"""The peer that does the same work on the same server."""


@dataclass(frozen=True)
class Case:
    """``files`` files of ``size`` bytes; ``nlds`` are seconds of the existing NLDS by operation."""

    name: str
    title: str
    files: int
    size: int
    nlds: Mapping[str, float] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return self.files * self.size

    def rate(self, seconds: float) -> str:
        """Files a second for small files, megabytes a second for large ones."""
        if self.size < 1_000_000:
            return f"{self.files / seconds:,.0f} files/s"
        return f"{self.bytes / seconds / 1e6:,.0f} MB/s"


CASES = (
    Case(
        "2000x10k",
        "2,000 × 10 KiB",
        2000,
        10 * KIB,
        {PUT: 2000 / 183, GET: 2000 / 107, ARCHIVE: 2000 / 135, GET_FROM_TAPE: 2000 / 75},
    ),
    Case("10000x1k", "10,000 × 1 KiB", 10_000, KIB, {PUT: 10_000 / 276}),
    Case(
        "1x2g",
        "1 × 2 GiB",
        1,
        2 * GIB,
        {PUT: 2 * GIB / 75e6, GET: 2 * GIB / 885e6, ARCHIVE: 2 * GIB / 224e6},
    ),
)
"""Of each figure of NLDS the best: its put of a directory, its get out of the page cache."""

QUICK = (
    Case("200x10k", "200 × 10 KiB", 200, 10 * KIB),
    Case("1x64m", "1 × 64 MiB", 1, 64 << 20),
)
"""Shows that the benchmark works; its figures mean little."""
