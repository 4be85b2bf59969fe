"""What the catalog does by itself: summing up changes of usage, forgetting expired pins.

Every replica does it; the statements do not get in each other's way.
"""

import asyncio

import structlog
from sqlalchemy import Connection, text

from services.catalog import pins, usage
from services.kit.db import Database
from services.kit.errors import NearlineError

_TABLES = text("SELECT to_regclass('location') IS NOT NULL")

log = structlog.get_logger(__name__)


class Maintenance:
    """Runs :meth:`once` every ``seconds`` from entering the context to leaving it."""

    def __init__(self, database: Database, seconds: float) -> None:
        self._database = database
        self._seconds = seconds
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Maintenance":
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def once(self) -> None:
        """Tidy up now."""
        await self._database.write(usage.fold)
        await self._database.write(pins.expire)

    async def ready(self) -> bool:
        """Whether the database answers and has its tables."""
        return bool(await self._database.read(_has_tables))

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


def _has_tables(connection: Connection) -> bool:
    return bool(connection.scalar(_TABLES))
