"""Reading and writing XRootD files with several requests in flight.

The client calls back from its own threads. A callback only notes the outcome: a synchronous call in
it would deadlock. The client keeps no reference to a buffer it sends, so the callback holds it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self

from zlib_ng import zlib_ng

from services.kit.errors import Aborted, NearlineError, Unavailable
from services.kit.memory import give_back
from services.tape.endpoint import CHUNK_BYTES, CHUNKS_IN_FLIGHT, TAPE, Written
from services.tape.endpoints.xrootd_client import Status, check, failure

log = logging.getLogger(__name__)

_REQUEST_SECONDS = 20
# The client forgets the timeout of a request whose bytes are half in the socket of a frozen server:
# nobody calls back until the connection breaks.
_CALLBACK_SECONDS = 30.0
# A server writes a request to its disk as it comes, and smaller writes cost it less.
_WRITE_BYTES = 1 << 20
_WRITES_IN_FLIGHT = CHUNKS_IN_FLIGHT * CHUNK_BYTES // _WRITE_BYTES
_VECTOR_MEMBER_BYTES = 2_097_136
_VECTOR_MEMBERS = 1024
_VECTOR_BYTES = 16 * 1024 * 1024


class _Server(Protocol):
    """What a writer asks of its endpoint."""

    def size(self, path: str) -> int: ...
    def adler32(self, path: str, size: int) -> int: ...
    def remove(self, path: str) -> None: ...
    def abandon(self, path: str, file: object) -> None: ...


class XRootDWriter:
    """A ``TapeWriter``."""

    def __init__(self, server: _Server, path: str, file: Any) -> None:
        self._server = server
        self._path = path
        self._file = file
        self._parts: list[bytes] = []
        self._filled = 0
        self._sent = 0
        self._adler32 = 1
        self._changed = threading.Condition()
        self._flying = 0
        self._failure: NearlineError | None = None
        self._finished = False

    def write(self, data: bytes | memoryview) -> None:
        """See `TapeWriter.write`."""
        view = memoryview(data).cast("B")
        while len(view):
            part = bytes(view[: _WRITE_BYTES - self._filled])
            view = view[len(part) :]
            self._parts.append(part)
            self._filled += len(part)
            if self._filled == _WRITE_BYTES:
                self._flush()

    def commit(self) -> Written:
        """See `TapeWriter.commit`."""
        try:
            if self._filled:
                self._flush()
            self._await(lambda: self._flying == 0)
            with _connected("close", self._path):
                status, _ = self._file.close()
            check(status, "close", self._path)
            written = self._verified()
        except BaseException:
            self.abort()
            raise
        self._finished = True
        return written

    def abort(self) -> None:
        """See `TapeWriter.abort`."""
        if self._finished:
            return
        self._finished = True
        self._parts.clear()
        try:
            self._settle()
            # While the file is open: closed in good order the server would keep it.
            self._server.remove(self._path)
            if self._file.is_open():
                self._file.close()
        except NearlineError as error:
            log.warning("%s is unfinished and will be removed later: %s", self._path, error)
            self._server.abandon(self._path, self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()

    def _flush(self) -> None:
        chunk = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts, self._filled = [], 0
        self._await(lambda: self._flying < _WRITES_IN_FLIGHT)
        self._send(chunk)
        self._adler32 = zlib_ng.adler32(chunk, self._adler32)
        self._sent += len(chunk)

    def _send(self, chunk: bytes) -> None:
        with self._changed:
            self._flying += 1
        try:
            with _connected("write", self._path):
                status = self._file.write(
                    chunk,
                    self._sent,
                    len(chunk),
                    timeout=_REQUEST_SECONDS,
                    callback=partial(self._stored, chunk),
                )
            check(status, "write", self._path)
        except NearlineError as error:  # then nobody calls back
            self._landed(error)
            raise

    def _stored(self, _chunk: bytes, status: Status, *_: object) -> None:
        self._landed(None if status.ok else failure(status, "write", self._path))

    def _landed(self, error: NearlineError | None) -> None:
        with self._changed:
            self._flying -= 1
            self._failure = self._failure or error
            self._changed.notify_all()

    def _await(self, reached: Callable[[], bool]) -> None:
        """Wait for ``reached``; raises the first failure of any write."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._failure or reached(), _CALLBACK_SECONDS):
                raise _no_callback("write", self._path)
            if self._failure is not None:
                raise self._failure

    def _settle(self) -> None:
        """Wait until no write is under way; raises Unavailable without an answer to one."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: self._lost() or not self._flying, _CALLBACK_SECONDS
            ):
                raise _no_callback("write", self._path)
            if self._failure is not None and self._lost():
                raise self._failure

    def _lost(self) -> bool:
        return self._failure is not None and self._failure.reason == "TAPE_UNREACHABLE"

    def _verified(self) -> Written:
        mine = Written(self._sent, self._adler32)
        theirs = Written(
            self._server.size(self._path), self._server.adler32(self._path, self._sent)
        )
        if mine != theirs:
            raise Aborted(
                "TAPE_CHECKSUM_MISMATCH",
                f"the tape endpoint stored {theirs} of {self._path}, but {mine} was sent; "
                "it was removed and must be written again",
                path=self._path,
            )
        return mine


class XRootDReader:
    """A ``TapeReader``."""

    def __init__(self, path: str, file: Any) -> None:
        self._path = path
        self._file = file

    def read(self, offset: int, length: int) -> bytes:
        """See `TapeReader.read`."""
        if length <= CHUNK_BYTES:
            return self._read_chunk(offset, length)
        return b"".join(self.stream(offset, length))

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `TapeReader.read_many`."""
        results: list[bytes] = []
        for group in _groups(ranges):
            if len(group) == 1:
                results.append(self.read(*group[0]))
            else:
                results.extend(self._read_vector(group))
        return results

    def stream(self, offset: int, length: int, chunk: int = CHUNK_BYTES) -> Iterator[bytes]:
        """See `TapeReader.stream`."""
        pending: deque[_Ask] = deque()
        end = offset + length
        try:
            while offset < end or pending:
                while offset < end and len(pending) < CHUNKS_IN_FLIGHT:
                    size = min(chunk, end - offset)
                    pending.append(_Ask(self._file, self._path, offset, size))
                    offset += size
                yield pending.popleft().result()
        finally:
            for ask in pending:  # the file must not be closed under a request
                ask.wait()
            give_back()

    def close(self) -> None:
        """See `TapeReader.close`."""
        if self._file.is_open():
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _read_chunk(self, offset: int, length: int) -> bytes:
        if not length:
            return b""
        with _connected("read", self._path):
            status, data = self._file.read(offset, length, timeout=_REQUEST_SECONDS)
        check(status, "read", self._path)
        return _exact(data, length, self._path)

    def _read_vector(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        unique = list(dict.fromkeys(ranges))  # a repeated range breaks the client's bookkeeping
        with _connected("read", self._path):
            status, answer = self._file.vector_read(unique, timeout=_REQUEST_SECONDS)
        if not status.ok:
            error = failure(status, "read", self._path)
            if error.reason == "TAPE_UNREACHABLE":
                raise error
            # One bad range fails all; alone it gets an error of its own.
            return [self._read_chunk(*wanted) for wanted in ranges]
        found = dict(zip(unique, (chunk.buffer for chunk in answer.chunks), strict=True))
        return [_exact(found[wanted], wanted[1], self._path) for wanted in ranges]


class _Ask:
    """One asynchronous read."""

    def __init__(self, file: Any, path: str, offset: int, length: int) -> None:
        self._path = path
        self._length = length
        self._done = threading.Event()
        self._answer: tuple[Status, bytes | None] | None = None
        with _connected("read", path):
            status = file.read(offset, length, timeout=_REQUEST_SECONDS, callback=self._arrived)
        if not status.ok:
            self._arrived(status, None)

    def wait(self) -> None:
        """Wait for the outcome. Raises Unavailable when the client never calls back."""
        if not self._done.wait(_CALLBACK_SECONDS):
            raise _no_callback("read", self._path)

    def result(self) -> bytes:
        """The bytes, or the error that they could not be read for."""
        self.wait()
        assert self._answer is not None
        status, data = self._answer
        check(status, "read", self._path)
        return _exact(data, self._length, self._path)

    def _arrived(self, status: Status, data: bytes | None, *_: object) -> None:
        self._answer = (status, data)
        self._done.set()


def _groups(ranges: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Neighbours in the list that fit one vector read; large and empty ranges stand alone."""
    group: list[tuple[int, int]] = []
    held = 0
    for offset, length in ranges:
        alone = not 0 < length <= _VECTOR_MEMBER_BYTES
        if group and (alone or len(group) == _VECTOR_MEMBERS or held + length > _VECTOR_BYTES):
            yield group
            group, held = [], 0
        if alone:
            yield [(offset, length)]
        else:
            group.append((offset, length))
            held += length
    if group:
        yield group


def _exact(data: bytes | None, length: int, path: str) -> bytes:
    if data is None or len(data) != length:
        raise Unavailable(
            "TAPE_SHORT_READ",
            f"the tape file {path} ended {length - len(data or b'')} bytes early",
            path=path,
        )
    return data


@contextmanager
def _connected(action: str, path: str) -> Iterator[None]:
    """The client closes a file that lost its connection, and then treats its use as a mistake."""
    try:
        yield
    except ValueError as error:
        raise Unavailable(
            "TAPE_UNREACHABLE",
            f"the connection to the tape endpoint was lost at a {action} of {path}",
            path=path,
            dependency=TAPE,
        ) from error


def _no_callback(action: str, path: str) -> Unavailable:
    return Unavailable(
        "TAPE_UNREACHABLE", f"no answer to a {action} of {path}", path=path, dependency=TAPE
    )
