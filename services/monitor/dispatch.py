"""Hands ready tasks to the streams of this replica, one lease statement at a time.

Streams with credit wait here. A kind is asked for only when something may be ready: after a
notification, or when the poll saw one. So idle workers cost the database nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, MutableMapping

import psycopg2.errors

from nearline.monitor.v1 import monitor_pb2
from services.kit.db import Database
from services.monitor import leases
from services.monitor.leases import Leased, Registration, Taken

Vain = MutableMapping[int, int]
"""Kinds at which a stream has looked and found only what others may take, and when that was."""

_REMEMBERED = 2000
_CONFLICT_SECONDS = 0.05
# Workers for small tasks look first: elsewhere a small task shares its process with large ones.
_AFTER_SMALL_SECONDS = 0.02


class Dispatcher:
    """Leases for the Work streams of one replica."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._turn = asyncio.Lock()
        self._hints: set[int] = set()
        self._generation: Counter[int] = Counter()
        self._hinted = asyncio.Event()
        self._rotation = 0
        self._looking_first: Counter[int] = Counter()
        self._specs: OrderedDict[int, monitor_pb2.TransactionSpec] = OrderedDict()

    def hint(self, kinds: Iterable[int]) -> None:
        """Tasks of ``kinds`` may be ready."""
        fresh = set(kinds)
        if fresh:
            self._hints |= fresh
            self._generation.update(fresh)
            self.stir()

    async def take(
        self,
        stream: Registration,
        wanted: Callable[[], Collection[int]],
        most: int,
        vain: Vain,
    ) -> list[Leased]:
        """Wait for ready tasks of the kinds that are ``wanted`` at the time; lease up to ``most``.

        ``vain`` is the stream's own; it forgets it when it may have more of some user's tasks.
        Raises leases.SupersededError when the worker has a newer stream.
        """
        first = frozenset(wanted()) if stream.small_only else frozenset()
        self._looking_first.update(first)
        try:
            while True:
                while not (promising := self._promising(wanted(), vain)):
                    await self._hinted.wait()
                if not first and any(self._looking_first[kind] for kind in promising):
                    await asyncio.sleep(_AFTER_SMALL_SECONDS)
                async with self._turn:
                    taken = await self._lease(stream, wanted(), most, vain)
                if taken.leased:
                    return taken.leased
        finally:
            self._looking_first.subtract(first)

    async def specs(self, leased: Iterable[Leased]) -> dict[int, monitor_pb2.TransactionSpec]:
        """The requests that tasks belong to, by number; those first met are shown as running."""
        wanted = {task.txn for task in leased if task.txn is not None}
        if new := wanted - self._specs.keys():
            await self._database.write(leases.begin, new)
            for seq, spec in (await self._database.read(leases.specs, new)).items():
                self._specs[seq] = monitor_pb2.TransactionSpec.FromString(spec)
        found = {seq: self._specs[seq] for seq in wanted if seq in self._specs}
        for seq in found:
            self._specs.move_to_end(seq)
        while len(self._specs) > _REMEMBERED:
            self._specs.popitem(last=False)
        return found

    def stir(self) -> None:
        """Have streams look again whose ``vain`` has changed."""
        self._hinted.set()
        self._hinted = asyncio.Event()

    def _promising(self, kinds: Collection[int], vain: Vain) -> set[int]:
        """Those of ``kinds`` of which something may be ready that was not there at the last look.

        Every look takes the turn of all streams, so none is for nothing where that is known.
        """
        hinted = self._hints.intersection(kinds)
        return {kind for kind in hinted if vain.get(kind) != self._generation[kind]}

    async def _lease(
        self, stream: Registration, kinds: Collection[int], most: int, vain: Vain
    ) -> Taken:
        wanted = self._in_turn(self._promising(kinds, vain))
        before = Counter({kind: self._generation[kind] for kind in wanted})
        if not wanted:
            return Taken()
        # Noted before the look, so that the stream can forget it while the look goes on.
        vain.update(before)
        try:
            taken = await self._database.write(leases.lease, stream, wanted, most)
        except psycopg2.errors.UniqueViolation:
            # Another replica leased a task of the same key just now; its end is seen next time.
            await asyncio.sleep(_CONFLICT_SECONDS)
            taken = Taken()
        if taken.leased or not taken.held_back:
            for kind in wanted:
                vain.pop(kind, None)
        self._hints -= {kind for kind in taken.empty if self._generation[kind] == before[kind]}
        return taken

    def _in_turn(self, kinds: Collection[int]) -> list[int]:
        """``kinds``, a different one first each time."""
        ordered = sorted(kinds)
        self._rotation += 1
        start = self._rotation % len(ordered) if ordered else 0
        return ordered[start:] + ordered[:start]
