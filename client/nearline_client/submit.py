"""Sends a request with a list of paths of any length, and goes on where a stream broke off."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from queue import SimpleQueue
from typing import Any, TypeVar

import grpc

from nearline.gateway.v1 import gateway_pb2 as api
from nearline.type.v1.transaction_pb2 import Transaction
from nearline_client.calls import Attempts, Caller
from nearline_client.errors import ServiceError

MOST_PATHS = 1000
MOST_BYTES = 1024 * 1024
WINDOW = 8

Request = TypeVar(
    "Request",
    api.PutRequest,
    api.GetRequest,
    api.DeleteRequest,
    api.UndeleteRequest,
    api.StageRequest,
)
Response = (
    api.PutResponse
    | api.GetResponse
    | api.DeleteResponse
    | api.UndeleteResponse
    | api.StageResponse
)


class Backlog:
    """The batches of a list that are sent and not yet durable, and the rest of the list.

    At most `WINDOW` batches are held, whatever the length of the list.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._rest = iter(paths)
        self._held: deque[api.Paths] = deque()
        self._end = 0
        self._unsent = 0

    def resume(self, wanted: int) -> None:
        """The service has everything before position `wanted` and nothing behind it."""
        self.acknowledge(wanted)
        if wanted > self._end:
            # An earlier process sent these under the same transaction id.
            self._end += sum(1 for _ in islice(self._rest, wanted - self._end))
        self._unsent = len(self._held)

    def acknowledge(self, wanted: int) -> None:
        """Everything before position `wanted` is durable."""
        while self._held and _end(self._held[0]) <= wanted:
            self._held.popleft()
        if self._held and self._held[0].first < wanted:
            first = self._held.popleft()
            kept = first.paths[wanted - first.first :]
            self._held.appendleft(api.Paths(first=wanted, paths=kept))

    def next_batch(self) -> api.Paths | None:
        """What to send now; None while the window is full, and at the end of the list."""
        if self._unsent:
            self._unsent -= 1
            return self._held[-1 - self._unsent]
        if len(self._held) >= WINDOW:
            return None
        batch = api.Paths(first=self._end, paths=_take(self._rest))
        if not batch.paths:
            return None
        self._end = _end(batch)
        self._held.append(batch)
        return batch

    @property
    def is_full(self) -> bool:
        """Whether answers have to come before more can be sent."""
        return len(self._held) >= WINDOW


class Submission:
    """One request on its way."""

    def __init__(self, caller: Caller, method: Any, header: Request, paths: Iterable[str]) -> None:
        """`method` is the stub's, `header` the first message, `paths` the list in wire form."""
        self._caller = caller
        self._method: grpc.StreamStreamMultiCallable[Any, Response] = method
        self._header: Any = header
        self._backlog = Backlog(paths)

    def run(self) -> Transaction:
        """The accepted transaction. Raises ServiceError, and what iterating over the paths does."""
        attempts = self._caller.attempts(self._caller.timing.interrupted)
        while True:
            metadata = attempts.metadata()
            try:
                return self._attempt(attempts, metadata)
            except grpc.RpcError as error:
                attempts.recover(self._caller.error(error))

    def _attempt(self, attempts: Attempts, metadata: tuple[tuple[str, str], ...]) -> Transaction:
        outbox: SimpleQueue[object] = SimpleQueue()
        outbox.put(self._header)
        # gRPC reads requests in a thread of its own; the list is iterated over in this one, so
        # that its errors, and Ctrl-C, come up here.
        call = self._method(iter(outbox.get, None), metadata=metadata)
        try:
            return self._converse(call, outbox, attempts)
        finally:
            outbox.put(None)
            call.cancel()

    def _converse(
        self, call: Iterator[Response], outbox: SimpleQueue[object], attempts: Attempts
    ) -> Transaction:
        answer = _answer(call)
        self._backlog.resume(answer.next)
        while answer.WhichOneof("message") == "next":
            attempts.progressed()
            self._backlog.acknowledge(answer.next)
            self._send(outbox)
            answer = _answer(call)
        return answer.transaction

    def _send(self, outbox: SimpleQueue[object]) -> None:
        kind = type(self._header)
        while batch := self._backlog.next_batch():
            outbox.put(kind(paths=batch))
        if not self._backlog.is_full:
            outbox.put(None)


def _answer(call: Iterator[Response]) -> Response:
    answer = next(call, None)
    if answer is not None:
        return answer
    raise ServiceError(
        "INTERNAL", "NO_TRANSACTION", "the service ended the request without accepting it"
    )


def _take(paths: Iterator[str]) -> list[str]:
    """The next paths: as many as one message may hold."""
    taken: list[str] = []
    size = 0
    for path in islice(paths, MOST_PATHS):
        taken.append(path)
        size += len(path)
        if size >= MOST_BYTES // 4:
            break
    return taken


def _end(batch: api.Paths) -> int:
    return batch.first + len(batch.paths)
