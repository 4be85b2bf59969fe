"""Replicas of the ledger: streams of workers, hints, and the loops that keep the queue."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nearline.monitor.v1 import monitor_pb2 as pb
from services.monitor.book import report_of
from services.monitor.rules import Hearing
from tests.simulation.checks import CheckedLedger, require
from tests.simulation.rows import Appetite, Lease, SupersededError, Taken
from tests.simulation.world import Link, Outage, Process, World

T = TypeVar("T")

HEARTBEAT, LEASE, POLL, SWEEP, PATIENCE, PURGE = 3.0, 15.0, 2.0, 3.0, 60.0, 30.0
PING, PING_ANSWER = 10.0, 5.0
"""How often a worker looks whether its replica is there, and how long that may take to answer."""


@dataclass(frozen=True, slots=True)
class Hello:
    """A worker's first message."""

    name: str
    kinds: tuple[int, ...]
    held: tuple[Lease, ...]
    appetite: Appetite


@dataclass(slots=True, eq=False)
class Stream:
    """A connected worker."""

    link: Link
    hello: Hello
    session: int
    heard: float
    credit: int = 0
    held: set[Lease] = field(default_factory=set)
    revoked: set[Lease] = field(default_factory=set)


class Replica(Process):
    """One process of the ledger. All state but its streams is in the database."""

    def __init__(self, world: World, ledger: CheckedLedger, name: str) -> None:
        super().__init__(world, name)
        self.ledger = ledger
        self.alive = False
        self.start()

    def start(self) -> None:
        """Begin, or begin again after a stop."""
        if self.alive:
            return
        self.alive = True
        self._life += 1
        self._frozen_until = self._reads_at = 0.0
        self._streams: dict[Link, Stream] = {}
        self._hints: set[int] = set()
        self._turn = 0
        self._hearing = Hearing(LEASE)
        self._again(POLL, self._wake)
        self._again(SWEEP, self._sweep)
        self._again(PURGE, self._purge)

    def stop(self, graceful: bool) -> None:
        """Go down; without grace at once."""
        self.world.say("replica {} {}", self.name, "drains" if graceful else "dies")
        if graceful:
            self.when_thawed(self._drain)
            self.world.after(2.0, self.stop, False)
            return
        self.alive = False
        for link in list(self._streams):
            link.cut()
        self._streams = {}

    def freeze(self, seconds: float) -> None:
        """As any process; its workers find out that nobody answers their pings."""
        super().freeze(seconds)
        for link in self._streams:
            notices = self.world.random.uniform(PING_ANSWER, PING + PING_ANSWER)
            if notices < seconds:
                self.world.after(notices, link.cut, 0.0, 0.0)

    def hint(self, kinds: set[int]) -> None:
        """Tasks of ``kinds`` may be ready."""
        self.when_read(self._hint, kinds)

    def _hint(self, kinds: set[int]) -> None:
        self._hints |= kinds
        if self._hints:
            self._feed_all()

    def _drain(self) -> None:
        for stream in self._streams.values():
            stream.link.down(("drain", None))

    def database(self, work: Callable[..., T], *args: Any) -> T:
        """One database transaction. Raises Outage, sometimes after the commit."""
        if self.frozen:
            raise Outage
        self.world.check_database()
        self.ledger.now = self.world.now + self.world.clock_offset
        answer = work(*args)
        if self.world.chance(0.004):
            self.world.say("the answer of the database to {} is lost", work.__name__)
            raise Outage
        return answer

    # What happens by itself

    def _again(self, period: float, step: Callable[[], None]) -> None:
        def run() -> None:
            with suppress(Outage):
                step()
            self.world.after(period, self._call, life, False, run, ())

        life = self._life
        self.world.after(self.world.random.uniform(0, period), self._call, life, False, run, ())

    def _wake(self) -> None:
        self.database(self.ledger.start_due)
        self.database(self.ledger.promote)
        self.hint(self.database(self.ledger.ready_kinds))

    def _sweep(self) -> None:
        try:
            self.database(self.ledger.abandon, PATIENCE)
        except Outage:
            self._hearing.interrupted()
            raise
        if self._hearing.swept(self.world.now, self.world.now + self.world.clock_offset):
            lost = self.database(self.ledger.expire, LEASE)
            heard = self.world.now - self.world.outage_until
            require(not lost or heard >= LEASE, "an outage of the ledger cost {} leases", lost)
        for stream in list(self._streams.values()):
            if self.world.now - stream.heard > LEASE:
                stream.link.cut()

    def _purge(self) -> None:
        self.database(self.ledger.purge, self.ledger.config.submission_seconds)

    # Streams

    def receive(self, link: Link, message: Any) -> None:
        """A message of a worker."""
        if self.alive:
            self.when_read(self._receive, link, message)
        else:
            link.cut()

    def _receive(self, link: Link, message: Any) -> None:
        name, body = message
        try:
            if name == "hello":
                self._welcome(link, body)
            elif link in self._streams:
                getattr(self, f"_{name}")(self._streams[link], body)
        except (Outage, SupersededError) as error:
            self.world.say("replica {} ends a stream: {!r}", self.name, error)
            link.cut()

    def hung_up(self, link: Link) -> None:
        """A worker is gone, or can no longer be heard."""
        self.when_read(self._streams.pop, link, None)

    def check(self) -> None:
        """Something was cancelled: look at what workers hold."""
        self.when_read(self._check)

    def _check(self) -> None:
        for stream in list(self._streams.values()):
            with suppress(Outage):
                held = self.database(self.ledger.held_by, stream.hello.name)
                self._revoke(stream, [(lease, self.ledger.off(lease)) for lease in held])

    def _welcome(self, link: Link, hello: Hello) -> None:
        session, held = self.database(self.ledger.hello, hello.name, hello.held)
        stream = Stream(link, hello, session, self.world.now, held=set(held))
        self._streams[link] = stream
        link.down(("welcome", held))

    def _credit(self, stream: Stream, tasks: int) -> None:
        stream.credit += tasks
        self._feed(stream)

    def _beat(self, stream: Stream, _: None) -> None:
        stream.heard = self.world.now
        session = (stream.hello.name, stream.session)
        self._revoke(stream, self.database(self.ledger.heartbeat, *session))

    def _report(self, stream: Stream, request: pb.WorkRequest) -> None:
        report = report_of(request)
        (accepted,) = self.database(self.ledger.record, [report])
        lease = (report.task_id, report.token)
        stream.link.down(("ack", (lease, accepted)))
        if report.ending is not None or not accepted:
            stream.held.discard(lease)

    def _goodbye(self, stream: Stream, _: None) -> None:
        stream.link.cut()

    def stray(self, request: pb.WorkRequest) -> None:
        """A copy of a report that comes out of nowhere."""
        with suppress(Outage):
            self.database(self.ledger.record, [report_of(request)])

    def _revoke(self, stream: Stream, held: list[tuple[Lease, bool]]) -> None:
        lost = stream.held - {lease for lease, _ in held}
        for lease in sorted(lost | {lease for lease, off in held if off}):
            if lease in stream.held and lease not in stream.revoked:
                stream.revoked.add(lease)
                stream.link.down(("revoke", lease))

    # Leases

    def _feed_all(self) -> None:
        streams = list(self._streams.values())
        self._turn += 1
        for stream in streams[self._turn % max(len(streams), 1) :] + streams[: self._turn]:
            try:
                self._feed(stream)
            except (Outage, SupersededError):
                stream.link.cut()

    def _feed(self, stream: Stream) -> None:
        while stream.credit > 0 and stream.link.whole:
            kinds = sorted(self._hints.intersection(stream.hello.kinds))
            if not kinds:
                return
            self._turn += 1
            start = self._turn % len(kinds)
            kinds = kinds[start:] + kinds[:start]
            hello, ledger = stream.hello, self.ledger
            taken = self.database(
                ledger.lease, hello.name, stream.session, kinds, stream.credit, hello.appetite
            )
            self._hints -= taken.empty
            stream.credit -= len(taken.leased)
            self.database(ledger.begin, {task.txn for task in taken.leased} - {None})
            if self.world.chance(0.005):
                self.freeze(self.world.random.choice((5.0, 20.0, 45.0)))
            self.when_thawed(self._hand_out, stream, taken)
            if self.frozen or (taken.held_back and not taken.leased):
                return

    def _hand_out(self, stream: Stream, taken: Taken) -> None:
        """Send what was leased, as if no time had passed since."""
        for task in taken.leased:
            stream.held.add((task.task_id, task.token))
            stream.link.down(("assignment", task))
