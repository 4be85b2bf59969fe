"""The port to tape: what the service needs of a tape system, and what it may rely on.

A tape endpoint is a disk buffer in front of a tape library. A file is written into the buffer,
goes to tape by itself some time later, may then be dropped from the buffer, and is staged back on
demand.

Two drivers fulfil this contract and pass the same tests (``tests/contract/test_tape_endpoint.py``):
`services.tape.endpoints.xrootd` and `services.tape.endpoints.directory`.

Paths are relative to the endpoint's root, ``/`` between the components, made by this project and
never by users; `check_path` says what they may hold. A file is written once under a name that is
never used again, and is never changed.

All calls block, are made from worker threads, and may be made from many at once; a writer or a
reader belongs to one thread at a time. No call blocks for ever: a frozen or vanished endpoint makes
it fail within about 20 seconds, or a minute where many files are asked for at once.

Besides the errors that a method names, each raises

- ``InvalidArgument`` TAPE_BAD_PATH: a path that `check_path` refuses;
- ``Unavailable`` TAPE_UNREACHABLE, TAPE_AUTH_FAILED, TAPE_ERROR: worth trying again later;
- ``PermissionDenied`` TAPE_DENIED: the endpoint lets this service not do it, until somebody changes
  its configuration; therefore with ``retry_after``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from services.kit.errors import FailedPrecondition, InvalidArgument, NotFound

TAPE = "tape"
"""The tape endpoint, as work depends on it."""

CHUNK_BYTES = 8 * 1024 * 1024
"""The unit of all transfers; a writer or a stream holds at most `CHUNKS_IN_FLIGHT` of them."""
CHUNKS_IN_FLIGHT = 4

TAPE_FILE_NOT_FOUND = "TAPE_FILE_NOT_FOUND"
TAPE_SHORT_READ = "TAPE_SHORT_READ"

# xrootd 5 cuts a name of 255 bytes in its listings.
_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=+@,~-]{0,249}")
_LONGEST_PATH = 1000
_STAGE_FIRST = 30.0


class Offline(FailedPrecondition):
    """TAPE_FILE_OFFLINE: the bytes are on tape only; stage the file, and read it once online."""

    def __init__(self, path: str) -> None:
        super().__init__(
            "TAPE_FILE_OFFLINE",
            f"{path} is on tape only; it must be staged before it can be read",
            retry_after=_STAGE_FIRST,
            path=path,
        )


def not_found(path: str) -> NotFound:
    """TAPE_FILE_NOT_FOUND of this path."""
    return NotFound(TAPE_FILE_NOT_FOUND, f"there is no tape file {path}", path=path)


@dataclass(frozen=True, slots=True)
class Written:
    """A file that the endpoint holds completely: its bytes and their Adler-32."""

    size: int
    adler32: int


@dataclass(frozen=True, slots=True)
class TapeFileState:
    """What the endpoint says of one path.

    ``online``: readable now. ``on_tape``: safe, survives the loss of the buffer. ``requested``: a
    stage is under way. ``error``: why the last stage or migration failed, empty if it did not.
    ``size`` is None unless it was asked for and the file exists.
    """

    path: str
    exists: bool
    size: int | None
    online: bool
    on_tape: bool
    requested: bool
    error: str


@dataclass(frozen=True, slots=True)
class TapeEntry:
    """One file of a listing; ``modified`` in seconds since the epoch."""

    path: str
    size: int
    modified: float


class TapeWriter(Protocol):
    """A new file on its way. As a context manager it aborts when left without a commit."""

    def write(self, data: bytes | memoryview) -> None:
        """Append ``data``; the caller may reuse its buffer at once.

        Returns before the bytes are stored, so a failure may be raised by a later call.
        Raises ResourceExhausted TAPE_NO_SPACE.
        """
        ...

    def commit(self) -> Written:
        """Close the file and verify size and Adler-32 of what the endpoint stored.

        From now on the file is there, whatever happens to this process. It is not yet safe: until
        `TapeEndpoint.stat` says ``on_tape`` the loss of the endpoint's buffer would lose it.
        Raises Aborted TAPE_CHECKSUM_MISMATCH (the file is removed: write it again),
        AlreadyExists TAPE_FILE_EXISTS, ResourceExhausted TAPE_NO_SPACE. A commit whose outcome is
        unknown raises Unavailable; it may leave a complete file, which only `list` will show.
        """
        ...

    def abort(self) -> None:
        """Give up and leave nothing; without effect after a commit or an abort.

        Raises nothing: what an unreachable endpoint still holds is removed when it answers again,
        or by the endpoint itself when this process has ended.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class TapeReader(Protocol):
    """An open file; as a context manager it closes.

    Every read returns exactly the bytes asked for, or raises Unavailable TAPE_SHORT_READ: a file
    that ends early is damaged.
    """

    def read(self, offset: int, length: int) -> bytes:
        """Bytes ``offset`` to ``offset + length``."""
        ...

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of each (offset, length), in the order asked; small ones share a request."""
        ...

    def stream(self, offset: int, length: int, chunk: int = CHUNK_BYTES) -> Iterator[bytes]:
        """The same bytes in pieces of ``chunk`` (the last may be shorter), read ahead."""
        ...

    def close(self) -> None:
        """Close the file; a second call has no effect."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class TapeEndpoint(Protocol):
    """One tape system."""

    def create(self, path: str) -> TapeWriter:
        """Begin a new file; parents are made. Nobody may rely on it before the commit.

        Raises AlreadyExists TAPE_FILE_EXISTS (some drivers notice only at the commit),
        ResourceExhausted TAPE_NO_SPACE.
        """
        ...

    def open(self, path: str) -> TapeReader:
        """Open a file for reading. Raises Offline, NotFound TAPE_FILE_NOT_FOUND."""
        ...

    def stat(self, paths: Sequence[str], *, sizes: bool = False) -> list[TapeFileState]:
        """The state of each path, in the order asked; a missing file is an answer, not an error.

        ``sizes`` costs one more request per path with XRootD.
        """
        ...

    def stage(self, paths: Sequence[str]) -> dict[str, str]:
        """Ask for the bytes to come back into the buffer; returns the request id of each path.

        Every call is one more reference to the buffer's copy: ask only for what `needs_stage`, and
        release each once. The request is durable when the call returns. A missing file is not an
        error here; `stat` tells of it and of recalls that failed.
        """
        ...

    def cancel(self, requests: Mapping[str, str]) -> None:
        """Take back what `stage` returned; a request done, unknown or cancelled is no error."""
        ...

    def release(self, paths: Sequence[str]) -> None:
        """Give up one reference each; without any, a copy that is safe on tape may be dropped.

        A file that is missing, offline or not yet on tape is left as it is.
        """
        ...

    def remove(self, path: str) -> None:
        """Delete the file from the buffer and from tape; a missing file is no error."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Rename a file in place; parents of ``new`` are made.

        Raises NotFound TAPE_FILE_NOT_FOUND, AlreadyExists TAPE_FILE_EXISTS. Two callers must not
        rename to the same name at once: not every endpoint refuses the second.
        """
        ...

    def list(self, prefix: str = "") -> Iterator[TapeEntry]:
        """Every committed file below the directory ``prefix``, in no order; none if it is missing.

        Files whose names `check_path` refuses are not this service's, and are left out.
        """
        ...

    def unfinished(self, older_than: float, *, remove: bool) -> Sequence[TapeEntry]:
        """Files of writers that did not commit for ``older_than`` seconds, removed if asked.

        Nobody relies on them. Their paths are for people; other methods may not take them.
        """
        ...

    def healthy(self) -> str | None:
        """None when the endpoint answers, or what is wrong for a person. Raises nothing."""
        ...


def needs_stage(state: TapeFileState) -> bool:
    """Whether a stage should be asked for: offline, and nobody has asked yet."""
    return state.exists and not state.online and not state.requested


def check_path(path: str) -> str:
    """Return ``path``; raises InvalidArgument TAPE_BAD_PATH unless every endpoint can hold it.

    Components of 1–250 of the characters ``A–Z a–z 0–9 . _ = + @ , ~ -`` that start with a letter,
    digit or underscore; at most 1,000 characters in all.
    """
    if len(path) > _LONGEST_PATH or not all(map(_COMPONENT.fullmatch, path.split("/"))):
        raise InvalidArgument(
            "TAPE_BAD_PATH",
            f"{path[:100]!r} is no path of a tape file: use components of letters, digits and "
            "._=+@,~- that begin with a letter or digit",
        )
    return path


def is_path(path: str) -> bool:
    """Whether `check_path` accepts ``path``."""
    try:
        check_path(path)
    except InvalidArgument:
        return False
    return True
