"""What a person sees of the demonstration, with times."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

MB = 1_000_000


class Screen:
    """Prints steps as they happen. Times are wall clock seconds since it was made."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out = out
        self._start = time.monotonic()
        self._steps: list[tuple[str, float]] = []

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """A named part; how long it took is printed behind it and kept for `table`."""
        start = time.monotonic()
        self.line(f"\n== {title} (at {start - self._start:.1f} s)")
        yield
        took = time.monotonic() - start
        self._steps.append((title, took))
        self.say(f"took {took:.1f} s")

    def line(self, text: str) -> None:
        """One line as it is."""
        # A log that is not UTF-8 must not end the demonstration.
        encoding = self._out.encoding or "utf-8"
        print(
            text.encode(encoding, "backslashreplace").decode(encoding), file=self._out, flush=True
        )

    def say(self, text: str) -> None:
        """One line within a step."""
        self.line(f"   {text}")

    def table(self) -> None:
        """All steps and their times."""
        self.line("\n== times")
        for title, took in self._steps:
            self.say(f"{took:7.1f} s  {title}")
        self.say(f"{time.monotonic() - self._start:7.1f} s  all")


def amount(files: int, size: int) -> str:
    """Files and bytes in words."""
    return f"{files:,} files, {size / MB:,.1f} MB"
