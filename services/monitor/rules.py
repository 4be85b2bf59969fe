"""The rules of the ledger (ADR 0003) as pure functions: values in, decisions out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, IntEnum
from itertools import accumulate
from typing import TYPE_CHECKING

from nearline.type.v1.task_pb2 import Task
from nearline.type.v1.transaction_pb2 import Transaction

if TYPE_CHECKING:
    from typing import TypeAlias

    State: TypeAlias = Transaction.State.ValueType

MOST_WARNINGS = 100
# Below this a user's tasks would all enter the queue at the same virtual time.
LEAST_COST = 0.001
_WARNING_LENGTH = 1000

_FINAL = frozenset({
    Transaction.COMPLETE,
    Transaction.COMPLETE_WITH_WARNINGS,
    Transaction.COMPLETE_WITH_ERRORS,
    Transaction.FAILED,
    Transaction.CANCELLED,
})  # fmt: skip

_TRANSFERRING = frozenset({Task.UPLOAD, Task.DOWNLOAD, Task.FINISH_DIRECTORIES, Task.TIDY})

# The phase of each kind of work, from the least to the most advanced.
_PHASES: tuple[tuple[State, frozenset[int]], ...] = (
    (Transaction.INDEXING, frozenset({Task.SCAN, Task.RESOLVE, Task.VERIFY})),
    (Transaction.STAGING, frozenset({Task.STAGE, Task.RECALL})),
    (Transaction.TRANSFERRING, _TRANSFERRING),
    (Transaction.ARCHIVING, frozenset({Task.PLAN_ARCHIVE, Task.ARCHIVE, Task.CONFIRM})),
    (Transaction.DELETING, frozenset({Task.EVICT, Task.RECONCILE})),
)

_TAPE_KINDS = frozenset({
    Task.PLAN_ARCHIVE, Task.ARCHIVE, Task.CONFIRM, Task.STAGE, Task.RECALL, Task.RECONCILE,
    Task.VERIFY,
})  # fmt: skip

WRITING = frozenset({Task.DOWNLOAD, Task.FINISH_DIRECTORIES})
"""Kinds of work that write into users' directories."""

# Requests for files: one that met none has failed its user. Others may well find nothing to do.
_NEEDS_FILES = frozenset({
    Transaction.PUT, Transaction.GET, Transaction.STAGE, Transaction.DELETE, Transaction.UNDELETE,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limits:
    """Numbers of the retry rules, in seconds but for ``most_lost`` (leases)."""

    retry_first: float = 1.0
    retry_most: float = 300.0
    give_up_after: float = 7 * 86400.0
    most_lost: int = 10


@dataclass(frozen=True, slots=True)
class Totals:
    """What a transaction's ended tasks add up to."""

    files_total: int = 0
    files_done: int = 0
    files_failed: int = 0
    tasks_failed: int = 0
    warnings: int = 0


class Ending(IntEnum):
    """How a lease ended; recorded with its token, so that a repeat can be told from a late one."""

    COMPLETE = 1
    DEFER = 2
    FAIL = 3
    HAND_BACK = 4
    LOST = 5


class Verdict(Enum):
    """What to do with a message about a lease."""

    APPLY = "apply"
    REPEAT = "repeat"
    LATE = "late"


def verdict(
    *, current: bool, token: int, ended_token: int, ended: int, ending: Ending | None
) -> Verdict:
    """Judge a message that bears ``token``.

    ``current``: the task is leased under that token. ``ended_token`` and ``ended`` are what the
    task recorded last. ``ending`` is None for failures, which belong to the ending behind them.
    """
    if current:
        return Verdict.APPLY
    if token == ended_token and ended != Ending.LOST and ending in (None, ended):
        return Verdict.REPEAT
    return Verdict.LATE


def is_final(state: int) -> bool:
    """Whether a transaction in ``state`` has ended."""
    return state in _FINAL


def final_state(action: int, totals: Totals, *, cancelled: bool) -> State:
    """The state of a transaction whose last task has ended."""
    if cancelled:
        return Transaction.CANCELLED
    failed = bool(totals.files_failed or totals.tasks_failed)
    nothing = not totals.files_total and action in _NEEDS_FILES
    if nothing or (failed and not totals.files_done):
        return Transaction.FAILED
    if failed:
        return Transaction.COMPLETE_WITH_ERRORS
    return Transaction.COMPLETE_WITH_WARNINGS if totals.warnings else Transaction.COMPLETE


def running_state(open_by_kind: Mapping[int, int], *, begun: bool) -> State:
    """The state of a transaction with ``open_by_kind`` tasks that are neither ended nor blocked."""
    if not begun:
        return Transaction.QUEUED
    phases = [state for state, kinds in _PHASES if any(open_by_kind.get(kind) for kind in kinds)]
    return phases[-1] if phases else Transaction.QUEUED


def retry_delay(attempt: int, limits: Limits, *, jitter: float, at_least: float = 0.0) -> float:
    """Seconds to wait after failed attempt number ``attempt`` (from 1); ``jitter`` in [0, 1)."""
    ceiling = min(limits.retry_most, limits.retry_first * 2.0 ** min(attempt - 1, 60))
    return max(at_least, ceiling * (0.5 + jitter / 2))


def lost_delay(lost: int, limits: Limits, *, jitter: float) -> float:
    """Seconds to wait after the ``lost``-th lost lease: none at first, a worker may just die."""
    return 0.0 if lost <= 1 else retry_delay(lost - 1, limits, jitter=jitter)


def gives_up(failing_seconds: float, limits: Limits) -> bool:
    """Whether a task that has failed for so long is given up."""
    return failing_seconds >= limits.give_up_after


def is_poison(lost: int, limits: Limits) -> bool:
    """Whether a task that lost so many leases is given up: it may well kill its workers."""
    return lost >= limits.most_lost


def is_cancelled(kind: int, *, cancelled: bool) -> bool:
    """Whether a task is ended for the sake of its transaction: tidying up is done all the same."""
    return cancelled and kind != Task.TIDY


def must_tidy(kind: int, state: int, lost: int) -> bool:
    """Whether a task that came to ``state`` may have left what nobody else would remove.

    That is what workers had not finished when they died; one that is done has removed it.
    """
    return kind in WRITING and lost > 0 and state in (Task.FAILED, Task.CANCELLED)


def tags(start: float, costs: Sequence[float]) -> list[float]:
    """Virtual times of tasks that enter a lane standing at ``start``; the last is its new place."""
    return [start + total for total in accumulate(max(cost, LEAST_COST) for cost in costs)]


@dataclass(slots=True)
class Hearing:
    """Whether a replica could have heard every worker for the length of a lease; in seconds.

    Only then may it take leases back: an outage of the ledger's own costs nobody a lease, nor does
    a jump of the database's clock, by which signs of life are dated.
    """

    lease: float
    _well_since: float | None = None
    _swept_at: float = 0.0
    _ahead: float = 0.0

    def interrupted(self) -> None:
        """Note that nothing could be heard just now."""
        self._well_since = None

    def swept(self, now: float, clock: float) -> bool:
        """Note that all is well at ``now``; whether it was for long enough, without a gap.

        ``clock``: what the database's clock shows; ``now`` is of one that nobody sets.
        """
        gap, self._swept_at = now - self._swept_at, now
        jump = abs(clock - now - self._ahead)
        if self._well_since is None or gap > self.lease / 2 or jump > self.lease / 4:
            self._well_since, self._ahead = now, clock - now
        return now - self._well_since >= self.lease


def share(wanted: int, kinds: int) -> int:
    """How many of ``wanted`` leases the first of ``kinds`` kinds of work may take."""
    return -(-wanted // kinds)


def merge_warnings(present: Sequence[str], added: Sequence[str]) -> list[str]:
    """``present`` and those of ``added`` that are new, as far as there is room."""
    clipped = (warning[:_WARNING_LENGTH] for warning in added if warning)
    return list(dict.fromkeys([*present, *clipped]))[:MOST_WARNINGS]


def service_of(kind: int) -> str:
    """The service whose workers do ``kind``."""
    return "tape" if kind in _TAPE_KINDS else "transfer"


@dataclass(frozen=True, slots=True)
class Wait:
    """Tasks of a transaction that wait for a time: why, until when, and failing since when."""

    note: str
    until: datetime
    failing_since: datetime | None


@dataclass(frozen=True, slots=True)
class Service:
    """What is known of the connected workers of one service."""

    workers: int = 0
    troubles: tuple[str, ...] = ()
    seen: datetime | None = None
    """When one of them was heard last; None: never, or not for a day."""

    @property
    def trouble(self) -> str:
        """What keeps all of them from working; empty when one can work, or there is none."""
        return self.troubles[0] if 0 < self.workers == len(self.troubles) else ""


def waiting_for(
    *,
    now: datetime,
    live_notes: Sequence[str],
    waits: Sequence[Wait],
    leased: bool,
    open_by_kind: Mapping[int, int],
    services: Mapping[str, Service],
) -> str:
    """What a running transaction waits for, in words; empty when it moves."""
    if live_notes:
        return live_notes[0]
    if waits:
        return _describe(waits[0], now)
    ready = [kind for kind, count in sorted(open_by_kind.items()) if count]
    if not ready:
        return ""
    name = service_of(ready[0])
    service = services.get(name, Service())
    if leased:
        return service.trouble
    if not service.workers:
        since = f" since {service.seen:%H:%M} UTC" if service.seen else ""
        return f"a {name} worker; none is connected{since}"
    if service.trouble:
        return f"a healthy {name} worker: {service.trouble}"
    return f"a free {name} worker"


def _describe(wait: Wait, now: datetime) -> str:
    if wait.failing_since is None:
        return wait.note or "the next look at it"
    seconds = max(round((wait.until - now).total_seconds()), 0)
    return f"{wait.note}; failing since {wait.failing_since:%H:%M} UTC, next try in {seconds} s"
