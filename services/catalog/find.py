"""Streams of files for users (find) and for workers (resolve), page by page.

No page holds a connection while its receiver takes it: each one is a question of its own.
"""

from collections.abc import AsyncIterator, Callable, Sequence

from sqlalchemy import Connection

from nearline.catalog.v1.catalog_pb2 import (
    FindFilesRequest,
    FindFilesResponse,
    ResolveFilesRequest,
    ResolveFilesResponse,
)
from nearline.type.v1.storage_pb2 import StoredFile
from services.catalog import blobs, cursors, filerows, paths, rules, scope, search, usage
from services.catalog.filerows import FileRow
from services.catalog.scope import Scope
from services.catalog.search import FIRST_PAGE, LATER_PAGE, Plan, Question, Walk
from services.kit.db import Database

MESSAGE = 1000
"""Most files of a message."""
MOST_PATHS = 1000

_Finder = Callable[[Scope, Sequence[str], list[str]], AsyncIterator[Sequence[FileRow]]]
"""Gives the files of a batch of paths; those that mean nothing are put into the list."""


def check(request: FindFilesRequest) -> None:
    """InvalidArgument for a question that cannot mean anything."""
    selector = request.selector
    scope.check_selector(selector.holdings, "selector.holdings")
    rules.check_number(request.limit, "limit")
    if selector.regex and selector.recursive:
        raise rules.invalid("selector.recursive", "and selector.regex exclude each other")
    if selector.regex:
        rules.check_pattern(selector.path, "selector.path")
    elif selector.path:
        paths.clean(selector.path, "selector.path")


async def find(database: Database, request: FindFilesRequest) -> AsyncIterator[FindFilesResponse]:
    """The files that match, in batches with cursors."""
    check(request)
    asked = cursors.fingerprint(request.selector, request.descending)
    behind = cursors.decode(request.cursor, asked)
    ready = await database.read(_plan, request)
    left = request.limit or None
    async for rows in _pages(database, ready, behind, left):
        for at in range(0, len(rows), MESSAGE):
            part = rows[at : at + MESSAGE]
            files = await database.read(filerows.found_files, part)
            cursor = cursors.encode(asked, part[-1].holding_id, part[-1].id)
            yield FindFilesResponse(files=files, cursor=cursor)


class Resolver:
    """Looks up batches of paths in one scope."""

    def __init__(self, database: Database, header: ResolveFilesRequest.Header) -> None:
        scope.check_selector(header.holdings, "header.holdings")
        self._database = database
        self._header = header
        self._scope: Scope | None = None

    async def batch(self, wanted: Sequence[str]) -> AsyncIterator[ResolveFilesResponse]:
        """Files that the paths mean, each once, and at last the paths that mean nothing."""
        rules.check_number(len(wanted), "batch.paths", least=1, most=MOST_PATHS)
        if self._scope is None:
            self._scope = await self._database.read(scope.find, self._header.holdings)
        unmatched: list[str] = []
        found = self._finder()
        async for rows in found(self._scope, wanted, unmatched):
            async for answer in self._messages(rows):
                yield answer
        yield ResolveFilesResponse(unmatched=unmatched, batch_done=True)

    def _finder(self) -> _Finder:
        if self._header.exact:
            return self._exact
        return self._patterns if self._header.regex else self._paths

    async def _exact(
        self, scope: Scope, wanted: Sequence[str], unmatched: list[str]
    ) -> AsyncIterator[Sequence[FileRow]]:
        unique = list(dict.fromkeys(paths.clean(path, "batch.paths") for path in wanted))
        exact = await self._database.read(search.by_path, scope, unique)
        yield list(exact.values())
        unmatched += [path for at, path in enumerate(unique) if at not in exact]

    async def _patterns(
        self, scope: Scope, patterns: Sequence[str], unmatched: list[str]
    ) -> AsyncIterator[Sequence[FileRow]]:
        earlier: tuple[str, ...] = ()
        for pattern in dict.fromkeys(patterns):
            rules.check_pattern(pattern, "batch.paths")
            question = Question(scope, pattern=pattern, earlier=earlier, newest=True)
            matched = False
            async for rows in self._all(question):
                matched = True
                yield rows
            # What it matches may all have come with an earlier pattern.
            if not matched and not await self._exists(question, earlier):
                unmatched.append(pattern)
            earlier = (*earlier, pattern)

    async def _exists(self, question: Question, earlier: Sequence[str]) -> bool:
        whole = Question(question.scope, pattern=question.pattern)
        return bool(earlier) and await self._database.read(search.exists, whole)

    async def _paths(
        self, scope: Scope, wanted: Sequence[str], unmatched: list[str]
    ) -> AsyncIterator[Sequence[FileRow]]:
        unique = list(dict.fromkeys(paths.clean(path, "batch.paths") for path in wanted))
        exact = await self._database.read(search.by_path, scope, unique)
        prefixes = [paths.below(path) for path in unique]
        present = await self._database.read(search.with_directories, prefixes)
        tops = paths.outermost(present)
        covering = frozenset(tops)
        yield [
            row
            for at, row in exact.items()
            if not paths.covered(paths.split(unique[at])[0], covering)
        ]
        matched = {unique[at] for at in exact}
        for top in tops:
            async for rows in self._below(scope, top):
                if rows:
                    matched.add(top.removesuffix("/") or "/")
                    yield rows
        for path, prefix in zip(unique, prefixes, strict=True):
            if path not in matched and not await self._any_below(scope, path, prefix, covering):
                unmatched.append(path)

    async def _any_below(
        self, scope: Scope, path: str, prefix: str, covering: frozenset[str]
    ) -> bool:
        """Whether a path that lies below another one of the batch has files."""
        if prefix in covering or not paths.covered(prefix, covering):
            return False
        question = Question(scope, path=path, recursive=True)
        return await self._database.read(search.exists, question)

    async def _below(self, scope: Scope, prefix: str) -> AsyncIterator[Sequence[FileRow]]:
        if not await self._database.read(_walking, scope, prefix):
            question = Question(scope, path=prefix, recursive=True, newest=True)
            async for rows in self._all(question):
                yield rows
            return
        step = await self._database.read(Walk(scope, prefix).next)
        while step is not None:
            yield step[0]
            step = await self._database.read(step[1].next)

    async def _all(self, question: Question) -> AsyncIterator[Sequence[FileRow]]:
        ready = await self._database.read(search.plan, question)
        async for rows in _pages(self._database, ready, None, None):
            yield rows

    async def _messages(self, rows: Sequence[FileRow]) -> AsyncIterator[ResolveFilesResponse]:
        for at in range(0, len(rows), MESSAGE):
            files, stale = await self._database.read(_stored, rows[at : at + MESSAGE])
            if stale:
                await self._database.write(blobs.touch, stale)
            yield ResolveFilesResponse(files=files)


async def _pages(
    database: Database, plan: Plan, behind: tuple[int, int] | None, left: int | None
) -> AsyncIterator[Sequence[FileRow]]:
    """Rows behind a place, at most ``left`` of them."""
    size = FIRST_PAGE
    for window in plan.windows(behind[0] if behind else 0):
        full = True
        while full and left != 0:
            limit = size if left is None else min(size, left)
            rows = await database.read(search.page, plan, window, behind, limit)
            full, size = len(rows) == limit, LATER_PAGE
            if rows:
                behind = rows[-1].holding_id, rows[-1].id
                left = None if left is None else left - len(rows)
                yield rows


def _plan(connection: Connection, request: FindFilesRequest) -> Plan:
    selector = request.selector
    question = Question(
        scope.find(connection, selector.holdings),
        path="" if selector.regex else selector.path,
        recursive=selector.recursive,
        pattern=selector.path if selector.regex else "",
        newest=selector.newest,
        descending=request.descending,
    )
    return search.plan(connection, question)


def _walking(connection: Connection, scope: Scope, prefix: str) -> bool:
    return search.worth_walking(connection, prefix, usage.files_in(connection, scope.holdings))


def _stored(connection: Connection, rows: Sequence[FileRow]) -> tuple[list[StoredFile], list[int]]:
    files, slices = filerows.stored_files(connection, rows)
    return files, filerows.stale_blobs(slices)
