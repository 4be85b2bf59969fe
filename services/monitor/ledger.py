"""The ledger of one replica: everything that a servicer calls, and what runs beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from nearline.monitor.v1 import monitor_pb2
from nearline.type.v1.transaction_pb2 import Transaction
from services.kit import crash
from services.kit.db import Database
from services.kit.errors import FailedPrecondition, InvalidArgument, NotFound
from services.monitor import retries, schedules, submissions, transactions, workers
from services.monitor.config import LedgerConfig
from services.monitor.dispatch import Dispatcher
from services.monitor.keeper import Keeper
from services.monitor.listener import Listener, Notice
from services.monitor.streams import Streams
from services.monitor.watch import Watchers

EVERYTHING = monitor_pb2.Visibility()
SubmitRequest = monitor_pb2.SubmitRequest
SubmitResponse = monitor_pb2.SubmitResponse


class Ledger:
    """Needs a running event loop; connects when started."""

    def __init__(self, database: Database, config: LedgerConfig) -> None:
        self._database = database
        self._config = config
        self._dispatcher = Dispatcher(database)
        self._keeper = Keeper(database, self._dispatcher, config)
        self._listener = Listener(database.engine, self._on_notice)
        self._watchers = Watchers(database)
        self._running: list[asyncio.Task[None]] = []
        self.streams = Streams(database, self._dispatcher, config)

    async def start(self) -> None:
        """Begin to lease, to sweep and to tell watchers."""
        self._listener.start()
        self._running = [
            asyncio.create_task(self._keeper.run()),
            asyncio.create_task(self._watchers.run()),
        ]

    async def drain(self) -> None:
        """Let workers and watchers go to another replica."""
        self._watchers.drain()
        await self.streams.drain()

    async def stop(self) -> None:
        """End what :meth:`start` began."""
        self._listener.stop()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def ready(self) -> bool:
        """Whether the database answers."""
        await self._database.read(workers.count_tasks, "", 0)
        return True

    async def submit(self, requests: AsyncIterator[SubmitRequest]) -> AsyncIterator[SubmitResponse]:
        """Take in one request: header, paths, commit."""
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("message") != "header":
            raise FailedPrecondition("HEADER_EXPECTED", "the first message is the header")
        spec = submissions.check_header(first.header.transaction)
        following = await self._database.write(submissions.begin, spec, self._config)
        if following is None:
            yield SubmitResponse(transaction=await self.get(spec.id))
            return
        yield _stored(following)
        async for request in requests:
            if request.WhichOneof("message") == "commit":
                yield SubmitResponse(transaction=await self._accept(spec, request.commit))
                return
            stored = await self._store(spec, request)
            if stored is None:
                yield SubmitResponse(transaction=await self.get(spec.id))
                return
            yield _stored(stored)

    async def get(
        self,
        id_: str,
        visible: monitor_pb2.Visibility = EVERYTHING,
        *,
        with_failures: bool = False,
    ) -> Transaction:
        """One transaction. Raises NotFound."""
        id_ = submissions.checked_id(id_)
        return await self._database.read(
            transactions.get, id_, visible, with_failures=with_failures
        )

    async def transactions(
        self, request: monitor_pb2.ListTransactionsRequest
    ) -> AsyncIterator[monitor_pb2.ListTransactionsResponse]:
        """Transactions by time, in batches that each are read anew."""
        size = transactions.PAGE_WITH_FAILURES if request.with_failures else transactions.PAGE
        left, cursor = request.limit or None, request.cursor
        while left is None or left > 0:
            most = size if left is None else min(size, left)
            found, cursor = await self._database.read(transactions.page, request, cursor, most)
            if found:
                yield monitor_pb2.ListTransactionsResponse(transactions=found, cursor=cursor)
            if len(found) < most:
                return
            left = None if left is None else left - len(found)

    async def failures(
        self, id_: str, visible: monitor_pb2.Visibility, cursor: str
    ) -> AsyncIterator[monitor_pb2.ListFailuresResponse]:
        """All failed files of a transaction in batches. Raises NotFound."""
        seq = await self._find(id_, visible)
        while True:
            found, cursor = await self._database.read(transactions.failures, seq, cursor)
            if found:
                yield monitor_pb2.ListFailuresResponse(failures=found, cursor=cursor)
            if len(found) < transactions.ROWS:
                return

    async def tasks(
        self, id_: str, visible: monitor_pb2.Visibility, after: int
    ) -> AsyncIterator[monitor_pb2.ListTasksResponse]:
        """The tasks of a transaction in batches. Raises NotFound."""
        seq = await self._find(id_, visible)
        while True:
            found = await self._database.read(transactions.tasks, seq, id_, after)
            if found:
                yield monitor_pb2.ListTasksResponse(tasks=found)
                after = found[-1].id
            if len(found) < transactions.ROWS:
                return

    async def watch(
        self, id_: str, visible: monitor_pb2.Visibility
    ) -> AsyncIterator[monitor_pb2.WatchResponse]:
        """A transaction now, at every change and at its end. Raises NotFound."""
        async for transaction in self._watchers.watch(submissions.checked_id(id_), visible):
            yield monitor_pb2.WatchResponse(transaction=transaction)

    async def cancel(self, id_: str, visible: monitor_pb2.Visibility) -> Transaction:
        """Stop a transaction, or a request whose paths still arrive. Raises NotFound."""
        id_ = submissions.checked_id(id_)
        if not await self._database.write(submissions.cancel, id_, visible):
            await self._database.write(transactions.cancel, id_, visible)
        return await self.get(id_, visible)

    async def retry(self, request: monitor_pb2.RetryTransactionRequest) -> Transaction:
        """The transaction that runs again what failed in another one.

        Raises NotFound, PermissionDenied, FailedPrecondition, ResourceExhausted.
        """
        id_ = submissions.checked_id(request.id)
        retries.check(request)
        again = await self._database.write(retries.retry, id_, request, self._config)
        return await self.get(again)

    async def parked(
        self, request: monitor_pb2.ListParkedTasksRequest
    ) -> AsyncIterator[monitor_pb2.ListParkedTasksResponse]:
        """Tasks that were given up, the newest first, in batches."""
        before = request.before
        while True:
            found = await self._database.read(workers.list_parked, request.visibility, before)
            if found:
                yield monitor_pb2.ListParkedTasksResponse(tasks=found)
                before = found[-1].task.id
            if len(found) < workers.ROWS:
                return

    async def paths(self, id_: str, chunk: int) -> list[str]:
        """One chunk of a transaction's paths. Raises NotFound."""
        id_ = submissions.checked_id(id_, "transaction_id")
        paths = await self._database.read(submissions.read_paths, id_, chunk)
        if paths is None:
            raise NotFound("CHUNK_NOT_FOUND", f"transaction {id_} has no chunk {chunk}")
        return paths

    async def workers(self) -> monitor_pb2.ListWorkersResponse:
        """Workers and the length of the queue."""
        return await self._database.read(workers.list_workers, self._config.lease_seconds)

    async def count_tasks(self, key: str, kind: int, task_id: int) -> int:
        """Tasks of a key, or the one of a number, that have not ended."""
        return await self._database.read(workers.count_tasks, key, kind, task_id)

    async def run_schedule(self, name: str) -> None:
        """Make the next run of a schedule due now. Raises NotFound."""
        await self._database.write(schedules.run_now, name)

    async def _find(self, id_: str, visible: monitor_pb2.Visibility) -> int:
        return await self._database.read(transactions.find, submissions.checked_id(id_), visible)

    async def _store(self, spec: monitor_pb2.TransactionSpec, request: SubmitRequest) -> int | None:
        if request.WhichOneof("message") != "paths":
            raise InvalidArgument("PATHS_EXPECTED", "after the header come paths, then the commit")
        submissions.check_paths(request.paths)
        return await self._database.write(submissions.store, spec, request.paths)

    async def _accept(
        self, spec: monitor_pb2.TransactionSpec, commit: SubmitRequest.Commit
    ) -> Transaction:
        submissions.check_commit(commit)
        await self._database.write(submissions.accept, spec, commit, self._config)
        crash.point("monitor.accept.after_commit")
        return await self.get(spec.id)

    def _on_notice(self, notice: Notice) -> None:
        self._dispatcher.hint(notice.kinds)
        if notice.everything:
            self._watchers.all_changed()
        self._watchers.changed(notice.seqs)
        if notice.cancelled:
            self.streams.check()


def _stored(following: int) -> SubmitResponse:
    return SubmitResponse(stored=SubmitResponse.Stored(next=following))
