"""What the catalog does by itself: summing up usage, forgetting expired pins, counting faults.

Every replica does it; the statements do not get in each other's way.
"""

import asyncio
import time
from collections.abc import Callable

import structlog
from prometheus_client import Gauge
from sqlalchemy import Connection, text

from nearline.type.v1.storage_pb2 import Blob
from services.catalog import faults, pins, usage
from services.kit.db import Database
from services.kit.errors import NearlineError

_TABLES = text("SELECT to_regclass('location') IS NOT NULL")

_FAULTS = Gauge("faults_open", "Copies found bad and not replaced yet.", ("tier",))
_LOST = Gauge("files_lost", "Files without any readable copy.")

# Counting millions of faults takes seconds: between two counts passes so many times what one takes.
_REST = 100

log = structlog.get_logger(__name__)


class Maintenance:
    """Runs :meth:`once` every ``seconds`` from entering the context to leaving it."""

    def __init__(
        self, database: Database, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._seconds = seconds
        self._clock = clock
        self._next_count = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Maintenance":
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def once(self) -> None:
        """Tidy up now, and count faults unless that took long a short while ago."""
        await self._database.write(usage.fold)
        await self._database.write(pins.expire)
        if self._clock() >= self._next_count:
            await self._count()

    async def ready(self) -> bool:
        """Whether the database answers and has its tables."""
        return bool(await self._database.read(_has_tables))

    async def _count(self) -> None:
        begun = self._clock()
        try:
            _show_faults(*await faults.open_counts(self._database))
        finally:
            self._next_count = begun + _REST * (self._clock() - begun)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            try:
                await self.once()
            except NearlineError as error:
                log.warning("maintenance", why=error.message)
            except Exception:
                # A bug here must not end the loop unseen; the next round tries again.
                log.exception("maintenance")


def _show_faults(by_tier: dict[int, int], lost: int) -> None:
    for tier in (Blob.CACHE, Blob.TAPE):
        _FAULTS.labels(Blob.Tier.Name(tier).lower()).set(by_tier.get(tier, 0))
    _LOST.set(lost)


def _has_tables(connection: Connection) -> bool:
    return bool(connection.scalar(_TABLES))
