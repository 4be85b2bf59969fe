"""Takes a request and its list of paths, of any length, into the ledger batch by batch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import grpc

from nearline.gateway.v1 import gateway_pb2 as api
from nearline.monitor.v1 import monitor_pb2 as ledger
from nearline.monitor.v1 import monitor_pb2_grpc
from nearline.type.v1 import transaction_pb2
from services.gateway import validate
from services.kit.errors import InvalidArgument, Unavailable

Commit = Callable[[], Awaitable[ledger.SubmitRequest.Commit]]
"""Makes the commit once the whole list is stored, but for the number of paths."""


_header = ledger.SubmitRequest.Header
_Call = grpc.aio.StreamStreamCall[ledger.SubmitRequest, ledger.SubmitResponse]


class PathsRequest(Protocol):
    """A message after the header of any of the requests that take a list of paths."""

    def WhichOneof(self, oneof_group: str, /) -> str | None: ...  # noqa: N802 - protobuf's name

    @property
    def paths(self) -> api.Paths: ...


class Submissions:
    """Submits requests to the ledger."""

    def __init__(self, monitor: monitor_pb2_grpc.MonitorServiceAsyncStub) -> None:
        self._monitor = monitor

    async def submit(
        self,
        spec: ledger.TransactionSpec,
        requests: AsyncIterator[Any],
        commit: Commit,
        *,
        regex: bool = False,
    ) -> AsyncIterator[int | transaction_pb2.Transaction]:
        """Yields the position of the next path wanted after each batch, at last the transaction.

        A batch is durable before the next is read: memory holds one, whatever the list's length.
        """
        call = self._monitor.Submit()
        try:
            await call.write(ledger.SubmitRequest(header=_header(transaction=spec)))
            answer = await _answer(call)
            yield _next_or_transaction(answer)
            total = 0
            async for request in requests:
                batch = _batch(request, regex=regex)
                total = max(total, batch.first + len(batch.paths))
                # An accepted request is answered by its transaction: the list is known already.
                if answer.WhichOneof("message") == "stored":
                    await call.write(ledger.SubmitRequest(paths=batch))
                    answer = await _answer(call)
                    yield _next_or_transaction(answer)
            if answer.WhichOneof("message") == "stored":
                yield await self._commit(call, await commit(), max(total, answer.stored.next))
        finally:
            call.cancel()

    async def submit_tasks(
        self, spec: ledger.TransactionSpec, commit: ledger.SubmitRequest.Commit
    ) -> transaction_pb2.Transaction:
        """Submit a request that needs no paths."""
        call = self._monitor.Submit()
        try:
            await call.write(ledger.SubmitRequest(header=_header(transaction=spec)))
            answer = await _answer(call)
            if answer.WhichOneof("message") == "transaction":
                return answer.transaction
            return await self._commit(call, commit, 0)
        finally:
            call.cancel()

    async def _commit(
        self, call: _Call, commit: ledger.SubmitRequest.Commit, total: int
    ) -> transaction_pb2.Transaction:
        if not total and not commit.tasks:
            raise InvalidArgument(
                "NO_PATHS",
                "the request names no path; send at least one",
                violations=[("paths", "must name at least one path")],
            )
        commit.total = total
        await call.write(ledger.SubmitRequest(commit=commit))
        return (await _answer(call)).transaction


async def _answer(call: _Call) -> ledger.SubmitResponse:
    """The next answer. The ledger answers every message or fails the call, which raises here."""
    answer = await call.read()
    if not isinstance(answer, ledger.SubmitResponse):
        raise Unavailable(
            "LEDGER_ENDED", "the ledger ended the request too early; send it again", retry_after=1
        )
    return answer


def _batch(request: PathsRequest, *, regex: bool) -> ledger.SubmitRequest.Paths:
    if request.WhichOneof("message") != "paths":
        raise InvalidArgument(
            "PATHS_EXPECTED",
            "the header comes first and once; send only paths after it",
            violations=[("header", "must be the first message and no other")],
        )
    first = validate.number(request.paths.first, "paths.first")
    checked = validate.paths(request.paths.paths, first, regex=regex)
    return ledger.SubmitRequest.Paths(first=first, paths=checked)


def _next_or_transaction(answer: ledger.SubmitResponse) -> int | transaction_pb2.Transaction:
    if answer.WhichOneof("message") == "transaction":
        return answer.transaction
    return answer.stored.next
