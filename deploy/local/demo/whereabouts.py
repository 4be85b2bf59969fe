"""Where stored files are, from the JSON that `nlds find` prints. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Whereabouts:
    """How many files there are, and how many have a copy of each kind."""

    files: int
    bytes: int
    in_cache: int
    on_tape: int
    safe: int
    on_tape_only: int

    def __str__(self) -> str:
        return (
            f"in the cache {self.in_cache:,}, on tape {self.on_tape:,} ({self.safe:,} safe), "
            f"only on tape {self.on_tape_only:,}, of {self.files:,}"
        )


def count(files: Iterable[Mapping[str, Any]]) -> Whereabouts:
    """Add up files as `nlds find --json` prints them."""
    total = size = cached = taped = safe = only = 0
    for file in files:
        copies = {location["tier"]: location["state"] for location in file["locations"]}
        total += 1
        size += int(file["size"])
        cached += "CACHE" in copies
        taped += "TAPE" in copies
        safe += copies.get("TAPE") == "SAFE"
        only += copies.keys() == {"TAPE"}
    return Whereabouts(total, size, cached, taped, safe, only)
