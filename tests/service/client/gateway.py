"""A gateway over real gRPC whose faults a test arranges; it keeps what it was told in memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_status import rpc_status

from nearline.gateway.v1 import gateway_pb2 as api
from nearline.gateway.v1 import gateway_pb2_grpc
from nearline.monitor.v1.monitor_pb2 import ParkedTask
from nearline.type.v1.storage_pb2 import File, Holding
from nearline.type.v1.task_pb2 import Task
from nearline.type.v1.transaction_pb2 import Failure, Transaction
from services.kit.errors import NearlineError, NotFound, Unimplemented, to_status

ID = "6f1c2b1e-0000-4000-8000-000000000001"


class Drop(Exception):
    """Ends a call as a connection that breaks does: with a code and no details of the service."""

    def __init__(self, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        super().__init__(code.name)
        self.code = code


@dataclass
class Request:
    """One request with its list of paths, as far as it came."""

    header: Any
    paths: list[str] = field(default_factory=list)
    accepted: bool = False


class Gateway(gateway_pb2_grpc.GatewayServiceServicer):
    """`faults[RPC]` are raised by the next calls, before they answer; None lets one pass.

    `interruptions` break off submissions after so many durable batches each; `pages[RPC]` says how
    many items a list stream sends before it is broken off, one entry for each call.
    """

    def __init__(self) -> None:
        self.faults: dict[str, deque[Exception | None]] = {}
        self.interruptions: deque[int] = deque()
        self.pages: dict[str, deque[int]] = {}
        self.page_size = 2
        self.requests: dict[str, Request] = {}
        self.asked: list[Any] = []
        self.tokens: list[str] = []
        self.files: list[File] = []
        self.holdings: list[Holding] = []
        self.transactions: list[Transaction] = []
        self.changes: list[list[Transaction]] = []
        self.failures: list[Failure] = []
        self.tasks: list[Task] = []
        self.most_paths = 0
        self.hold_watch: threading.Event | None = None

    def enter(self, rpc: str, request: Any, context: grpc.ServicerContext) -> None:
        """What every call does first: note it, then fail as arranged."""
        metadata = dict(context.invocation_metadata())
        self.tokens.append(str(metadata.get("authorization", "")))
        self.asked.append(request)
        queue = self.faults.get(rpc)
        fault = queue.popleft() if queue else None
        if fault is not None:
            raise fault

    def Put(self, requests: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        yield from self._submit("Put", requests, api.PutResponse, Transaction.PUT, context)

    def Get(self, requests: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        yield from self._submit("Get", requests, api.GetResponse, Transaction.GET, context)

    def Stage(self, requests: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        yield from self._submit("Stage", requests, api.StageResponse, Transaction.STAGE, context)

    def Delete(self, requests: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        self.enter("Delete", next(requests), context)
        raise Unimplemented("NOT_BUILT", "deleting is not built yet; ask the operator")
        yield

    def _submit(
        self, rpc: str, requests: Any, response: Any, action: int, context: Any
    ) -> Iterator[Any]:
        header = next(requests).header
        self.enter(rpc, header, context)
        request = self.requests.setdefault(header.transaction_id, Request(header))
        left = self.interruptions.popleft() if self.interruptions else -1
        yield response(next=len(request.paths))
        for message in requests:
            assert message.paths.first <= len(request.paths), "a gap in the list"
            self.most_paths = max(self.most_paths, len(message.paths.paths))
            request.paths[message.paths.first :] = message.paths.paths
            left -= 1
            if left == 0:
                raise Drop
            yield response(next=len(request.paths))
        request.accepted = True
        accepted = Transaction(
            id=header.transaction_id,
            action=action,  # type: ignore[arg-type]
            state=Transaction.QUEUED,
            label=getattr(header, "label", ""),
            files_total=len(request.paths),
        )
        yield response(transaction=accepted)

    def FindFiles(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        yield from self._list("FindFiles", request, self.files, api.FindFilesResponse, context)

    def ListHoldings(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        yield from self._list(
            "ListHoldings", request, self.holdings, api.ListHoldingsResponse, context
        )

    def ListTransactions(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        yield from self._list(
            "ListTransactions", request, self.transactions, api.ListTransactionsResponse, context
        )

    def ListFailures(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        yield from self._list(
            "ListFailures", request, self.failures, api.ListFailuresResponse, context
        )

    def _list(
        self, rpc: str, request: Any, items: list[Any], response: Any, context: Any
    ) -> Iterator[Any]:
        self.enter(rpc, type(request).FromString(request.SerializeToString()), context)
        queue = self.pages.get(rpc)
        left = queue.popleft() if queue else len(items) + 1
        name = response.DESCRIPTOR.fields[0].name
        items = items[::-1] if getattr(request, "descending", False) else items
        first = int(request.cursor or 0)
        limit = getattr(request, "limit", 0)
        end = first + limit if limit else len(items)
        for start in range(first, min(end, len(items)), self.page_size):
            if left <= 0:
                raise Drop
            stop = min(start + self.page_size, end)
            yield response(**{name: items[start:stop], "cursor": str(stop)})
            left -= self.page_size

    def ListTasks(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        self.enter("ListTasks", request, context)
        yield api.ListTasksResponse(tasks=[t for t in self.tasks if t.id > request.after])

    def GetTransaction(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.enter("GetTransaction", request, context)
        return api.GetTransactionResponse(transaction=self._transaction(request.id))

    def WatchTransaction(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        self.enter("WatchTransaction", request, context)
        for change in self.changes.pop(0) if self.changes else [self._transaction(request.id)]:
            yield api.WatchTransactionResponse(transaction=change)
        if self.hold_watch is not None:
            context.add_callback(self.hold_watch.set)
            self.hold_watch.wait(30)

    def CancelTransaction(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.enter("CancelTransaction", request, context)
        cancelled = Transaction(id=request.id, state=Transaction.CANCELLED)
        return api.CancelTransactionResponse(transaction=cancelled)

    def RetryTransaction(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.enter("RetryTransaction", request, context)
        again = Transaction(id=request.id, retry_of=request.id, state=Transaction.COMPLETE)
        return api.RetryTransactionResponse(transaction=again)

    def ListParkedTasks(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        self.enter("ListParkedTasks", request, context)
        parked = ParkedTask(task=Task(id=1, kind=Task.UPLOAD), code="WORKER_LOST")
        yield api.ListParkedTasksResponse(tasks=[parked])

    def UpdateHolding(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.enter("UpdateHolding", request, context)
        holding = Holding(id=7, label=request.new_label, tags=request.set_tags)
        return api.UpdateHoldingResponse(holding=holding)

    def GetUsage(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        self.enter("GetUsage", request, context)
        yield api.GetUsageResponse(
            usage={"group": "climate", "files": 5, "bytes": 2**30, "quota_bytes": 4 * 2**30}
        )

    def GetSystem(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.enter("GetSystem", request, context)
        worker = {"id": "tape-1", "slots": 4, "busy": 1, "connected": True, "trouble": "no tape"}
        services = [
            {"name": "catalog", "health": "HEALTHY"},
            {"name": "tape", "health": "DEGRADED", "trouble": "no tape", "workers": [worker]},
        ]
        return api.GetSystemResponse(health="DEGRADED", services=services, tasks_ready=3)  # type: ignore[arg-type]

    def GetIdentity(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.enter("GetIdentity", request, context)
        return api.GetIdentityResponse(identity={"user": "alice"})

    def _transaction(self, id: str) -> Transaction:
        for transaction in self.transactions:
            if transaction.id == id:
                return transaction
        raise NotFound("TRANSACTION_NOT_FOUND", f"no transaction {id} is visible to you")


class _Errors(grpc.ServerInterceptor):
    """Encodes what the gateway raises as the real one does."""

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = continuation(details)
        if handler is None:
            return None
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(
                _stream(handler.stream_stream),
                handler.request_deserializer,
                handler.response_serializer,
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                _stream(handler.unary_stream),
                handler.request_deserializer,
                handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            _unary(handler.unary_unary), handler.request_deserializer, handler.response_serializer
        )


def _unary(behaviour: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def call(request: Any, context: grpc.ServicerContext) -> Any:
        with _encoding(context):
            return behaviour(request, context)

    return call


def _stream(behaviour: Callable[[Any, Any], Iterable[Any]]) -> Callable[[Any, Any], Iterator[Any]]:
    def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        with _encoding(context):
            yield from behaviour(request, context)

    return call


@contextmanager
def _encoding(context: grpc.ServicerContext) -> Iterator[None]:
    try:
        yield
    except NearlineError as error:
        context.abort_with_status(rpc_status.to_status(to_status(error)))
    except Drop as error:
        context.abort(error.code, "Socket closed")


@contextmanager
def serving(gateway: Gateway, credentials: grpc.ServerCredentials | None = None) -> Iterator[int]:
    """Serve on a free loopback port, which is what this gives."""
    server = grpc.server(ThreadPoolExecutor(16), interceptors=[_Errors()])
    gateway_pb2_grpc.add_GatewayServiceServicer_to_server(gateway, server)
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield port
    finally:
        if gateway.hold_watch is not None:
            gateway.hold_watch.set()
        server.stop(None).wait()
