"""Runs a service's gRPC server and its ledger worker side by side, and watches what both need."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress

import structlog

from services.kit.errors import NearlineError
from services.kit.server import Server
from services.kit.threads import in_thread
from services.kit.worker import Worker

log = structlog.get_logger(__name__)

Check = Callable[[], str | None]
"""Blocking; what is wrong in words, None or empty when nothing is. May raise NearlineError."""

_EVERY_SECONDS = 10.0


class Watchdog:
    """Asks ``checks`` (by the name of what they check) again and again, outside the event loop."""

    def __init__(self, checks: Mapping[str, Check]) -> None:
        self._checks = dict(checks)
        self._trouble = ""

    def trouble(self) -> str:
        """What was wrong when it was looked at last; empty when nothing was. Never blocks."""
        return self._trouble

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            found = [await self._ask(name) for name in self._checks]
            trouble = "; ".join(filter(None, found))
            if trouble != self._trouble:
                log.warning("trouble", what=trouble or "none any more")
            self._trouble = trouble
            await asyncio.sleep(_EVERY_SECONDS)

    async def _ask(self, name: str) -> str:
        try:
            answer = await in_thread(self._checks[name])
        except NearlineError as error:
            answer = error.message
        return f"{name}: {answer}" if answer else ""


async def work(worker: Worker, watchdog: Watchdog, stop: asyncio.Event) -> None:
    """Run ``worker`` until ``stop`` is set and it has drained."""
    watching = asyncio.create_task(watchdog.run())
    try:
        await worker.run(stop)
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


async def serve_and_work(server: Server, worker: Worker, watchdog: Watchdog) -> None:
    """Serve until told to stop, while ``worker`` works; it drains first.

    A worker that the ledger refuses ends the service, with the reason in the log.
    """
    stop = asyncio.Event()
    working = asyncio.create_task(work(worker, watchdog, stop))

    async def drain() -> None:
        stop.set()
        await asyncio.wait({working})

    server.on_drain(drain)
    working.add_done_callback(lambda _: server.stop())
    await server.run()
    working.cancel()
    with suppress(asyncio.CancelledError):
        await working
