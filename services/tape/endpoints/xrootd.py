"""The driver for an XRootD server with tape behind it: EOS with CTA, or one that answers alike.

Only the native protocol is used: stat and prepare requests, and the JSON that CTA answers.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from services.kit.errors import AlreadyExists, InvalidArgument, NearlineError, NotFound, Unavailable
from services.tape.endpoint import (
    Offline,
    TapeEntry,
    TapeFileState,
    check_path,
    is_path,
)
from services.tape.endpoints.xrootd_client import (
    INVALID_RESPONSE,
    Status,
    check,
    failure,
    flags,
    load,
)
from services.tape.endpoints.xrootd_files import XRootDReader, XRootDWriter

_BATCH = 1000
_BATCH_SECONDS = 60
_HEALTH_SECONDS = 10
# Checksums may be computed on demand; slower than this and a write is taken for failed.
_SLOWEST_CHECKSUM = 20_000_000
_SHORTEST_TIMEOUT = 60

_EXISTS, _ONLINE, _ON_TAPE, _REQUESTED = "path_exists", "online", "on_tape", "requested"


class XRootDEndpoint:
    """A ``TapeEndpoint`` at ``root[s]://host[:port]//directory``.

    ``keytab`` is the shared secret for sss authentication; the client library reads one only in the
    life of a process. Nothing is sent before the first call.
    Raises InvalidArgument TAPE_BAD_URL.
    """

    def __init__(self, url: str, keytab: Path | None = None) -> None:
        parts = urlsplit(url)
        root = parts.path.strip("/")
        if parts.scheme not in ("root", "roots") or not parts.netloc or parts.path[:2] != "//":
            raise InvalidArgument(
                "TAPE_BAD_URL", f"{url!r} is no XRootD endpoint: use root://HOST:PORT//DIRECTORY"
            )
        self._client = load()
        self._flags = flags()
        self._server = f"{parts.scheme}://{parts.netloc}"
        self._root = "/" + root
        self._query = f"?xrd.wantprot=sss&xrd.sss={quote(str(keytab))}" if keytab else ""
        self._abandoned: deque[tuple[str, object]] = deque()
        self._fs = self._client.FileSystem(f"{self._server}/{self._query}")

    def create(self, path: str) -> XRootDWriter:
        """See `TapeEndpoint.create`."""
        access, how = self._flags.AccessMode, self._flags.OpenFlags
        mode = access.UR | access.UW | access.GR | access.OR
        self._remove_abandoned()
        file = self._client.File()
        # POSC: the server removes the file when its writer vanishes.
        status, _ = file.open(self._url(path), how.NEW | how.POSC, mode)
        check(status, "create", path)
        return XRootDWriter(self, path, file)

    def open(self, path: str) -> XRootDReader:
        """See `TapeEndpoint.open`."""
        file = self._client.File()
        status, _ = file.open(self._url(path), self._flags.OpenFlags.READ)
        if not status.ok:
            raise self._open_failure(status, path)
        return XRootDReader(path, file)

    def stat(self, paths: Sequence[str], *, sizes: bool = False) -> list[TapeFileState]:
        """See `TapeEndpoint.stat`."""
        states: list[TapeFileState] = []
        for batch in _batches(paths):
            answers = self._query_prepare(batch)
            states.extend(self._state(path, answers[self._full(path)], sizes) for path in batch)
        return states

    def stage(self, paths: Sequence[str]) -> dict[str, str]:
        """See `TapeEndpoint.stage`."""
        requests: dict[str, str] = {}
        for batch in _batches(paths):
            status, answer = self._prepare([], batch, self._flags.PrepareFlags.STAGE)
            if not _missing(status):  # every path of the batch
                check(status, "stage", _describe(batch))
                requests.update(dict.fromkeys(batch, _text(answer)))
        return requests

    def cancel(self, requests: Mapping[str, str]) -> None:
        """See `TapeEndpoint.cancel`."""
        for request in dict.fromkeys(requests.values()):
            paths = [path for path, of in requests.items() if of == request]
            for batch in _batches(paths):
                self._tolerant_prepare([request], batch, self._flags.PrepareFlags.CANCEL, "cancel")

    def release(self, paths: Sequence[str]) -> None:
        """See `TapeEndpoint.release`."""
        for batch in _batches(paths):
            self._tolerant_prepare([], batch, self._flags.PrepareFlags.EVICT, "release")

    def remove(self, path: str) -> None:
        """See `TapeEndpoint.remove`."""
        status, _ = self._fs.rm(self._full(path))
        if not _missing(status):
            check(status, "remove", path)

    def rename(self, old: str, new: str) -> None:
        """See `TapeEndpoint.rename`."""
        # A plain xrootd replaces the target without a word.
        status, _ = self._fs.stat(self._full(new))
        if status.ok:
            raise AlreadyExists("TAPE_FILE_EXISTS", f"the tape file {new} exists", path=new)
        if not _missing(status):
            raise failure(status, "look for", new)
        status, _ = self._fs.mv(self._full(old), self._full(new))
        check(status, "rename", old)

    def list(self, prefix: str = "") -> Iterator[TapeEntry]:
        """See `TapeEndpoint.list`."""
        for entry, is_pending in self._files(prefix):
            if not is_pending:
                yield entry

    def unfinished(self, older_than: float, *, remove: bool) -> Sequence[TapeEntry]:
        """See `TapeEndpoint.unfinished`; the server itself removes them somewhat later."""
        before = time.time() - older_than
        found = [entry for entry, is_pending in self._files("") if is_pending]
        old = [entry for entry in found if entry.modified <= before]
        for entry in old if remove else ():
            self.remove(entry.path)
        return old

    def healthy(self) -> str | None:
        """See `TapeEndpoint.healthy`."""
        try:
            status, _ = self._fs.stat(self._root, timeout=_HEALTH_SECONDS)
            check(status, "answer for", self._root)
            self._ask_prepare([self._root], _HEALTH_SECONDS)
            self._remove_abandoned()
        except NearlineError as error:
            return error.message
        return None

    def size(self, path: str) -> int:
        """The size of a file in bytes. Raises NotFound TAPE_FILE_NOT_FOUND."""
        status, info = self._fs.stat(self._full(path))
        check(status, "stat", path)
        return int(info.size)

    def adler32(self, path: str, size: int) -> int:
        """The checksum of a closed file of ``size`` bytes, as the server computes or keeps it."""
        argument = f"{self._full(path)}?cks.type=adler32"
        timeout = _SHORTEST_TIMEOUT + size // _SLOWEST_CHECKSUM
        code = self._flags.QueryCode.CHECKSUM
        status, answer = self._fs.query(code, argument, timeout=timeout)
        check(status, "compute the checksum of", path)
        kind, _, value = _text(answer).partition(" ")
        if kind != "adler32":
            raise _bad_answer(f"a checksum query with {_text(answer)!r}")
        return int(value, 16)

    def abandon(self, path: str, file: object) -> None:
        """Remove an unfinished file when the server answers again.

        ``file`` is kept until then: its destructor would close it, and closed it would persist.
        """
        self._abandoned.append((path, file))

    def _remove_abandoned(self) -> None:
        for _ in range(len(self._abandoned)):
            try:
                path, file = self._abandoned.popleft()
            except IndexError:  # Another thread has taken it.
                return
            try:
                self.remove(path)
            except NearlineError:
                self._abandoned.append((path, file))
                raise

    def _full(self, path: str) -> str:
        return f"{self._root}/{check_path(path)}"

    def _url(self, path: str) -> str:
        return f"{self._server}/{self._full(path)}{self._query}"

    def _open_failure(self, status: Status, path: str) -> NearlineError:
        error = failure(status, "open", path)
        if error.reason == "TAPE_ERROR":  # all that EOS says of an offline file
            found, info = self._fs.stat(self._full(path))
            if found.ok and info.flags & self._flags.StatInfoFlags.OFFLINE:
                return Offline(path)
        return error

    def _files(self, prefix: str) -> Iterator[tuple[TapeEntry, bool]]:
        """Every file below a directory, and whether its writer has yet to commit it."""
        directories = [check_path(prefix) if prefix else ""]
        while directories:
            directory = directories.pop()
            for name, info in self._entries(directory):
                path = f"{directory}/{name}" if directory else name
                if not is_path(path):
                    continue
                if info.flags & self._flags.StatInfoFlags.IS_DIR:
                    directories.append(path)
                else:
                    is_pending = bool(info.flags & self._flags.StatInfoFlags.POSC_PENDING)
                    yield TapeEntry(path, info.size, float(info.modtime)), is_pending

    def _entries(self, directory: str) -> Iterator[tuple[str, Any]]:
        """Names and stat information; without the latter in one go when a name has a newline."""
        full = f"{self._root}/{directory}".rstrip("/")
        status, entries = self._dirlist(full, self._flags.DirListFlags.STAT)
        if status.code == INVALID_RESPONSE:
            status, entries = self._dirlist(full, self._flags.DirListFlags.NONE)
        if _missing(status):
            return
        check(status, "list", directory or self._root)
        for entry in entries:
            info = entry.statinfo or self._fs.stat(f"{full}/{entry.name}")[1]
            if info is not None:  # else it was removed meanwhile
                yield entry.name, info

    def _dirlist(self, full: str, flag: int) -> tuple[Status, Any]:
        try:
            status, entries = self._fs.dirlist(full, flag)
        except (SystemError, UnicodeDecodeError) as error:
            raise Unavailable(
                "TAPE_ERROR", f"a file in {full} has a name that is not UTF-8; remove it to list"
            ) from error
        return status, entries

    def _prepare(self, first: Sequence[str], batch: Sequence[str], flag: int) -> tuple[Status, Any]:
        names = [*first, *map(self._full, batch)]
        status, answer = self._fs.prepare(names, flag, timeout=_BATCH_SECONDS)
        return status, answer

    def _tolerant_prepare(
        self, first: Sequence[str], batch: Sequence[str], flag: int, action: str
    ) -> None:
        """One missing path fails the whole request, and then nothing of it was done."""
        status, _ = self._prepare(first, batch, flag)
        if _missing(status) and len(batch) > 1:
            for path in batch:
                self._tolerant_prepare(first, [path], flag, action)
        elif not _missing(status):
            check(status, action, _describe(batch))

    def _query_prepare(self, batch: Sequence[str]) -> dict[str, dict[str, Any]]:
        full = [self._full(path) for path in batch]
        answers = {answer["path"]: answer for answer in self._ask_prepare(full)}
        if answers.keys() < set(full):
            raise _bad_answer("a prepare query without some of the paths")
        return answers

    def _ask_prepare(self, full: Sequence[str], timeout: int = 0) -> Sequence[dict[str, Any]]:
        """The answer for each path; the request id "0" is nobody's, the state does not need one."""
        argument = "\n".join(["0", *full])
        code = self._flags.QueryCode.PREPARE
        status, answer = self._fs.query(code, argument, timeout=timeout)
        check(status, "answer for", _describe(full))
        return _parsed(_text(answer))

    def _state(self, path: str, answer: dict[str, Any], sizes: bool) -> TapeFileState:
        exists = bool(answer[_EXISTS])
        return TapeFileState(
            path=path,
            exists=exists,
            size=self._size_or_none(path) if sizes and exists else None,
            online=bool(answer[_ONLINE]),
            on_tape=bool(answer[_ON_TAPE]),
            requested=bool(answer[_REQUESTED]),
            error=str(answer.get("error_text", "")) if exists else "",
        )

    def _size_or_none(self, path: str) -> int | None:
        try:
            return self.size(path)
        except NotFound:
            return None


def _parsed(text: str) -> list[dict[str, Any]]:
    """The responses of a prepare query; Unavailable TAPE_ERROR unless they are CTA's kind."""
    try:
        answers = json.loads(text)["responses"]
        complete = all(
            {"path", _EXISTS, _ONLINE, _ON_TAPE, _REQUESTED} <= answer.keys() for answer in answers
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise _bad_answer(f"a prepare query with {text[:200]!r}")
    return list(answers)


def _bad_answer(what: str) -> Unavailable:
    return Unavailable(
        "TAPE_ERROR", f"the tape endpoint answers {what}; it must answer as EOS with CTA does"
    )


def _missing(status: Status) -> bool:
    return not status.ok and isinstance(failure(status, "", ""), NotFound)


def _text(answer: bytes | None) -> str:
    return (answer or b"").split(b"\0", 1)[0].decode(errors="surrogateescape").strip()


def _describe(paths: Sequence[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def _batches(paths: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(paths), _BATCH):
        yield paths[start : start + _BATCH]
