"""Pages of the stored files that match a path, a pattern or anything, by keyset.

Two ways lead to the files, and the right one depends on how many directories can match:

- few: the files of just these directories are taken by the (directory, name) index;
- many, or all: files are walked in the order of (holding, number) and their directories looked at.

`Walk` is a third one for whatever lies below a directory, in the order of directory and name, where
the order does not matter (GET): it costs the same per page however much there is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, TextClause, text

from services.catalog import paths
from services.catalog.filerows import COLUMNS, FileRow
from services.catalog.rules import FILE_REGISTERED
from services.catalog.scope import Scope, search_errors
from services.catalog.tables import PREFIX

FIRST_PAGE, LATER_PAGE = 1000, 10_000
"""Rows: the first page is soon there, later ones ask less often."""
_HOLDINGS_AT_ONCE = 256
_FEW_DIRECTORIES = 5000
_DIRECTORIES_AT_ONCE = 200
_WALK_FROM_FILES = 2_000_000

_BELOW = f"""("left"(d.path, {PREFIX}) >= :low AND "left"(d.path, {PREFIX}) < :high
    AND starts_with(d.path, :prefix))"""
_MATCHES = "(d.path || f.name) ~ :pattern"
_NOT_EARLIER = "NOT (d.path || f.name) ~ ANY(CAST(:earlier AS text[]))"
_EXACT = "(f.dir_id = :directory AND f.name = :name)"
_NEWEST = f"""f.id = (
    SELECT max(n.id) FROM file n WHERE n.dir_id = f.dir_id AND n.name = f.name
        AND n.holding_id = ANY(CAST(:scope AS bigint[])) AND n.state <> {FILE_REGISTERED})"""

_DIRECTORY = text("SELECT id FROM directory WHERE hash = :hash")
_BY_PATH = text(f"""
    SELECT w.n, f.*
    FROM unnest(CAST(:hashes AS bytea[]), CAST(:names AS text[]))
        WITH ORDINALITY AS w (hash, name, n)
    CROSS JOIN LATERAL (
        SELECT {COLUMNS} FROM directory d JOIN file f ON f.dir_id = d.id
        WHERE d.hash = w.hash AND f.name = w.name
            AND f.holding_id = ANY(CAST(:scope AS bigint[])) AND f.state <> {FILE_REGISTERED}
            AND (CAST(:put AS bigint) IS NULL OR f.put_id = :put)
        ORDER BY f.id DESC LIMIT 1
    ) AS f
    ORDER BY w.n
""")
_WITH_BELOW = text(f"""
    SELECT w.prefix FROM unnest(CAST(:lows AS text[]), CAST(:highs AS text[]),
        CAST(:prefixes AS text[])) AS w (low, high, prefix)
    WHERE (
        SELECT d.id FROM directory d WHERE "left"(d.path, {PREFIX}) >= w.low
            AND "left"(d.path, {PREFIX}) < w.high AND starts_with(d.path, w.prefix)
        ORDER BY "left"(d.path, {PREFIX}), d.id LIMIT 1
    ) IS NOT NULL
""")
_NEXT_DIRECTORIES = text(f"""
    SELECT d.id, "left"(d.path, {PREFIX}) AS start FROM directory d
    WHERE {_BELOW} AND ("left"(d.path, {PREFIX}), d.id) > (:start, :id)
    ORDER BY "left"(d.path, {PREFIX}), d.id LIMIT :limit
""")
_IN_DIRECTORIES = text(f"""
    SELECT DISTINCT ON (f.dir_id, f.name) f.dir_id, f.name, {COLUMNS}
    FROM file f JOIN directory d ON d.id = f.dir_id
    WHERE f.dir_id = ANY(CAST(:directories AS bigint[]))
        AND (f.dir_id, f.name) > (:directory, :name)
        AND f.holding_id = ANY(CAST(:scope AS bigint[])) AND f.state <> {FILE_REGISTERED}
        AND (CAST(:put AS bigint) IS NULL OR f.put_id = :put)
    ORDER BY f.dir_id, f.name, f.id DESC LIMIT :limit
""")


@dataclass(frozen=True, slots=True)
class Question:
    """What to find in a scope: nothing more (every file), a path, or a pattern."""

    scope: Scope
    path: str = ""
    recursive: bool = False
    """With ``path``: also everything below it."""
    pattern: str = ""
    earlier: tuple[str, ...] = ()
    """With ``pattern``: paths that match one of these are left out."""
    newest: bool = False
    descending: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """A question made ready: its conditions, and the directories if they are few."""

    question: Question
    conditions: tuple[str, ...]
    arguments: dict[str, Any]
    directories: list[int] | None

    def windows(self, behind: int) -> list[list[int]]:
        """Holdings to look at, some at a time, from the one numbered ``behind`` on."""
        descending = self.question.descending
        left = [
            number
            for number in self.question.scope.holdings
            if not behind or (number <= behind if descending else number >= behind)
        ]
        left.sort(reverse=descending)
        step = len(left) if self.directories is not None else _HOLDINGS_AT_ONCE
        return [left[at : at + step] for at in range(0, len(left), max(step, 1))]


def plan(connection: Connection, question: Question) -> Plan:
    """Find out which way leads to the files."""
    conditions, arguments = _path_conditions(connection, question)
    if question.newest:
        conditions.append(_NEWEST)
        arguments["scope"] = question.scope.holdings
    if question.scope.put_id is not None:
        conditions.append("f.put_id = :put")
        arguments["put"] = question.scope.put_id
    directories = _few_directories(connection, question, arguments)
    return Plan(question, tuple(conditions), arguments, directories)


def page(
    connection: Connection,
    plan: Plan,
    window: Sequence[int],
    behind: tuple[int, int] | None,
    limit: int,
) -> Sequence[FileRow]:
    """The next rows behind (holding, file) in a window of holdings."""
    arguments = {**plan.arguments, "window": list(window), "limit": limit}
    if behind is not None:
        arguments |= {"holding": behind[0], "file": behind[1]}
    if plan.directories is not None:
        arguments["directories"] = plan.directories
    statement = _statement(
        plan.conditions,
        few=plan.directories is not None,
        descending=plan.question.descending,
        has_behind=behind is not None,
    )
    with search_errors():
        return connection.execute(statement, arguments).all()


def exists(connection: Connection, question: Question) -> bool:
    """Whether anything matches."""
    ready = plan(connection, question)
    return any(page(connection, ready, window, None, 1) for window in ready.windows(0))


def by_path(connection: Connection, scope: Scope, wanted: Sequence[str]) -> dict[int, FileRow]:
    """The newest version of each path, by the path's place in the list."""
    parts = [paths.split(path) for path in wanted]
    arguments = {
        "hashes": [paths.directory_hash(directory) for directory, _ in parts],
        "names": [name for _, name in parts],
        "scope": scope.holdings,
        "put": scope.put_id,
    }
    return {row.n - 1: row for row in connection.execute(_BY_PATH, arguments)}


def with_directories(connection: Connection, prefixes: Sequence[str]) -> set[str]:
    """Those prefixes that some directory of the store has."""
    bounds = [_bounds(prefix) for prefix in prefixes]
    arguments = {
        "lows": [low for low, _ in bounds],
        "highs": [high for _, high in bounds],
        "prefixes": list(prefixes),
    }
    return set(connection.scalars(_WITH_BELOW, arguments))


def worth_walking(connection: Connection, prefix: str, files: int) -> bool:
    """Whether to go through the directories below ``prefix``, not through ``files`` files."""
    if files > _WALK_FROM_FILES:
        return True
    low, high = _bounds(prefix)
    arguments = {"low": low, "high": high, "prefix": prefix, "start": "", "id": 0}
    few = {**arguments, "limit": _FEW_DIRECTORIES}
    return len(connection.execute(_NEXT_DIRECTORIES, few).all()) < _FEW_DIRECTORIES


@dataclass(frozen=True, slots=True)
class Walk:
    """A place on the way through everything below a prefix; :meth:`next` makes the next one."""

    scope: Scope
    prefix: str
    start: str = ""
    last_directory: int = 0
    directories: tuple[int, ...] = ()
    behind: tuple[int, str] = (0, "")

    def next(self, connection: Connection) -> "tuple[Sequence[FileRow], Walk] | None":
        """The next rows (newest version of each path) and the place behind; None at the end."""
        if not self.directories:
            ahead = self._ahead(connection)
            return None if ahead is None else ahead.next(connection)
        arguments = {
            "directories": list(self.directories),
            "directory": self.behind[0],
            "name": self.behind[1],
            "scope": self.scope.holdings,
            "put": self.scope.put_id,
            "limit": LATER_PAGE,
        }
        rows = connection.execute(_IN_DIRECTORIES, arguments).all()
        if len(rows) == LATER_PAGE:
            return rows, replace(self, behind=(rows[-1].dir_id, rows[-1].name))
        return rows, replace(self, directories=(), behind=(0, ""))

    def _ahead(self, connection: Connection) -> "Walk | None":
        low, high = _bounds(self.prefix)
        arguments = {
            "low": low,
            "high": high,
            "prefix": self.prefix,
            "start": self.start,
            "id": self.last_directory,
            "limit": _DIRECTORIES_AT_ONCE,
        }
        rows = connection.execute(_NEXT_DIRECTORIES, arguments).all()
        if not rows:
            return None
        numbers = tuple(sorted(row.id for row in rows))
        return replace(self, start=rows[-1].start, last_directory=rows[-1].id, directories=numbers)


def _path_conditions(
    connection: Connection, question: Question
) -> tuple[list[str], dict[str, Any]]:
    if question.pattern:
        return _pattern_conditions(question)
    if not question.path:
        return [], {}
    directory, name = paths.split(question.path)
    hashed = {"hash": paths.directory_hash(directory)}
    arguments: dict[str, Any] = {
        # No row has number 0, so an unknown directory matches nothing.
        "directory": connection.scalar(_DIRECTORY, hashed) or 0,
        "name": name,
    }
    if not question.recursive:
        return [_EXACT], arguments
    prefix = paths.below(question.path)
    low, high = _bounds(prefix)
    return [f"({_EXACT} OR {_BELOW})"], {**arguments, "low": low, "high": high, "prefix": prefix}


def _pattern_conditions(question: Question) -> tuple[list[str], dict[str, Any]]:
    conditions: list[str] = [_MATCHES]
    arguments: dict[str, Any] = {"pattern": question.pattern}
    if question.earlier:
        conditions.append(_NOT_EARLIER)
        arguments["earlier"] = list(question.earlier)
    hint = paths.directory_hint(question.pattern)
    if hint is not None:
        condition, more = _hinted(hint)
        conditions.append(condition)
        arguments |= more
    return conditions, arguments


def _hinted(hint: paths.Hint) -> tuple[str, dict[str, str]]:
    if hint.anchored:
        low, high = _bounds(hint.text)
        return _BELOW, {"low": low, "high": high, "prefix": hint.text}
    escaped = hint.text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return "d.path LIKE :like", {"like": f"%{escaped}%"}


def _few_directories(
    connection: Connection, question: Question, arguments: dict[str, Any]
) -> list[int] | None:
    """Numbers of all directories that files can match in, None if they are many or any."""
    if question.path and not question.recursive:
        return [arguments["directory"]]
    bounded = (
        _BELOW if "prefix" in arguments else "d.path LIKE :like" if "like" in arguments else ""
    )
    if not bounded:
        return None
    statement = text(f"SELECT d.id FROM directory d WHERE {bounded} LIMIT {_FEW_DIRECTORIES + 1}")
    named = ("low", "high", "prefix", "like")
    wanted: dict[str, Any] = {key: arguments[key] for key in named if key in arguments}
    with search_errors():
        found = list(connection.scalars(statement, wanted))
    if len(found) > _FEW_DIRECTORIES:
        return None
    return [*found, arguments["directory"]] if question.path else found


@lru_cache(maxsize=256)
def _statement(
    conditions: tuple[str, ...], *, few: bool, descending: bool, has_behind: bool
) -> TextClause:
    compare, order = ("<", "DESC") if descending else (">", "ASC")
    wanted = [
        "f.holding_id = ANY(CAST(:window AS bigint[]))",
        f"f.state <> {FILE_REGISTERED}",
        *conditions,
    ]
    if has_behind:
        wanted.append(f"(f.holding_id, f.id) {compare} (:holding, :file)")
    if few:
        wanted.append("f.dir_id = ANY(CAST(:directories AS bigint[]))")
    # Materialized: else the wish for order and a limit would draw the planner to walk all files.
    return text(f"""
        WITH hit AS {"" if few else "NOT"} MATERIALIZED (
            SELECT {COLUMNS} FROM file f JOIN directory d ON d.id = f.dir_id
            WHERE {" AND ".join(wanted)}
        )
        SELECT * FROM hit ORDER BY holding_id {order}, id {order} LIMIT :limit
    """)


def _bounds(prefix: str) -> tuple[str, str]:
    """Between which starts of directories those with ``prefix`` (it ends in a slash) are."""
    if len(prefix) <= PREFIX:
        return prefix, paths.after(prefix)
    start = prefix[:PREFIX]
    # \x01 is the least character there is: no path holds it, as control characters are escaped.
    return start, start + "\x01"
