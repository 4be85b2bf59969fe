"""MonitorService: each RPC is one call of the ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from nearline.monitor.v1 import monitor_pb2 as pb
from nearline.monitor.v1 import monitor_pb2_grpc
from services.monitor.ledger import Ledger


class MonitorServicer(monitor_pb2_grpc.MonitorServiceServicer):
    """Translates between gRPC and the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def Submit(  # noqa: N802
        self, requests: AsyncIterator[pb.SubmitRequest], context: Any
    ) -> AsyncIterator[pb.SubmitResponse]:
        async for response in self._ledger.submit(requests):
            yield response

    async def GetTransaction(  # noqa: N802
        self, request: pb.GetTransactionRequest, context: Any
    ) -> pb.GetTransactionResponse:
        found = await self._ledger.get(
            request.id, request.visibility, with_failures=request.with_failures
        )
        return pb.GetTransactionResponse(transaction=found)

    async def ListTransactions(  # noqa: N802
        self, request: pb.ListTransactionsRequest, context: Any
    ) -> AsyncIterator[pb.ListTransactionsResponse]:
        async for response in self._ledger.transactions(request):
            yield response

    async def ListFailures(  # noqa: N802
        self, request: pb.ListFailuresRequest, context: Any
    ) -> AsyncIterator[pb.ListFailuresResponse]:
        async for response in self._ledger.failures(request.id, request.visibility, request.cursor):
            yield response

    async def ListTasks(  # noqa: N802
        self, request: pb.ListTasksRequest, context: Any
    ) -> AsyncIterator[pb.ListTasksResponse]:
        async for response in self._ledger.tasks(request.id, request.visibility, request.after):
            yield response

    async def Watch(  # noqa: N802
        self, request: pb.WatchRequest, context: Any
    ) -> AsyncIterator[pb.WatchResponse]:
        async for response in self._ledger.watch(request.id, request.visibility):
            yield response

    async def CancelTransaction(  # noqa: N802
        self, request: pb.CancelTransactionRequest, context: Any
    ) -> pb.CancelTransactionResponse:
        found = await self._ledger.cancel(request.id, request.visibility)
        return pb.CancelTransactionResponse(transaction=found)

    async def RetryTransaction(  # noqa: N802
        self, request: pb.RetryTransactionRequest, context: Any
    ) -> pb.RetryTransactionResponse:
        return pb.RetryTransactionResponse(transaction=await self._ledger.retry(request))

    async def ReadPaths(  # noqa: N802
        self, request: pb.ReadPathsRequest, context: Any
    ) -> AsyncIterator[pb.ReadPathsResponse]:
        paths = await self._ledger.paths(request.transaction_id, request.chunk)
        yield pb.ReadPathsResponse(paths=paths)

    async def Work(  # noqa: N802
        self, requests: AsyncIterator[pb.WorkRequest], context: Any
    ) -> AsyncIterator[pb.WorkResponse]:
        async for response in self._ledger.streams.serve(requests):
            yield response

    async def ListWorkers(  # noqa: N802
        self, request: pb.ListWorkersRequest, context: Any
    ) -> pb.ListWorkersResponse:
        return await self._ledger.workers()

    async def ListParkedTasks(  # noqa: N802
        self, request: pb.ListParkedTasksRequest, context: Any
    ) -> AsyncIterator[pb.ListParkedTasksResponse]:
        async for response in self._ledger.parked(request):
            yield response

    async def CountTasks(  # noqa: N802
        self, request: pb.CountTasksRequest, context: Any
    ) -> pb.CountTasksResponse:
        return pb.CountTasksResponse(
            count=await self._ledger.count_tasks(request.key, request.kind, request.task_id)
        )

    async def RunSchedule(  # noqa: N802
        self, request: pb.RunScheduleRequest, context: Any
    ) -> pb.RunScheduleResponse:
        await self._ledger.run_schedule(request.name)
        return pb.RunScheduleResponse()
