"""How much of one user, and of one group, the ledger takes in at a time."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from services.kit.errors import ResourceExhausted
from services.monitor import sql

if TYPE_CHECKING:
    from services.monitor.config import LedgerConfig

# Refused ones must not all come back in the same second.
_SPREAD = 0.5


@dataclass(frozen=True, slots=True)
class Load:
    """What somebody has in the ledger."""

    transactions: int
    """That run."""
    tasks: int
    """Of these, that have not ended."""
    paths: int
    """Of requests that are on their way in, where they matter."""


@dataclass(frozen=True, slots=True)
class Most:
    """How much of it is taken in."""

    transactions: int
    tasks: int
    paths: int


def excess(load: Load, most: Most) -> str:
    """What there is too much of, in words; empty when there is room."""
    if load.transactions >= most.transactions:
        return f"{load.transactions} transactions are running"
    if load.tasks >= most.tasks:
        return f"{load.tasks} tasks are waiting or running"
    if load.paths >= most.paths:
        return f"{load.paths} paths of requests are on their way in"
    return ""


def check(
    connection: Connection, user: str, group: str, config: LedgerConfig, *, fresh: bool = False
) -> None:
    """Raise ResourceExhausted when the user or the group has too much running or waiting.

    ``fresh``: for a request that has sent no paths yet, and that others' paths may keep out. Those
    that have sent some go on: two large ones would wait for each other for ever.
    """

    def load(who: str, name: str, most: Most) -> Load:
        return _load(connection, who, name, most, fresh)

    judge(user, group, config, load)


def judge(
    user: str, group: str, config: LedgerConfig, load: Callable[[str, str, Most], Load]
) -> None:
    """As :func:`check`; ``load`` says what who (``user_name``, ``group_name``) of a name has."""
    if not user:
        return
    per_user = Most(config.running_per_user, config.tasks_per_user, config.paths_per_user)
    per_group = Most(config.running_per_group, config.tasks_per_group, config.paths_per_group)
    for who, name, most in (("user_name", user, per_user), ("group_name", group, per_group)):
        if problem := excess(load(who, name, most), most):
            raise ResourceExhausted(
                "TOO_MANY_TRANSACTIONS",
                f"{problem} for {name}; wait until some have ended",
                retry_after=config.busy_retry_seconds * (1 + random.random() * _SPREAD),
            )


def _load(connection: Connection, who: str, name: str, most: Most, fresh: bool) -> Load:
    """``who``: the column. No more rows are looked at than it takes to refuse."""
    running = sql.rows(connection, _RUNNING.format(who=who), (name, most.transactions))[0]
    paths = sql.rows(connection, _ARRIVING.format(who=who), (name,))[0][0] if fresh else 0
    return Load(int(running[0]), int(running[1]), int(paths))


_RUNNING = """
SELECT count(*),
       coalesce(sum(blocked + (SELECT coalesce(sum(n), 0) FROM unnest(open_by_kind) AS n)), 0)
FROM (SELECT blocked, open_by_kind FROM txn
      WHERE {who} = %s AND finished_at IS NULL LIMIT %s) AS running
"""

_ARRIVING = "SELECT coalesce(sum(next), 0) FROM submission WHERE {who} = %s"
