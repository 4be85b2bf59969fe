"""Bounded threads for blocking libraries behind asyncio."""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Threads:
    """At most ``workers`` threads; more work waits in line. Threads start when first needed."""

    def __init__(self, name: str, workers: int) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=name)

    async def run(self, fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """``fn(*args, **kwargs)`` in a thread that sees the caller's context variables.

        Cancelling the caller does not stop a thread that already runs.
        """
        call = partial(contextvars.copy_context().run, fn, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    def close(self) -> None:
        """Drop what waits in line and return without waiting for what runs."""
        self._pool.shutdown(wait=False, cancel_futures=True)


@lru_cache(maxsize=1)
def _shared() -> Threads:
    return Threads("blocking", workers=16)


async def in_thread(fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """As :meth:`Threads.run` in the process's shared threads, for short blocking calls."""
    return await _shared().run(fn, *args, **kwargs)
