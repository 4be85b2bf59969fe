"""Runs a service's gRPC server and its ledger worker side by side, and watches what both need."""

import asyncio
import random
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from services.kit import telemetry
from services.kit.breaker import Breaker, State
from services.kit.errors import NearlineError
from services.kit.server import Server
from services.kit.threads import in_thread
from services.kit.worker import Worker

if TYPE_CHECKING:
    from services.kit.jobs import Kind

log = structlog.get_logger(__name__)

Check = Callable[[], str | None]
"""Blocking; what is wrong in words, None or empty when nothing is. May raise NearlineError."""

_EVERY_SECONDS = 10.0
# A check that failed is repeated soon: one failure is not an outage.
_AGAIN_SECONDS = 1.0
_TICK_SECONDS = 0.25


class Watchdog:
    """What work depends on: asked again and again, and left alone while it does not answer.

    ``checks`` by the name of what they check, as in `NearlineError.dependency`; ``needs`` names
    what each kind of work needs. Thread-safe, but for :meth:`run`.
    """

    def __init__(
        self,
        checks: Mapping[str, Check],
        needs: "Mapping[Kind, Collection[str]] | None" = None,
        breakers: Mapping[str, Breaker] | None = None,
    ) -> None:
        self._checks = dict(checks)
        self._needs = dict(needs or {})
        self._breakers = dict(breakers or {name: Breaker() for name in checks})
        self._asked: dict[str, float] = {}
        self._told: dict[str, State] = {}

    def trouble(self) -> str:
        """What is wrong, since when, and when it is tried again; empty when nothing is."""
        now = time.monotonic()
        found = {name: breaker.trouble(now) for name, breaker in self._breakers.items()}
        return "; ".join(f"{name}: {text}" for name, text in found.items() if text)

    def paused(self) -> "frozenset[Kind]":
        """Kinds of work that need something that is left alone now."""
        closed = {name for name, b in self._breakers.items() if b.state is State.OPEN}
        return frozenset(kind for kind, needs in self._needs.items() if closed.intersection(needs))

    def saw(self, kind: "Kind", error: Exception | None) -> None:
        """Work of ``kind`` has ended, with an error or well."""
        if error is None:
            for name in self._needs.get(kind, ()):
                self._breakers[name].succeeded()
        elif isinstance(error, NearlineError) and error.dependency in self._breakers:
            breaker = self._breakers[error.dependency]
            breaker.failed(error.message, time.monotonic(), random.random())

    async def run(self) -> None:
        """Look until cancelled."""
        asking = [asyncio.create_task(self._watch(name)) for name in self._checks]
        try:
            await asyncio.gather(*asking)
        finally:
            for task in asking:
                task.cancel()

    async def _watch(self, name: str) -> None:
        breaker, next_look = self._breakers[name], 0.0
        while True:
            now = time.monotonic()
            if breaker.is_due(now) or (breaker.state is not State.OPEN and now >= next_look):
                trouble = await self._ask(name)
                breaker.probed(trouble, time.monotonic(), random.random())
                pause = _AGAIN_SECONDS if trouble else _EVERY_SECONDS
                next_look = time.monotonic() + pause
            self._tell(name, breaker)
            await asyncio.sleep(_TICK_SECONDS)

    async def _ask(self, name: str) -> str:
        try:
            return await in_thread(self._checks[name]) or ""
        except NearlineError as error:
            return error.message
        except Exception as error:  # Or nobody would ask again, and what is paused stayed so.
            log.exception("check_failed", of=name)
            return f"its check failed ({type(error).__name__}); the log says why"

    def _tell(self, name: str, breaker: Breaker) -> None:
        state = breaker.state
        if state is self._told.get(name, State.CLOSED):
            return
        self._told[name] = state
        telemetry.set_usable(name, state is not State.OPEN)
        what = breaker.trouble(time.monotonic())
        log.warning("trouble", of=name, state=state.value, what=what or "none any more")


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
