"""One LISTEN connection per replica, in its own thread, that survives restarts of PostgreSQL."""

from __future__ import annotations

import asyncio
import select
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg2
import structlog
from sqlalchemy import Engine, exc

from services.monitor.books import CHANNEL

log = structlog.get_logger(__name__)

_WAKE_SECONDS = 0.5
_RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Notice:
    """What changed; ``everything`` when notices may have been missed or were too many to name."""

    seqs: tuple[int, ...] = ()
    kinds: tuple[int, ...] = ()
    cancelled: tuple[int, ...] = ()
    everything: bool = False


def parse(payload: str) -> Notice:
    """Read what `books` sends: words of a letter and numbers."""
    words = {word[0]: word[1:] for word in payload.split(" ") if word}
    return Notice(
        seqs=_numbers(words.get("t", "")),
        kinds=_numbers(words.get("k", "")),
        cancelled=_numbers(words.get("c", "")),
        everything=words.get("t") == "*",
    )


class Listener:
    """Calls ``on_notice`` in the event loop for each notification."""

    def __init__(self, engine: Engine, on_notice: Callable[[Notice], None]) -> None:
        self._engine = engine
        self._on_notice = on_notice
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="listener", daemon=True)

    def start(self) -> None:
        """Begin to listen; needs a running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """End within a second; does not wait."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen()
            except (psycopg2.Error, exc.SQLAlchemyError, OSError) as error:
                log.warning("listener_lost", why=str(error).strip().partition("\n")[0])
                self._stopping.wait(_RETRY_SECONDS)

    def _listen(self) -> None:
        connection = self._connect()
        try:
            with connection.cursor() as cursor:
                cursor.execute(f"LISTEN {CHANNEL}")
            # What happened before is not told.
            self._tell(Notice(everything=True))
            while not self._stopping.is_set():
                if select.select([connection], [], [], _WAKE_SECONDS)[0]:
                    connection.poll()
                    self._pass_on(connection)
        finally:
            connection.close()

    def _pass_on(self, connection: Any) -> None:
        notices, connection.notifies = connection.notifies, []
        for notice in notices:
            self._tell(parse(notice.payload))

    def _connect(self) -> Any:
        """A connection of its own: the pool's are for statements."""
        pooled = self._engine.raw_connection()
        connection: Any = pooled.driver_connection
        pooled.detach()
        connection.autocommit = True
        return connection

    def _tell(self, notice: Notice) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._on_notice, notice)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number.isdigit())
