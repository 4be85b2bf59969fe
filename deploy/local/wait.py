"""Waiting for a condition with a bound, never for a fixed time."""

from __future__ import annotations

import time
from collections.abc import Callable

from deploy.local.errors import StackError

_FIRST_PAUSE = 0.01
_LONGEST_PAUSE = 0.25


def wait_until(probe: Callable[[], str | None], what: str, timeout: float) -> None:
    """Call ``probe`` until it returns None; a returned text says what is still missing.

    Raises StackError with the last text when ``timeout`` seconds have passed.
    """
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE
    while (missing := probe()) is not None:
        if time.monotonic() >= deadline:
            raise StackError(f"{what}: not ready after {timeout:g} s: {missing}")
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE)
