"""Simulated time, chance and network: everything that happens follows from one seed."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any, Protocol


class Outage(Exception):
    """The database did not answer; what was asked may have been done or not."""


class End(Protocol):
    """One end of a link."""

    def receive(self, link: Link, message: Any) -> None:
        """A message has come."""

    def hung_up(self, link: Link) -> None:
        """The other end is gone, as far as this one can tell."""


class World:
    """A clock that jumps from event to event. Faults happen until ``calm``."""

    def __init__(self, seed: int, calm: float, trace: Callable[[str], None] | None = None) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.steps = 0
        self.calm = calm
        self.database_down_until = 0.0
        self.outage_until = -1e9
        """When the last outage ended that was long enough to be noticed by every replica."""
        self.clock_offset = 1e6
        """What the clock of the database shows more than :attr:`now`."""
        self.jumped_at = 0.0
        self._trace = trace
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._made = 0

    @property
    def troubled(self) -> bool:
        """Whether faults may still happen."""
        return self.now < self.calm

    def chance(self, probability: float) -> bool:
        """Whether a fault of this probability happens now."""
        return self.troubled and self.random.random() < probability

    def say(self, text: str, *values: object) -> None:
        """Add a line to the trace, if there is one."""
        if self._trace is not None:
            line = " ".join(text.format(*values).split())
            self._trace(f"{self.now:10.3f} {self.steps:6} {line}")

    def after(self, delay: float, call: Callable[..., None], *args: Any) -> None:
        """Call something later."""
        self.at(self.now + delay, call, *args)

    def at(self, time: float, call: Callable[..., None], *args: Any) -> None:
        """Call something at a time; in the order of these calls where times are equal."""
        self._made += 1
        heapq.heappush(self._events, (time, self._made, call, args))

    def jump(self, seconds: float) -> None:
        """Set the clock of the database ahead, or back."""
        self.say("the clock jumps by {:.0f} s", seconds)
        self.clock_offset += seconds
        self.jumped_at = self.now

    def run(self, over: Callable[[], bool], seconds: float, check: Callable[[], None]) -> bool:
        """Go on until ``over``, or for ``seconds``; whether it is over. ``check`` follows steps."""
        while not over():
            self.now, _, call, args = heapq.heappop(self._events)
            if self.now > seconds:
                return False
            self.steps += 1
            call(*args)
            check()
        return True

    def check_database(self) -> None:
        """Raise Outage when the database cannot be reached, or sometimes for no reason."""
        if self.now < self.database_down_until or self.chance(0.002):
            raise Outage


class Process:
    """Something that can be stopped for a while; what it should do in that time waits."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.alive = True
        self._life = 0
        self._frozen_until = 0.0
        self._reads_at = 0.0

    @property
    def frozen(self) -> bool:
        """Whether it stands still."""
        return self.world.now < self._frozen_until

    def freeze(self, seconds: float) -> None:
        """Do nothing for a while, as after SIGSTOP; then go on as if nothing had been.

        Its timers may run out before it has read what came meanwhile.
        """
        self.world.say("{} freezes for {:.0f} s", self.name, seconds)
        self._frozen_until = max(self._frozen_until, self.world.now + seconds)
        self._reads_at = self._frozen_until + self.world.random.choice((0.0, 0.05))

    def when_thawed(self, call: Callable[..., None], *args: Any) -> None:
        """Call now, or when it goes on again; not at all when it has ended by then."""
        self._call(self._life, False, call, args)

    def when_read(self, call: Callable[..., None], *args: Any) -> None:
        """As :meth:`when_thawed` for what has come from elsewhere."""
        self._call(self._life, True, call, args)

    def _call(
        self, life: int, reads: bool, call: Callable[..., None], args: tuple[Any, ...]
    ) -> None:
        if not self.alive or life != self._life:
            return
        start = self._reads_at if reads else self._frozen_until
        if self.world.now < start:
            self.world.at(start, self._call, life, reads, call, args)
        else:
            call(*args)


class Link:
    """A connection: each direction keeps its order; when it breaks, its ends notice by and by."""

    def __init__(self, world: World, worker: End, server: End) -> None:
        self._world = world
        self._ends = {"up": server, "down": worker}
        self._arrival = {"up": 0.0, "down": 0.0}
        self.whole = True
        self._delay = world.random.uniform(0.001, 0.02)
        if world.chance(0.1):
            self._delay *= 100

    def up(self, message: Any) -> None:
        """From the worker to the ledger."""
        self._send("up", message)

    def down(self, message: Any) -> None:
        """From the ledger to the worker."""
        self._send("down", message)

    def cut(self, worker_notices: float = 0.05, server_notices: float = 0.05) -> None:
        """Lose what is on its way; each end notices after a time."""
        if self.whole:
            self.whole = False
            self._world.after(worker_notices, self._ends["down"].hung_up, self)
            self._world.after(server_notices, self._ends["up"].hung_up, self)

    def _send(self, direction: str, message: Any) -> None:
        world = self._world
        if world.chance(0.003):
            world.say("the network cuts a link")
            self.cut(world.random.uniform(0, 20), world.random.uniform(0, 20))
        if self.whole:
            arrival = max(self._arrival[direction], world.now + self._delay)
            self._arrival[direction] = arrival
            world.at(arrival, self._deliver, direction, message)

    def _deliver(self, direction: str, message: Any) -> None:
        if self.whole:
            self._world.say("{} {} {}", direction, *message)
            self._ends[direction].receive(self, message)
