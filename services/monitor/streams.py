"""One Work stream: what a worker says is recorded in batches, what is ready flows by credit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, cast

import structlog

from nearline.monitor.v1 import monitor_pb2
from services.kit import crash
from services.kit.db import Database
from services.kit.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NearlineError,
    Unavailable,
)
from services.kit.jobs import seconds
from services.monitor import leases, rules
from services.monitor.book import Report, report_of
from services.monitor.config import LedgerConfig
from services.monitor.dispatch import Dispatcher, Vain
from services.monitor.leases import Held, Lease, Leased, Registration, SupersededError
from services.monitor.results import record

if TYPE_CHECKING:
    from services.kit.jobs import Kind

log = structlog.get_logger(__name__)

WorkRequest = monitor_pb2.WorkRequest
WorkResponse = monitor_pb2.WorkResponse

_REPORTS = frozenset({"failures", "complete", "defer", "fail", "hand_back"})
_INBOX = 1000
_BATCH = 200
_MOST_LEASES = 200


def checked_hello(first: WorkRequest | None) -> WorkRequest.Hello:
    """The hello in the first message. Raises FailedPrecondition, InvalidArgument."""
    if first is None or first.WhichOneof("message") != "hello":
        raise FailedPrecondition("HELLO_EXPECTED", "the first message of a Work stream is Hello")
    hello = first.hello
    problems = {
        "hello.worker_id": not hello.worker_id or "\0" in hello.worker_id,
        "hello.service": not hello.service,
        "hello.kinds": not hello.kinds,
        "hello.slots": not hello.slots,
        "hello.reserved": hello.reserved and hello.reserved >= hello.slots,
        "hello.schedules": any(not s.name or not s.kind or _short(s) for s in hello.schedules),
    }
    violations = [(name, "is missing or invalid") for name, bad in problems.items() if bad]
    if violations:
        raise InvalidArgument("BAD_HELLO", "the hello is incomplete", violations=violations)
    return hello


def _short(schedule: monitor_pb2.Schedule) -> bool:
    return schedule.every.ToNanoseconds() <= 0


class Stream:
    """A connected worker."""

    def __init__(
        self,
        database: Database,
        dispatcher: Dispatcher,
        config: LedgerConfig,
        hello: WorkRequest.Hello,
        registration: Registration,
    ) -> None:
        self.registration = registration
        self._database = database
        self._dispatcher = dispatcher
        self._vain: Vain = {}
        self._config = config
        self._kinds = frozenset(hello.kinds)
        self._paused: frozenset[int] = frozenset()
        self._held: dict[Lease, int | None] = dict.fromkeys(registration.held)
        self._revoked: set[Lease] = set()
        self._inbox: asyncio.Queue[WorkRequest | None] = asyncio.Queue(_INBOX)
        self._outbox: asyncio.Queue[WorkResponse | None] = asyncio.Queue()
        self._heartbeat: WorkRequest.Heartbeat | None = None
        self._alive = asyncio.Event()
        self._credit = 0
        self._credited = asyncio.Event()
        self._draining = False

    async def serve(
        self, requests: AsyncIterator[WorkRequest]
    ) -> AsyncGenerator[WorkResponse, None]:
        """Answers until the worker half-closes. Raises what ends the stream otherwise."""
        running = asyncio.create_task(self._run(requests))
        try:
            yield WorkResponse(welcome=self._welcome())
            while (response := await self._outbox.get()) is not None:
                yield response
            await running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    def drain(self) -> None:
        """Ask the worker to half-close; no more leases."""
        self._draining = True
        self._outbox.put_nowait(WorkResponse(drain=WorkResponse.Drain()))

    async def check(self) -> None:
        """Revoke what was cancelled or lost."""
        before = set(self._held)
        held = await self._database.read(leases.held_by, self.registration.worker)
        self._revoke(before, held)

    def _welcome(self) -> WorkResponse.Welcome:
        return WorkResponse.Welcome(
            heartbeat=seconds(self._config.heartbeat_seconds),
            lease=seconds(self._config.lease_seconds),
            held=[_lease(held) for held in self.registration.held],
        )

    async def _run(self, requests: AsyncIterator[WorkRequest]) -> None:
        reading = asyncio.create_task(self._read(requests))
        loops = [asyncio.create_task(run()) for run in (self._record, self._feed, self._beat)]
        try:
            done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
            for ended in done:
                ended.result()
        except SupersededError as error:
            raise Aborted("SUPERSEDED", "the worker has connected again elsewhere") from error
        finally:
            for task in (reading, *loops):
                task.cancel()
            await asyncio.gather(reading, *loops, return_exceptions=True)
            self._outbox.put_nowait(None)

    async def _read(self, requests: AsyncIterator[WorkRequest]) -> None:
        """Sort what comes in; reports and credits keep their order."""
        try:
            async for request in requests:
                if request.WhichOneof("message") == "heartbeat":
                    self._heartbeat = request.heartbeat
                    self._pause(frozenset(request.heartbeat.paused))
                    self._alive.set()
                else:
                    await self._inbox.put(request)
        finally:
            await self._inbox.put(None)

    def _pause(self, kinds: frozenset[int]) -> None:
        """Lease none of ``kinds`` from now on, and again what is not among them any more."""
        taken_again, self._paused = self._paused - kinds, kinds
        self._dispatcher.hint(taken_again)

    def _wanted(self) -> frozenset[int]:
        return self._kinds - self._paused

    async def _record(self) -> None:
        """Record reports, as many at once as have come; ends when the worker has half-closed."""
        while True:
            batch = await _gather(self._inbox, _BATCH)
            await self._record_batch([report_of(r) for r in batch if r and _is_report(r)])
            credit = sum(r.credit.tasks for r in batch if r)
            if credit:
                self._credit += credit
                self._credited.set()
            if None in batch:
                return

    async def _record_batch(self, reports: list[Report]) -> None:
        if not reports:
            return
        accepted = await self._database.write(record, reports, self._config.limits)
        crash.point("monitor.record.after_commit")
        for report, ok in zip(reports, accepted, strict=True):
            lease = (report.task_id, report.token)
            ack = WorkResponse.Ack(lease=_lease(lease), accepted=ok)
            self._outbox.put_nowait(WorkResponse(ack=ack))
            if report.ending is not None or not ok:
                self._held.pop(lease, None)
                self._revoked.discard(lease)
        if self.registration.most_of_one is not None:
            self._vain.clear()
            self._dispatcher.stir()

    async def _feed(self) -> None:
        """Turn credit into assignments."""
        while True:
            while not self._credit or self._draining:
                self._credited.clear()
                await self._credited.wait()
            most = min(self._credit, _MOST_LEASES)
            leased = await self._dispatcher.take(self.registration, self._wanted, most, self._vain)
            self._credit -= len(leased)
            self._held.update({(task.task_id, task.token): task.txn for task in leased})
            specs = await self._dispatcher.specs(leased)
            for task in leased:
                spec = specs.get(task.txn) if task.txn is not None else None
                assignment = _assignment(task, spec, self._config.limits)
                self._outbox.put_nowait(WorkResponse(assignment=assignment))

    async def _beat(self) -> None:
        """Extend the leases at each sign of life; end the stream when there is none."""
        while True:
            beat = await self._next_beat()
            before = set(self._held)
            held = await self._database.write(
                leases.heartbeat, self.registration, beat.trouble, beat.progress
            )
            self._revoke(before, held)

    async def _next_beat(self) -> WorkRequest.Heartbeat:
        try:
            await asyncio.wait_for(self._alive.wait(), self._config.lease_seconds)
        except TimeoutError as error:
            raise DeadlineExceeded(
                "HEARTBEAT_MISSED", "the worker gave no sign of life; connect again"
            ) from error
        self._alive.clear()
        assert self._heartbeat is not None
        return self._heartbeat

    def _revoke(self, before: Iterable[Lease], held: Iterable[Held]) -> None:
        """``before``: the leases known here when the ledger was asked for ``held``."""
        cancelled = {each.lease for each in held if each.cancelled}
        lost = set(before) - {each.lease for each in held}
        for leases_, reason in ((cancelled, "it was cancelled"), (lost, "the lease was lost")):
            for lease in leases_ & self._held.keys() - self._revoked:
                self._revoked.add(lease)
                revoke = WorkResponse.Revoke(lease=_lease(lease), reason=reason)
                self._outbox.put_nowait(WorkResponse(revoke=revoke))


class Streams:
    """All Work streams of this replica."""

    def __init__(self, database: Database, dispatcher: Dispatcher, config: LedgerConfig) -> None:
        self._database = database
        self._dispatcher = dispatcher
        self._config = config
        self._open: set[Stream] = set()
        self._none_open = asyncio.Event()
        self._none_open.set()
        self._background: set[asyncio.Task[None]] = set()
        self._draining = False

    async def serve(self, requests: AsyncIterator[WorkRequest]) -> AsyncIterator[WorkResponse]:
        """One stream from its hello to its end."""
        if self._draining:
            raise Unavailable("DRAINING", "the ledger goes down; connect again", retry_after=1)
        hello = checked_hello(await anext(aiter(requests), None))
        registration = await self._database.write(leases.hello, hello, self._config.limits)
        stream = Stream(self._database, self._dispatcher, self._config, hello, registration)
        self._open.add(stream)
        self._none_open.clear()
        log.info("worker_connected", worker=hello.worker_id, held=len(registration.held))
        try:
            async with aclosing(stream.serve(requests)) as responses:
                async for response in responses:
                    yield response
        finally:
            log.info("worker_left", worker=hello.worker_id)
            self._open.discard(stream)
            if not self._open:
                self._none_open.set()
            # A call that was cancelled must not wait for the database.
            self._in_background(self._say_goodbye(registration))

    def check(self) -> None:
        """Something was cancelled: have each stream look at what its worker holds."""
        for stream in self._open:
            self._in_background(self._check(stream))

    async def drain(self) -> None:
        """Ask all workers to half-close and wait until they have."""
        self._draining = True
        for stream in self._open:
            stream.drain()
        await self._none_open.wait()

    async def _check(self, stream: Stream) -> None:
        with suppress(NearlineError):  # the next heartbeat looks again
            await stream.check()

    async def _say_goodbye(self, registration: Registration) -> None:
        with suppress(NearlineError):  # for display only
            await self._database.write(leases.goodbye, registration)

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


async def _gather(inbox: asyncio.Queue[WorkRequest | None], most: int) -> list[WorkRequest | None]:
    """Wait for a message and take along what else is there; nothing comes behind a None."""
    batch = [await inbox.get()]
    while len(batch) < most and not inbox.empty():
        batch.append(inbox.get_nowait())
    return batch


def _is_report(request: WorkRequest) -> bool:
    return request.WhichOneof("message") in _REPORTS


def _lease(lease: Lease) -> monitor_pb2.Lease:
    return monitor_pb2.Lease(task_id=lease[0], token=lease[1])


def _assignment(
    task: Leased, spec: monitor_pb2.TransactionSpec | None, limits: rules.Limits
) -> WorkResponse.Assignment:
    left = None
    if task.failing_seconds is not None:
        left = seconds(max(limits.give_up_after - task.failing_seconds, 0.0))
    is_last = task.lost > 0 and rules.is_poison(task.lost + 1, limits)
    return WorkResponse.Assignment(
        lease=_lease((task.task_id, task.token)),
        kind=cast("Kind", task.kind),
        payload=task.payload,
        chunk=task.chunk,
        attempt=task.attempt,
        transaction=spec,
        gives_up_in=left,
        workers_lost=task.lost if is_last else 0,
    )
