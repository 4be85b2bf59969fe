"""Fan-out of changes: any number of watchers cost one read of what changed at a time."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress

import structlog

from nearline.monitor.v1 import monitor_pb2
from nearline.type.v1.transaction_pb2 import Transaction
from services.kit.db import Database
from services.kit.errors import NearlineError, Unavailable
from services.monitor import rules, transactions

log = structlog.get_logger(__name__)

# What changed is read for all watchers together, in a fifth of the time at most.
_PAUSE_PER_READ, _SHORTEST_PAUSE, _LONGEST_PAUSE = 4.0, 0.01, 0.5
# How often one watcher is told of changes that are not the end.
_TELL_SECONDS = 0.5
# For what no notification tells: workers that come and go, times that draw near.
_REFRESH_SECONDS = 5.0
_BATCH = 200


class _Slot:
    """The newest state that one watcher has not seen yet."""

    def __init__(self) -> None:
        self._latest: Transaction | None = None
        self._fresh = asyncio.Event()
        self._taken = float("-inf")

    def put(self, latest: Transaction | None) -> None:
        """None ends the watch."""
        self._latest = latest
        self._fresh.set()

    async def take(self) -> Transaction | None:
        """The next state; one that is not final waits until the last one taken has some age."""
        clock = asyncio.get_running_loop().time
        await self._fresh.wait()
        self._fresh.clear()
        while not self._is_end() and (left := self._taken + _TELL_SECONDS - clock()) > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._fresh.wait(), left)
            self._fresh.clear()
        self._taken = clock()
        return self._latest

    def _is_end(self) -> bool:
        return self._latest is None or rules.is_final(self._latest.state)


class Watchers:
    """The Watch calls of this replica."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._slots: dict[int, set[_Slot]] = defaultdict(set)
        self._changed: set[int] = set()
        self._some_changed = asyncio.Event()
        self._draining = False

    async def watch(self, id_: str, visible: monitor_pb2.Visibility) -> AsyncIterator[Transaction]:
        """The transaction now, at every change and at its end. Raises NotFound, Unavailable."""
        seq = await self._database.read(transactions.find, id_, visible)
        slot = _Slot()
        self._slots[seq].add(slot)
        try:
            seen = (await self._database.read(transactions.fetch, [seq]))[seq]
            yield seen
            while not rules.is_final(seen.state):
                latest = await self._next(slot)
                if latest != seen:
                    yield latest
                seen = latest
        finally:
            self._slots[seq].discard(slot)
            if not self._slots[seq]:
                del self._slots[seq]

    def changed(self, seqs: Iterable[int]) -> None:
        """These transactions may look different now."""
        self._changed.update(seq for seq in seqs if seq in self._slots)
        if self._changed:
            self._some_changed.set()

    def all_changed(self) -> None:
        """Any transaction may look different now."""
        self.changed(list(self._slots))

    def drain(self) -> None:
        """End all watches."""
        self._draining = True
        for slots in self._slots.values():
            for slot in slots:
                slot.put(None)

    async def run(self) -> None:
        """Publish changes until cancelled."""
        refreshing = asyncio.create_task(self._refresh())
        clock = asyncio.get_running_loop().time
        try:
            while True:
                await self._some_changed.wait()
                start = clock()
                await self._publish()
                pause = (clock() - start) * _PAUSE_PER_READ
                await asyncio.sleep(min(max(pause, _SHORTEST_PAUSE), _LONGEST_PAUSE))
        finally:
            refreshing.cancel()

    async def _next(self, slot: _Slot) -> Transaction:
        latest = None if self._draining else await slot.take()
        if latest is None:
            raise Unavailable("DRAINING", "the ledger goes down; watch again", retry_after=1)
        return latest

    async def _publish(self) -> None:
        seqs, self._changed = list(self._changed), set()
        self._some_changed.clear()
        for start in range(0, len(seqs), _BATCH):
            await self._publish_batch(seqs[start : start + _BATCH])

    async def _publish_batch(self, seqs: list[int]) -> None:
        try:
            found = await self._database.read(transactions.fetch, seqs)
        except NearlineError as error:
            log.warning("watch_late", why=error.message)
            await asyncio.sleep(_LONGEST_PAUSE)
            self.changed(seqs)
            return
        for seq, latest in found.items():
            for slot in self._slots.get(seq, ()):
                slot.put(latest)

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(_REFRESH_SECONDS)
            self.all_changed()
