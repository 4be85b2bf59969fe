"""What one user asked for, what has to come of it, and what was seen of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from nearline.type.v1.transaction_pb2 import Transaction
from tests.soak.sources import Entry


@dataclass(frozen=True)
class Ending:
    """The numbers of a transaction in its final state."""

    state: str
    files_total: int
    files_done: int
    files_failed: int
    bytes_done: int


@dataclass
class Request:
    """One request. Paths are in wire form.

    ``expected``: what is to be stored, staged or brought back. ``doomed``: paths among those asked
    for that must fail. ``uncertain``: paths that may fail. ``vanished``: sources that were deleted,
    perhaps before anybody met them.
    """

    id: str
    user: str
    group: str
    action: str
    ask: Callable[[], Transaction]
    expected: dict[str, Entry] = field(default_factory=dict)
    doomed: frozenset[str] = frozenset()
    uncertain: frozenset[str] = frozenset()
    vanished: frozenset[str] = frozenset()
    root: bytes = b""
    target: bytes = b""
    may_be_full: bool = False
    """The target's disk was full at times: any file may have failed for that."""
    holding_id: int = 0
    accepted: bool = False
    refused: str = ""
    cancel_asked: bool = False
    is_retried: bool = False
    origin: str = ""
    """Of a retry: the id of the request that it runs again."""
    ending: Ending | None = None
    failures: list[tuple[str, str]] = field(default_factory=list)
    """(path, code) of each file that failed."""
    repeats: list[Ending | str] = field(default_factory=list)
    """What repeating the request answered: how it stands, or how it was refused."""
    found: dict[str, Entry] | None = None
    """What was in the target once it had ended."""
    late: dict[str, Entry] | None = None
    """The same, at the end of the run."""
    stored: frozenset[str] | None = None
    """Of a cancelled PUT: what it had stored when it had ended."""

    @property
    def failed(self) -> frozenset[str]:
        """Paths that failed."""
        return frozenset(path for path, _ in self.failures if path)

    @property
    def is_clear(self) -> bool:
        """Whether each failure names its path, so that all other paths are known to be done."""
        return all(path for path, _ in self.failures)

    @property
    def done(self) -> dict[str, Entry]:
        """What the transaction says is stored or brought back."""
        if self.ending is None or not self.ending.state.startswith("COMPLETE"):
            return {}
        if not self.is_clear:
            return {}
        unknown = self.failed | self.vanished
        return {path: entry for path, entry in self.expected.items() if path not in unknown}


def ending_of(transaction: Transaction) -> Ending:
    """The numbers of a transaction as they are now."""
    return Ending(
        Transaction.State.Name(transaction.state),
        transaction.files_total,
        transaction.files_done,
        transaction.files_failed,
        transaction.bytes_done,
    )
