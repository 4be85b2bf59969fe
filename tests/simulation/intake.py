"""Requests on their way in, and who is refused for a while: counted here, judged by the rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from nearline.monitor.v1 import monitor_pb2 as pb
from services.kit.errors import FailedPrecondition
from services.monitor import admission
from services.monitor.admission import Load, Most
from services.monitor.book import Book
from services.monitor.config import LedgerConfig
from tests.simulation.queue import Queue
from tests.simulation.rows import Arriving, Transaction


class Intake(Queue):
    """What has come in, or is about to."""

    def __init__(self, config: LedgerConfig, told: Callable[[set[int]], None]) -> None:
        super().__init__(told)
        self.config = config
        self.transactions: dict[int, Transaction] = {}
        self.numbers: dict[str, int] = {}
        self.arriving: dict[str, Arriving] = {}

    def arrive(self, spec: pb.TransactionSpec) -> int | None:
        """Begin or take up a request: how many paths are stored; None if it was accepted.

        Raises ResourceExhausted.
        """
        if spec.id in self.numbers:
            return None
        known = self.arriving.get(spec.id) or Arriving(spec, self.now)
        self._admit(spec, fresh=not known.paths)
        self.arriving[spec.id] = known
        known.updated_at = self.now
        return known.paths

    def store(self, id_: str, paths: int) -> int | None:
        """Keep so many more paths: how many there are; None if the request was accepted.

        Raises FailedPrecondition.
        """
        if id_ in self.numbers:
            return None
        known = self._on_its_way(id_)
        known.paths += paths
        known.updated_at = self.now
        return known.paths

    def purge(self, keep_seconds: float) -> None:
        """Drop requests that were begun and not finished."""
        before = self.now - keep_seconds
        for id_ in [id_ for id_, each in self.arriving.items() if each.updated_at < before]:
            del self.arriving[id_]

    def _on_its_way(self, id_: str) -> Arriving:
        if id_ not in self.arriving:
            raise FailedPrecondition("SUBMISSION_GONE", "send it again")
        return self.arriving[id_]

    def _admit(self, spec: pb.TransactionSpec, *, fresh: bool = False) -> None:
        """Raise ResourceExhausted when the user or the group of ``spec`` has too much."""

        def load(who: str, name: str, most: Most) -> Load:
            running = list(self._running(who, name))
            tasks = sum(book.blocked + book.open_by_kind.total() for book in running)
            return Load(len(running), tasks, self._paths(who, name) if fresh else 0)

        admission.judge(spec.identity.user, spec.group, self.config, load)

    def _running(self, who: str, name: str) -> Iterable[Book]:
        books = (transaction.book for transaction in self.transactions.values())
        return (b for b in books if not b.finished and _name(who, b.user, b.group) == name)

    def _paths(self, who: str, name: str) -> int:
        return sum(
            each.paths for each in self.arriving.values()
            if name == _name(who, each.spec.identity.user, each.spec.group)
        )  # fmt: skip


def _name(who: str, user: str, group: str) -> str:
    return user if who == "user_name" else group
