"""What work depends on is asked again and again, whatever a check does."""

from __future__ import annotations

import asyncio
import contextlib

from nearline.type.v1.task_pb2 import Task
from services.kit.breaker import Breaker, Patience
from services.kit.working import Watchdog


def test_a_check_that_crashes_is_asked_again() -> None:
    answers = iter([ValueError("a bug"), ValueError("a bug")])
    paused = []

    def check() -> str | None:
        paused.append(watchdog.paused())
        for error in answers:
            raise error
        recovered.set()
        return None

    async def watch() -> None:
        running = asyncio.create_task(watchdog.run())
        asked = asyncio.create_task(recovered.wait())
        await asyncio.wait({running, asked}, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    recovered = _Flag()
    patience = Patience(failures=1, first_pause=0.01, longest_pause=0.01)
    watchdog = Watchdog({"tape": check}, {Task.RECALL: ["tape"]}, {"tape": Breaker(patience)})
    asyncio.run(watch())
    assert paused == [frozenset(), {Task.RECALL}, {Task.RECALL}]


class _Flag:
    """Set in a thread, waited for in a loop."""

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        self._set = True

    async def wait(self) -> None:
        while not self._set:
            await asyncio.sleep(0.01)
