"""Rows of the ledger in memory; times are seconds of the ledger's clock."""

from __future__ import annotations

from dataclasses import dataclass, field

from nearline.monitor.v1 import monitor_pb2 as pb
from nearline.type.v1.task_pb2 import Task as TaskProto
from services.monitor.book import Book

READY, LEASED, DELAYED, BLOCKED = (
    TaskProto.READY, TaskProto.LEASED, TaskProto.DELAYED, TaskProto.BLOCKED,
)  # fmt: skip
ENDED = frozenset({TaskProto.DONE, TaskProto.FAILED, TaskProto.CANCELLED})

LaneName = tuple[int, str, str]
"""(kind, user, group)"""
Lease = tuple[int, int]
"""(task, token)"""


class SupersededError(Exception):
    """The worker has connected again."""


@dataclass(slots=True, eq=False)
class Task:
    """A row of the queue; times in seconds of the ledger's clock."""

    id: int
    txn: int | None
    kind: int
    state: int
    lane: LaneName
    vt: float
    cost: float
    payload: bytes
    key: str | None = None
    chunk: int | None = None
    schedule: str | None = None
    files: int = 0
    not_before: float | None = None
    failing_since: float | None = None
    holder: str | None = None
    token: int = 0
    ended_token: int = 0
    ended: int = 0
    attempt: int = 0
    lost: int = 0
    note: str = ""
    files_done: int = 0
    files_failed: int = 0
    bytes_done: int = 0

    @property
    def order(self) -> tuple[float, int]:
        """Who is served first."""
        return self.vt, self.id


@dataclass(frozen=True, slots=True)
class Counted:
    """A failure that users see; ``number`` is the order in which failures arrived."""

    txn: int | None
    path: str
    code: str
    task: int
    token: int
    number: int


@dataclass(slots=True)
class Lane:
    """How far it has asked: with new tasks, and with those that come back."""

    vt: float = 0.0
    again: float = 0.0


@dataclass(slots=True)
class Worker:
    """What is known of a worker."""

    session: int = 0
    seen_at: float = 0.0


@dataclass(slots=True)
class Schedule:
    """Work that comes back."""

    kind: int
    every: float
    payload: bytes
    due_at: float
    task: int | None = None
    again: bool = False


@dataclass(frozen=True, slots=True)
class Appetite:
    """What a stream takes: so many tasks of one user at the most, or of small ones only."""

    most_of_one: int | None = None
    small_only: bool = False


@dataclass(slots=True)
class Transaction:
    """A book, and what else its row says."""

    book: Book
    spec: pb.TransactionSpec
    chunks: list[list[str]]
    cancelled_at: float | None = None
    tasks: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Arriving:
    """A request on its way in, of which so many paths are stored."""

    spec: pb.TransactionSpec
    updated_at: float
    paths: int = 0


@dataclass(frozen=True, slots=True)
class Leased:
    """A task that was just leased."""

    task_id: int
    token: int
    txn: int | None
    kind: int
    payload: bytes
    chunk: int | None
    attempt: int


@dataclass(slots=True)
class Taken:
    """What a stream was given, the kinds with none left, and whether it left some to others."""

    leased: list[Leased] = field(default_factory=list)
    empty: set[int] = field(default_factory=set)
    held_back: bool = False
