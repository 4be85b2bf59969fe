"""The figures as Markdown. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from bench import cases
from bench.cases import Case
from bench.memory import LIMIT_BYTES, Usage
from bench.ours import Timing


@dataclass
class Figures:
    """What the runs of one case gave: timings by operation and peers' seconds by name."""

    case: Case
    ours: dict[str, list[Timing]] = field(default_factory=dict)
    peers: dict[str, list[float]] = field(default_factory=dict)

    def add(self, ours: Mapping[str, Timing], peers: Mapping[str, float]) -> None:
        """One more run."""
        for operation, timing in ours.items():
            self.ours.setdefault(operation, []).append(timing)
        for peer, seconds in peers.items():
            self.peers.setdefault(peer, []).append(seconds)

    def transaction(self, operation: str) -> float:
        """Median seconds from acceptance to the end."""
        return median(each.transaction for each in self.ours[operation])

    def command(self, operation: str) -> float:
        """Median seconds of the command."""
        return median(each.command for each in self.ours[operation])

    def cpu(self, operation: str) -> float:
        """Median CPU seconds of the five services."""
        return median(each.cpu for each in self.ours[operation])

    def peer(self, name: str) -> float | None:
        """Median seconds of a peer; None when it did not run."""
        return median(self.peers[name]) if self.peers.get(name) else None


def own_rows(each: Figures) -> Iterator[tuple[str, ...]]:
    """A row for each operation."""
    for operation in each.ours:
        seconds, case = each.transaction(operation), each.case
        peer = cases.PEER_OF.get(operation, "")
        against = _ratio(each.peer(peer), seconds)
        before = case.nlds.get(operation)
        yield (
            case.title,
            operation,
            f"{seconds:.2f}",
            f"{each.command(operation):.2f}",
            f"{each.cpu(operation):.1f}",
            case.rate(seconds),
            _ratio(each.peer(cases.CP), seconds),
            f"{against} {peer}" if against else "",
            case.rate(before) if before else "",
            _ratio(before, seconds),
        )


def peer_rows(each: Figures) -> Iterator[tuple[str, ...]]:
    """A row for each peer."""
    for name in cases.PEERS:
        seconds = each.peer(name)
        if seconds is not None:
            yield each.case.title, name, f"{seconds:.2f}", each.case.rate(seconds)


def memory_rows(peaks: Mapping[str, Mapping[str, Usage]]) -> Iterator[tuple[str, ...]]:
    """A row for each thing that was going on."""
    for what, parts in peaks.items():
        yield what, *(_megabytes(parts[part]) for part in parts)


def too_much(peaks: Mapping[str, Mapping[str, Usage]], limited: Sequence[str]) -> list[str]:
    """Which of the limited parts took too much memory, in words."""
    return [
        f"{part} took {parts[part].pss / 1e6:.0f} MB during {what}"
        for what, parts in peaks.items()
        for part in limited
        if part in parts and parts[part].pss > LIMIT_BYTES
    ]


def markdown(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with aligned columns; the first two are text, the others numbers."""
    body = [list(titles), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*body, strict=True)]
    lines = [_line(row, widths) for row in body]
    lines.insert(1, _line(["-" * width for width in widths], widths))
    return "\n".join(lines)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    return (
        "| " + " | ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) + " |"
    )


def _ratio(theirs: float | None, ours: float) -> str:
    return f"{theirs / ours:.2f}×" if theirs else ""


def _megabytes(usage: Usage) -> str:
    return f"{usage.pss / 1e6:.0f} ({usage.rss / 1e6:.0f})"
