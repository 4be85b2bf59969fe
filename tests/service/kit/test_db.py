"""Transactions, reads, streams and COPY on a real PostgreSQL, and what becomes of its failures."""

import asyncio
import socket
import threading
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from sqlalchemy import Connection, exc, text
from sqlalchemy.pool import QueuePool

from services.kit.config import DatabaseConfig
from services.kit.db import Database, copy_into
from services.kit.errors import Aborted, DeadlineExceeded, Unavailable


def execute(connection: Connection, /, sql: str, **values: Any) -> Any:
    result = connection.execute(text(sql), values)
    return result.fetchall() if result.returns_rows else None


def kill_others(connection: Connection) -> None:
    execute(
        connection,
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()",
    )


@pytest.fixture
def numbers(database: Database) -> Database:
    database.write_sync(execute, "create table number (n int primary key, v int not null)")
    database.write_sync(execute, "insert into number select n, 0 from generate_series(1, 10) n")
    return database


def test_a_write_is_committed_and_a_failed_one_leaves_nothing(numbers: Database) -> None:
    def fail(connection: Connection) -> None:
        execute(connection, "delete from number")
        raise KeyError("no")

    async def test() -> int:
        await numbers.write(execute, "update number set v = :v", v=7)
        with pytest.raises(KeyError):
            await numbers.write(fail)
        rows = await numbers.read(execute, "select sum(v) from number")
        return int(rows[0][0])

    assert asyncio.run(test()) == 70


def test_an_acknowledgement_is_on_disk_whatever_the_server_prefers(database: Database) -> None:
    # The server of the tests is started with synchronous_commit = off.
    assert database.read_sync(execute, "show synchronous_commit") == [("on",)]


def test_errors_of_statements_are_left_alone(numbers: Database) -> None:
    with pytest.raises(exc.IntegrityError):
        numbers.write_sync(execute, "insert into number values (1, 1)")
    with pytest.raises(exc.ProgrammingError):
        numbers.read_sync(execute, "select 1 from nowhere")


def test_a_read_holds_no_snapshot(numbers: Database) -> None:
    def twice(connection: Connection) -> tuple[Any, Any]:
        before = execute(connection, "select sum(v) from number")
        numbers.write_sync(execute, "update number set v = 1")
        return before, execute(connection, "select sum(v) from number")

    before, after = numbers.read_sync(twice)
    assert (before[0][0], after[0][0]) == (0, 10)


def test_a_deadlock_is_resolved_by_repeating(numbers: Database) -> None:
    meeting = threading.Barrier(2)
    runs: list[int] = []

    def update(connection: Connection, first: int, second: int) -> None:
        runs.append(first)
        execute(connection, "update number set v = v + 1 where n = :n", n=first)
        if len(runs) <= 2:
            meeting.wait(30)
        execute(connection, "update number set v = v + 1 where n = :n", n=second)

    async def test() -> None:
        await asyncio.gather(numbers.write(update, 1, 2), numbers.write(update, 2, 1))

    asyncio.run(test())
    assert len(runs) == 3
    rows = numbers.read_sync(execute, "select v from number where n <= 2")
    assert [row[0] for row in rows] == [2, 2]


def test_endless_conflicts_are_aborted(numbers: Database) -> None:
    def conflict(connection: Connection) -> None:
        execute(connection, "do $$ begin raise serialization_failure; end $$")

    with pytest.raises(Aborted) as caught:
        numbers.write_sync(conflict)
    assert caught.value.transient


def test_a_slow_statement_is_a_deadline(database: Database) -> None:
    with pytest.raises(DeadlineExceeded, match="STATEMENT_TIMEOUT"):
        database.read_sync(execute, "select pg_sleep(60)")


def fill_pool(database: Database) -> None:
    """Leave as many idle connections as the pool keeps."""
    with ExitStack() as stack:
        for _ in range(4):
            execute(stack.enter_context(database.engine.connect()), "select 1")


@pytest.mark.parametrize("method", ["write_sync", "read_sync"])
def test_a_restarted_server_is_found_again(numbers: Database, method: str) -> None:
    run = getattr(numbers, method)
    fill_pool(numbers)
    numbers.write_sync(kill_others)
    assert run(execute, "select count(*) from number")[0][0] == 10


def test_one_dead_connection_found_by_copy_drops_the_others_too(
    numbers: Database, database_config: DatabaseConfig
) -> None:
    runs: list[int] = []

    def copy(connection: Connection) -> None:
        runs.append(1)
        copy_into(connection, "number", ("n", "v"), [(11, 0)])

    fill_pool(numbers)
    killer = Database(database_config)
    killer.write_sync(kill_others)
    killer.close()
    numbers.write_sync(copy)
    assert len(runs) == 2


def test_a_transaction_whose_connection_dies_is_repeated(numbers: Database) -> None:
    runs: list[int] = []

    def dies_once(connection: Connection) -> None:
        runs.append(1)
        execute(connection, "update number set v = v + 1 where n = 1")
        if len(runs) == 1:
            with numbers.engine.connect() as other:
                kill_others(other)
        execute(connection, "update number set v = v + 1 where n = 2")

    numbers.write_sync(dies_once)
    assert len(runs) == 2
    rows = numbers.read_sync(execute, "select v from number where n <= 2")
    assert [row[0] for row in rows] == [1, 1]


def test_a_copy_whose_connection_dies_is_repeated(numbers: Database) -> None:
    runs: list[int] = []

    def dies_once(connection: Connection) -> None:
        runs.append(1)
        if len(runs) == 1:
            execute(connection, "select 1")
            with numbers.engine.connect() as other:
                kill_others(other)
        copy_into(connection, "number", ("n", "v"), [(11, 0)])

    numbers.write_sync(dies_once)
    assert len(runs) == 2
    assert numbers.read_sync(execute, "select count(*) from number")[0][0] == 11


def test_a_lost_commit_is_the_callers_to_repeat(numbers: Database) -> None:
    runs: list[int] = []

    def dies_before_commit(connection: Connection) -> None:
        runs.append(1)
        execute(connection, "update number set v = 1")
        with numbers.engine.connect() as other:
            kill_others(other)

    with pytest.raises(Unavailable) as caught:
        numbers.write_sync(dies_before_commit)
    assert caught.value.retry_after == 1
    assert len(runs) == 1


def unreachable(config: DatabaseConfig) -> DatabaseConfig:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return replace(config, port=closed.getsockname()[1])


def test_an_unreachable_server_is_unavailable(database_config: DatabaseConfig) -> None:
    database = Database(unreachable(database_config))
    for run in (database.read_sync, database.write_sync):
        with pytest.raises(Unavailable, match="DATABASE_UNAVAILABLE") as caught:
            run(execute, "select 1")
        assert caught.value.retry_after == 1


def test_the_password_is_read_for_each_connection(database_config: DatabaseConfig) -> None:
    database = Database(database_config)
    good = database_config.password.read()
    database_config.password.path.write_text("wrong")
    with pytest.raises(Unavailable) as caught:
        database.read_sync(execute, "select 1")
    assert good not in str(caught.value)
    database_config.password.path.write_text(good)
    assert database.read_sync(execute, "select 1") == [(1,)]


def test_more_callers_than_threads_wait_in_line(numbers: Database) -> None:
    async def test() -> None:
        await asyncio.gather(
            *(numbers.write(execute, "update number set v = v + 1 where n = 3") for _ in range(50))
        )

    asyncio.run(test())
    assert numbers.read_sync(execute, "select v from number where n = 3") == [(50,)]


def test_a_stream_comes_in_batches_and_gives_its_connection_back(database: Database) -> None:
    statement = text("select n from generate_series(1, :most) n")

    async def test() -> None:
        sizes = [len(rows) async for rows in database.stream(statement, {"most": 25}, batch=10)]
        assert sizes == [10, 10, 5]
        async with aclosing(database.stream(statement, {"most": 10**5}, batch=10)) as batches:
            async for rows in batches:
                assert [row.n for row in rows] == list(range(1, 11))
                break
        assert checked_out(database) == 0

    asyncio.run(test())


def checked_out(database: Database) -> int:
    pool = database.engine.pool
    assert isinstance(pool, QueuePool)
    return pool.checkedout()


def test_a_stream_whose_connection_dies_is_unavailable(numbers: Database) -> None:
    async def test() -> None:
        stream = numbers.stream(text("select n from number"), batch=2)
        await anext(stream)
        await numbers.read(kill_others)
        with pytest.raises(Unavailable):
            async for _ in stream:
                pass
        assert checked_out(numbers) == 0

    asyncio.run(test())


def test_a_cancelled_stream_gives_its_connection_back(database: Database) -> None:
    async def drain(stream: AsyncGenerator[Any, None]) -> None:
        async with aclosing(stream) as batches:
            async for _ in batches:
                started.set()

    async def test() -> None:
        slow = text("select n, pg_sleep(0.2) from generate_series(1, 1000) n")
        task = asyncio.create_task(drain(database.stream(slow, batch=1)))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert checked_out(database) == 0

    started = asyncio.Event()
    asyncio.run(test())


class Colour(IntEnum):
    """An enum as tables use it."""

    RED = 3


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "text": st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
    | st.sampled_from(["\\N", "\\.", "\\", "\t", "\n", "\r\n", "a\\tb", ""]),
    "bytea": st.binary(),
    "bigint": st.integers(-(2**63), 2**63 - 1),
    "float8": st.floats(allow_nan=False),
    "boolean": st.booleans(),
    "uuid": st.uuids(),
    "numeric": st.decimals(allow_nan=False, allow_infinity=False, places=3),
    "timestamptz": st.datetimes(
        datetime(1900, 1, 1),
        datetime(2900, 1, 1),
        timezones=st.just(UTC),
    ),
    "smallint": st.sampled_from(Colour),
}


@pytest.fixture
def every_type(database: Database) -> Database:
    columns = ", ".join(f'"a {kind}" {kind}' for kind in VALUES)
    database.write_sync(execute, f'create table "Odd name" (n int, {columns})')
    return database


@given(st.lists(st.tuples(*(st.none() | values for values in VALUES.values())), max_size=20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_copied_values_come_back_as_they_were(every_type: Database, rows: list[Any]) -> None:
    def there_and_back(connection: Connection) -> list[Any]:
        execute(connection, 'truncate "Odd name"')
        columns = ["n", *(f"a {kind}" for kind in VALUES)]
        numbered = ((n, *row) for n, row in enumerate(rows))
        assert copy_into(connection, "Odd name", columns, numbered) == len(rows)
        return list(execute(connection, 'select * from "Odd name" order by n'))

    def plain(row: Any) -> tuple[Any, ...]:
        return tuple(bytes(v) if isinstance(v, memoryview) else v for v in row)

    got = every_type.write_sync(there_and_back)
    assert [plain(row)[1:] for row in got] == rows


def test_a_copy_of_many_rows_is_one_transaction(numbers: Database) -> None:
    def copy(connection: Connection, most: int) -> int:
        rows = ((n, n) for n in range(11, most))
        return copy_into(connection, "number", ("n", "v"), rows)

    def fail(connection: Connection) -> None:
        copy(connection, 30_000)
        raise KeyError("no")

    with pytest.raises(KeyError):
        numbers.write_sync(fail)
    assert numbers.write_sync(copy, 25_011) == 25_000
    assert numbers.read_sync(execute, "select count(*), max(n) from number") == [(25_010, 25_010)]


@pytest.mark.parametrize(
    ("value", "error"), [("a\0b", ValueError), ("\udcff", ValueError), ([1], TypeError)]
)
def test_what_postgresql_cannot_store_is_refused(
    numbers: Database, value: Any, error: type[Exception]
) -> None:
    numbers.write_sync(execute, "create table word (w text)")
    with pytest.raises(error):
        numbers.write_sync(copy_into, "word", ("w",), [(value,)])
