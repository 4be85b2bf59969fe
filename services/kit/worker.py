"""The worker's side of the ledger's ``Work`` stream, for services that do leased work.

    worker = Worker(
        lambda: aio_channel(config.monitor), service="transfer",
        handlers={Task.SCAN: scan, Task.UPLOAD: upload}, slots=16,
    )
    await worker.run(stop)

A handler is a blocking function ``(Job, JobContext) -> Done | Deferred``. NearlineErrors that it
raises end the task for good, or, if transient, let the ledger try it again later; any other
exception is logged and tried again. JobCancelled, raised by ``ctx.check()``, hands the task back.

Nothing is lost when the ledger goes away: running jobs go on, and what they report is kept until a
ledger that came back has acknowledged it. A lease that ran out meanwhile is refused by its token.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import queue
import random
import socket
import threading
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import grpc
import structlog

from nearline.monitor.v1 import monitor_pb2
from nearline.monitor.v1.monitor_pb2_grpc import MonitorServiceStub
from nearline.type.v1 import task_pb2
from services.kit import crash, errors, identity, ownership, telemetry
from services.kit.jobs import (
    Deferred,
    Done,
    Handler,
    Job,
    JobCancelled,
    JobContext,
    Outcome,
    PathFailure,
    WorkRequest,
    new_task,
    readable,
    seconds,
    to_job,
    to_request,
)
from services.kit.memory import give_back

__all__ = [
    "Deferred", "Done", "Handler", "Job", "JobCancelled", "JobContext", "Outcome", "PathFailure",
    "Worker", "new_task", "schedule",
]  # fmt: skip

if TYPE_CHECKING:
    from nearline.monitor.v1.monitor_pb2_grpc import MonitorServiceAsyncStub
    from services.kit.jobs import Kind

log = structlog.get_logger(__name__)

WorkResponse = monitor_pb2.WorkResponse
Key = tuple[int, int]
"""(task id, token)"""

_WELCOME_SECONDS = 10.0
_FIRST_BACKOFF, _LAST_BACKOFF = 0.2, 3.0
_CANCEL_SECONDS = 5.0
_GOODBYE_SECONDS = 1.0
_REST_SECONDS = 1.0
_LOOK_SECONDS = 0.25

# Asking again cannot help: the configuration or the code is wrong.
_FINAL = (errors.Unauthenticated, errors.PermissionDenied, errors.InvalidArgument)


def schedule(name: str, kind: Kind, every: float, payload: bytes = b"") -> monitor_pb2.Schedule:
    """Work of ``kind`` that starts ``every`` seconds after its last run ended."""
    return monitor_pb2.Schedule(name=name, kind=kind, every=seconds(every), payload=payload)


class Worker:
    """Takes leases of ``handlers``' kinds from the ledger and runs up to ``slots`` at once.

    ``connect`` makes the channel to the ledger; it is called once, by :meth:`run`. ``trouble``
    says in words what is wrong with what the worker depends on (empty: nothing), ``paused`` which
    kinds of work it does not take for that; they run in the event loop and must not block. ``saw``
    is told, in the job's thread, how each job ended. ``grace`` is how many seconds running jobs may
    take to end by themselves once the worker is told to stop; then they are cancelled and handed
    back. ``reserved`` slots are left free by every single user; a ``small_only`` worker gets tasks
    of at most a second. ``give_way`` is called at each step of a job, and may pause it.
    """

    def __init__(
        self,
        connect: Callable[[], grpc.aio.Channel],
        *,
        service: str,
        handlers: Mapping[Kind, Handler],
        slots: int,
        schedules: Sequence[monitor_pb2.Schedule] = (),
        trouble: Callable[[], str] = str,
        paused: Callable[[], frozenset[Kind]] = frozenset,
        saw: Callable[[Kind, Exception | None], None] = lambda kind, error: None,
        version: str = "",
        grace: float = 20.0,
        reserved: int = 0,
        small_only: bool = False,
        give_way: Callable[[], None] = lambda: None,
        worker_id: str | None = None,
    ) -> None:
        self._connect = connect
        self._handlers = dict(handlers)
        self._slots = slots
        self._trouble = trouble
        self._paused = paused
        self._saw = saw
        self._grace = grace
        self._give_way = give_way
        host = socket.gethostname()
        self._hello = WorkRequest.Hello(
            worker_id=worker_id or f"{service}@{host}:{os.getpid()}-{uuid.uuid4().hex[:8]}",
            service=service,
            kinds=self._handlers,
            slots=slots,
            host=host,
            version=version,
            schedules=schedules,
            reserved=reserved,
            small_only=small_only,
        )
        self._told_paused: frozenset[Kind] = frozenset()
        self._runs: dict[Key, _Run] = {}
        self._out: asyncio.Queue[WorkRequest | None] | None = None
        self._draining = self._leaving = False
        # No task can come any more once the ledger has welcomed a worker that gives no credit.
        self._without_credit = asyncio.Event()
        self._resting: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def worker_id(self) -> str:
        """Unique per process; what the ledger calls this worker."""
        return self._hello.worker_id

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set and what runs has ended or was handed back. Runs once.

        Raises Unauthenticated, PermissionDenied or InvalidArgument when the ledger refuses the
        worker; every other failure is waited out.
        """
        self._loop = asyncio.get_running_loop()
        self._threads = _Threads(self._slots)
        async with self._connect() as channel:
            sessions = asyncio.create_task(self._sessions(MonitorServiceStub(channel)))
            drained = asyncio.create_task(self._drain(stop))
            try:
                await asyncio.wait({drained, sessions}, return_when=asyncio.FIRST_COMPLETED)
                self._say_goodbye()
                await asyncio.wait({sessions}, timeout=_GOODBYE_SECONDS)
                if sessions.done():
                    sessions.result()
            finally:
                self._cancel_all("the worker stops")
                self._threads.close()
                await _cancelled(drained, sessions)

    async def _sessions(self, stub: MonitorServiceAsyncStub) -> None:
        """Stay connected until the goodbye."""
        backoff = _FIRST_BACKOFF
        while not self._leaving:
            try:
                await self._session(stub)
                backoff = _FIRST_BACKOFF
            except (grpc.aio.AioRpcError, TimeoutError) as error:
                log.warning("ledger_lost", reason=_why(error), running=len(self._runs))
            if not self._leaving:
                await asyncio.sleep(backoff * random.uniform(0.5, 1.0))
                backoff = min(backoff * 2, _LAST_BACKOFF)

    async def _session(self, stub: MonitorServiceAsyncStub) -> None:
        """One stream, from hello until the ledger ends it."""
        out: asyncio.Queue[WorkRequest | None] = asyncio.Queue()
        out.put_nowait(WorkRequest(hello=self._say_hello()))
        call = stub.Work(_until_none(out))
        beats: asyncio.Task[None] | None = None
        try:
            first = await asyncio.wait_for(_read(call), _WELCOME_SECONDS)
            if first is None:
                return
            log.info("ledger_found", worker=self.worker_id, resumed=len(first.welcome.held))
            self._resume(out, first.welcome)
            period = max(first.welcome.heartbeat.ToNanoseconds() / 1e9, 0.1)
            beats = asyncio.create_task(self._beat(out, period))
            while (message := await _read(call)) is not None:
                self._receive(message)
        finally:
            self._out = None
            call.cancel()
            # A stream that broke is not cancelled any more: its sender ends by this.
            out.put_nowait(None)
            if beats is not None:
                await _cancelled(beats)

    def _say_hello(self) -> WorkRequest.Hello:
        hello = WorkRequest.Hello()
        hello.CopyFrom(self._hello)
        hello.held.extend(run.lease for run in self._runs.values())
        return hello

    def _resume(
        self, out: asyncio.Queue[WorkRequest | None], welcome: WorkResponse.Welcome
    ) -> None:
        """Stop what was lost meanwhile, send again what was not acknowledged, ask for more."""
        self._out = out
        self._say_beat(out)
        held = {_key(lease) for lease in welcome.held}
        for key, run in self._runs.items():
            if key not in held:
                run.context.cancel("the lease was lost while the ledger was away")
            for request in run.unacked:
                out.put_nowait(request)
        if self._draining:
            self._without_credit.set()
        busy = sum(run.busy for run in self._runs.values())
        self._give_credit(max(self._slots - busy, 0))

    async def _beat(self, out: asyncio.Queue[WorkRequest | None], period: float) -> None:
        while True:
            ends = self._loop.time() + period
            while self._loop.time() < ends and self._paused() == self._told_paused:
                await asyncio.sleep(min(period, _LOOK_SECONDS))
            self._say_beat(out)

    def _say_beat(self, out: asyncio.Queue[WorkRequest | None]) -> None:
        self._told_paused = self._paused()
        beat = WorkRequest.Heartbeat(trouble=readable(self._trouble()), paused=self._told_paused)
        beat.progress.extend(r.context.snapshot() for r in self._runs.values() if r.busy)
        out.put_nowait(WorkRequest(heartbeat=beat))

    def _receive(self, message: WorkResponse) -> None:
        match message.WhichOneof("message"):
            case "assignment":
                self._start(message.assignment)
            case "ack":
                self._acknowledge(_key(message.ack.lease), message.ack.accepted)
            case "revoke":
                if run := self._runs.get(_key(message.revoke.lease)):
                    run.context.cancel(message.revoke.reason)
            case "drain":
                self._hang_up()

    def _start(self, assignment: WorkResponse.Assignment) -> None:
        lease = assignment.lease
        context = JobContext(lease, lambda r: self._from_thread(self._post, run, r), self._give_way)
        run = _Run(lease, context)
        self._runs[_key(lease)] = run
        self._idle.clear()
        is_paused = assignment.kind in self._paused()
        if is_paused and self._out is not None:
            # Said first, or the ledger would give it back at once.
            self._say_beat(self._out)
        if self._draining or is_paused:
            self._end(run, WorkRequest(hand_back=WorkRequest.HandBack(lease=lease)))
            return
        handler = self._handlers[assignment.kind]
        self._threads.run(lambda: self._work(run, handler, to_job(assignment)))

    def _work(self, run: _Run, handler: Handler, job: Job) -> None:
        """In a thread: run the handler and pass on its result."""
        with _surroundings(job):
            request = _outcome(handler, job, run, self._saw)
        crash.point("worker.before_report")
        self._from_thread(self._end, run, request)

    def _end(self, run: _Run, request: WorkRequest) -> None:
        run.busy = False
        self._post(run, request)
        if not self._draining:
            self._give_credit(1)

    def _post(self, run: _Run, request: WorkRequest) -> None:
        """Send what the ledger must acknowledge, now or after the next reconnect."""
        if run.lost:
            self._forget_if_over(run)
            return
        run.unacked.append(request)
        if self._out is not None:
            self._out.put_nowait(request)

    def _acknowledge(self, key: Key, accepted: bool) -> None:
        run = self._runs.get(key)
        if run is None or not run.unacked:
            return
        if run.unacked.popleft().WhichOneof("message") == "failures":
            run.context.batch_acknowledged()
        if not accepted:
            run.lost = True
            run.unacked.clear()
            run.context.cancel("the lease was lost")
        self._forget_if_over(run)

    def _forget_if_over(self, run: _Run) -> None:
        if not run.busy and not run.unacked:
            self._runs.pop(_key(run.lease), None)
            if not self._runs:
                self._idle.set()
                self._rest_soon()

    def _rest_soon(self) -> None:
        """Once idle for a while, leave to other processes the memory that the last tasks used."""
        if self._resting is None or self._resting.when() <= self._loop.time():
            self._resting = self._loop.call_later(_REST_SECONDS, self._rest)

    def _rest(self) -> None:
        if not self._runs:
            give_back()

    def _give_credit(self, tasks: int) -> None:
        if self._out is not None and tasks and not self._draining:
            self._out.put_nowait(WorkRequest(credit=WorkRequest.Credit(tasks=tasks)))

    async def _drain(self, stop: asyncio.Event) -> None:
        """After ``stop``: let running jobs end, then cancel them, then give up on them."""
        await stop.wait()
        self._draining = True
        if self._out is None:
            self._without_credit.set()
        # Credit cannot be taken back. A new stream has none, and its hello names what is held:
        # what the ledger leased to the old one and did not get across is free again at once.
        self._hang_up()
        for reason, patience in (("", self._grace), ("the worker stops", _CANCEL_SECONDS)):
            if reason:
                self._cancel_all(reason)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._drained(), patience)
                return
        log.warning("jobs_left_running", jobs=[run.lease.task_id for run in self._runs.values()])

    async def _drained(self) -> None:
        await self._without_credit.wait()
        await self._idle.wait()

    def _say_goodbye(self) -> None:
        self._leaving = True
        self._hang_up()

    def _hang_up(self) -> None:
        """Half-close the stream; what comes up from here on waits for the next one."""
        if self._out is not None:
            self._out.put_nowait(None)
            self._out = None

    def _cancel_all(self, reason: str) -> None:
        for run in self._runs.values():
            run.context.cancel(reason)

    def _from_thread(self, call: Callable[..., None], *args: Any) -> None:
        # A loop that is closed has no use for results: the ledger's lease runs out.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *args)


@dataclass(slots=True, eq=False)
class _Run:
    """One lease, until its end is acknowledged. Touched by the event loop only."""

    lease: monitor_pb2.Lease
    context: JobContext
    unacked: deque[WorkRequest] = field(default_factory=deque)
    busy: bool = True
    lost: bool = False


class _Threads:
    """A fixed number of daemon threads, so that a stuck handler cannot keep the process alive."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        for number in range(count):
            threading.Thread(target=self._loop, name=f"job-{number}", daemon=True).start()

    def run(self, job: Callable[[], None]) -> None:
        self._jobs.put(job)

    def close(self) -> None:
        for _ in range(self._count):
            self._jobs.put(None)

    def _loop(self) -> None:
        while (job := self._jobs.get()) is not None:
            contextvars.Context().run(job)


def _outcome(
    handler: Handler, job: Job, run: _Run, saw: Callable[[Kind, Exception | None], None]
) -> WorkRequest:
    """Run ``handler``; the message that ends its lease, whatever happens."""
    context, lease = run.context, run.lease
    hand_back = WorkRequest(hand_back=WorkRequest.HandBack(lease=lease))
    try:
        context.check()
        outcome = handler(job, context)
        saw(job.kind, None)
        return to_request(lease, outcome, context.finish())
    except JobCancelled:
        return hand_back
    except errors.NearlineError as error:
        saw(job.kind, error)
        log.info("job_failed", reason=error.reason, message=error.message)
        failure: Exception = error
    except Exception as error:
        log.exception("job_crashed")
        failure = error
    try:
        return context.fail(failure)
    except JobCancelled:
        return hand_back


@contextlib.contextmanager
def _surroundings(job: Job) -> Iterator[None]:
    """Log lines and calls to other services bear the transaction, user and request of the job."""
    spec = job.transaction
    who = identity.from_proto(spec.identity) if spec.identity.user else None
    kind = task_pb2.Task.Kind.Name(job.kind)
    with (
        identity.acting_as(who),
        telemetry.transaction(spec.id),
        structlog.contextvars.bound_contextvars(task=job.task_id, kind=kind),
        ownership.working_on(job.task_id),
    ):
        yield


async def _until_none(out: asyncio.Queue[WorkRequest | None]) -> AsyncIterator[WorkRequest]:
    while (request := await out.get()) is not None:
        yield request


async def _read(call: grpc.aio.StreamStreamCall[WorkRequest, WorkResponse]) -> WorkResponse | None:
    message = await call.read()
    return None if message is grpc.aio.EOF else cast(WorkResponse, message)


async def _cancelled(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _why(error: grpc.aio.AioRpcError | TimeoutError) -> str:
    """What to log of a lost stream. Raises the error itself when connecting again is of no use."""
    if isinstance(error, TimeoutError):
        return "the ledger did not say welcome"
    decoded = errors.from_rpc_error(error)
    if isinstance(decoded, _FINAL):
        raise decoded from error
    return decoded.message


def _key(lease: monitor_pb2.Lease) -> Key:
    return lease.task_id, lease.token
