"""What a run survived, and what it found, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.soak.checker import Violation


@dataclass(frozen=True)
class Report:
    """The result of one run."""

    seed: int
    minutes: float
    transactions: int
    requests: int
    files: int
    bytes: int
    events: Mapping[str, int]
    leftovers: Mapping[str, int]
    missing: Mapping[str, str]
    violations: list[Violation] = field(default_factory=list)
    history: Path = Path()

    @property
    def replay(self) -> str:
        """The command that runs the same schedule of faults and the same choices of users again."""
        return f"make soak SEED={self.seed} MINUTES={self.minutes:g}"

    def text(self) -> str:
        """The whole report."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"seed {self.seed}, {self.minutes:g} minutes of faults"
        yield f"{self.requests} requests, {self.transactions} transactions in the ledger"
        yield f"{self.files} files of {self.bytes} bytes stored and read back"
        yield f"survived: {_counted(self._survived())}"
        yield f"asked: {_counted(self._asked())}"
        if skipped := self.events.get("skipped", 0):
            yield f"{skipped} faults could not happen at their time (see the history)"
        for what, why in self.missing.items():
            yield f"not covered: {what}: {why}"
        yield "not covered: the clock of the machine; jumps are made in the ledger's database"
        if any(self.leftovers.values()):
            yield f"left for the operators to look at: {_counted(self.leftovers)}"
        yield f"history: {self.history}"
        for violation in self.violations:
            yield f"VIOLATION ({violation.invariant}) {violation.text}"
        yield f"{len(self.violations)} violations"
        yield f"again: {self.replay}  (same faults and choices; the timing is the machine's)"

    def _survived(self) -> dict[str, int]:
        faults = {
            name.removeprefix("fault "): count
            for name, count in self.events.items()
            if name.startswith("fault ")
        }
        cut = self.events.get("connections cut or held", 0)
        return {**faults, "connections cut or held": cut}

    def _asked(self) -> dict[str, int]:
        names = ("accepted", "refused", "unanswered", "cancel", "repeated", "ended", "orphan")
        return {name: self.events.get(name, 0) for name in names}


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()) if count) or "-"
