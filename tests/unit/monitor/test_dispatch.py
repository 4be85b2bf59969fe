"""Who looks for work when: no look for nothing, and workers for small tasks first."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from nearline.type.v1.task_pb2 import Task
from services.monitor import dispatch
from services.monitor.dispatch import Dispatcher, Vain
from services.monitor.leases import Leased, Registration, Taken

LARGE = Registration(worker=1, session=1, most_lost=3, most_of_one=2)
SMALL = Registration(worker=2, session=1, most_lost=3, most_of_one=1, small_only=True)
KINDS = [Task.UPLOAD, Task.SCAN]


class Database:
    """Answers looks as told; the last answer again and again."""

    def __init__(self, *answers: Taken) -> None:
        self._answers = list(answers)
        self.looks: list[tuple[int, list[int]]] = []

    async def write(self, _: Any, stream: Registration, kinds: Sequence[int], most: int) -> Taken:
        self.looks.append((stream.worker, sorted(kinds)))
        await asyncio.sleep(0)
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def held_back() -> Taken:
    return Taken(held_back=True)


def one_task() -> Taken:
    return Taken(leased=[Leased(7, 1, 1, Task.UPLOAD, b"", None, 1)])


async def begun(dispatcher: Dispatcher, stream: Registration, vain: Vain) -> asyncio.Task[Any]:
    taking = asyncio.create_task(dispatcher.take(stream, lambda: KINDS, 1, vain))
    await asyncio.sleep(0.01)
    return taking


def test_a_stream_that_was_held_back_looks_again_only_at_what_is_new() -> None:
    async def run() -> None:
        database = Database(held_back(), held_back(), one_task())
        dispatcher = Dispatcher(database)  # type: ignore[arg-type]
        dispatcher.hint([Task.UPLOAD])
        taking = await begun(dispatcher, LARGE, {})
        dispatcher.stir()
        await asyncio.sleep(0.01)
        assert database.looks == [(1, [Task.UPLOAD])]
        dispatcher.hint([Task.SCAN])
        await asyncio.sleep(0.01)
        assert database.looks[1:] == [(1, [Task.SCAN])]
        dispatcher.hint([Task.UPLOAD])
        assert [task.task_id for task in await taking] == [7]

    asyncio.run(run())


def test_a_stream_looks_again_when_it_may_have_more_of_a_user() -> None:
    async def run() -> None:
        database = Database(held_back(), one_task())
        dispatcher = Dispatcher(database)  # type: ignore[arg-type]
        dispatcher.hint([Task.UPLOAD])
        vain: Vain = {}
        taking = await begun(dispatcher, LARGE, vain)
        vain.clear()
        dispatcher.stir()
        assert [task.task_id for task in await taking] == [7]

    asyncio.run(run())


@pytest.mark.parametrize("change", ["a task is ready", "a user may have more"])
def test_what_changes_during_a_look_is_looked_at(change: str) -> None:
    class Busy(Database):
        async def write(self, *arguments: Any) -> Taken:
            answer = await super().write(*arguments)
            if len(self.looks) > 1:
                return answer
            if change == "a task is ready":
                dispatcher.hint([Task.UPLOAD])
            else:
                vain.clear()
                dispatcher.stir()
            return answer

    async def run() -> None:
        taking = await begun(dispatcher, LARGE, vain)
        assert taking.done()
        assert [task.task_id for task in await taking] == [7]

    vain: Vain = {}
    dispatcher = Dispatcher(Busy(held_back(), one_task()))  # type: ignore[arg-type]
    dispatcher.hint([Task.UPLOAD])
    asyncio.run(run())


def test_workers_for_small_tasks_look_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_AFTER_SMALL_SECONDS", 0.05)

    async def run() -> None:
        database = Database(held_back())
        dispatcher = Dispatcher(database)  # type: ignore[arg-type]
        tasks = [await begun(dispatcher, stream, {}) for stream in (LARGE, SMALL)]
        dispatcher.hint([Task.UPLOAD])
        await asyncio.sleep(0.02)
        assert [worker for worker, _ in database.looks] == [2]
        await asyncio.sleep(0.1)
        assert [worker for worker, _ in database.looks] == [2, 1]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # With none of them waiting, nobody is waited for.
        left = await begun(dispatcher, LARGE, {})
        assert [worker for worker, _ in database.looks] == [2, 1, 1]
        left.cancel()

    asyncio.run(run())
