"""What happens by itself: delayed work becomes ready, lost leases come back, old rows go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog
from sqlalchemy import Connection

from services.kit.db import Database
from services.kit.errors import NearlineError
from services.monitor import leases, schedules, sql
from services.monitor.config import LedgerConfig
from services.monitor.dispatch import Dispatcher
from services.monitor.rules import Hearing

log = structlog.get_logger(__name__)

_PURGED_AT_ONCE = 5000


class Keeper:
    """The loops of one replica. Any number of replicas may run them at the same time."""

    def __init__(self, database: Database, dispatcher: Dispatcher, config: LedgerConfig) -> None:
        self._database = database
        self._dispatcher = dispatcher
        self._config = config
        self._hearing = Hearing(config.lease_seconds)

    async def run(self) -> None:
        """Keep the ledger until cancelled."""
        config = self._config
        await asyncio.gather(
            _forever(self._wake, config.poll_seconds),
            _forever(self._sweep, config.sweep_seconds),
            _forever(self._purge, config.housekeeping_seconds),
        )

    async def _wake(self) -> None:
        """Make ready what is due; look for ready work whose notification was lost."""
        await self._database.write(schedules.start_due)
        while await self._database.write(leases.promote):
            pass
        self._dispatcher.hint(await self._database.read(leases.ready_kinds))

    async def _sweep(self) -> None:
        """Take back leases of lost workers; give all time to return after an outage of ours."""
        config = self._config
        try:
            await self._database.write(
                leases.abandon, config.cancel_patience_seconds, config.limits
            )
        except NearlineError:
            self._hearing.interrupted()
            raise
        clock = await self._database.read(leases.clock)
        if self._hearing.swept(time.monotonic(), clock):
            lost = await self._database.write(leases.expire, config.lease_seconds, config.limits)
            if lost:
                log.warning("leases_lost", tasks=lost)

    async def _purge(self) -> None:
        config = self._config
        while await self._database.write(purge_tasks, config.keep_tasks_seconds):
            pass
        await self._database.write(purge_submissions, config.submission_seconds)
        await self._database.write(purge_workers)


def purge_tasks(connection: Connection, keep_seconds: float) -> int:
    """Remove some old tasks of finished transactions, and the paths of these; how many tasks."""
    gone = sql.rows(connection, _PURGE_TASKS, (keep_seconds, keep_seconds, _PURGED_AT_ONCE))
    seqs = list({seq for (seq,) in gone if seq is not None})
    if seqs:
        sql.run(connection, _PURGE_PATHS, (seqs,))
    return len(gone)


def purge_submissions(connection: Connection, keep_seconds: float) -> None:
    """Remove requests that were begun and not finished."""
    sql.run(connection, _PURGE_SUBMISSIONS, (keep_seconds,))


def purge_workers(connection: Connection) -> None:
    """Forget workers that have not been seen for a day."""
    sql.run(connection, _PURGE_WORKERS)


async def _forever(step: Callable[[], Awaitable[None]], period: float) -> None:
    while True:
        try:
            await step()
        except NearlineError as error:
            log.warning("keeper_waits", why=error.message)
        except Exception:
            log.exception("keeper_failed")
        await asyncio.sleep(period)


_PURGE_TASKS = """
WITH old AS (
  SELECT t.id FROM task t LEFT JOIN txn x ON x.seq = t.txn
  WHERE t.ended_at < now() - %s * interval '1 second'
    AND (t.txn IS NULL OR x.finished_at < now() - %s * interval '1 second')
  ORDER BY t.ended_at LIMIT %s FOR UPDATE OF t SKIP LOCKED
), stray AS (
  DELETE FROM failure USING old WHERE failure.task = old.id AND NOT failure.counted
)
DELETE FROM task USING old WHERE task.id = old.id RETURNING task.txn
"""

_PURGE_PATHS = """
DELETE FROM path_chunk USING txn
WHERE txn.seq = ANY(%s) AND path_chunk.transaction_id = txn.id
"""

_PURGE_SUBMISSIONS = """
WITH old AS (
  DELETE FROM submission WHERE updated_at < now() - %s * interval '1 second' RETURNING id
)
DELETE FROM path_chunk USING old WHERE path_chunk.transaction_id = old.id
"""

_PURGE_WORKERS = """
DELETE FROM worker w WHERE NOT connected AND seen_at < now() - interval '1 day'
  AND NOT EXISTS (SELECT FROM task t WHERE t.holder = w.id)
"""
