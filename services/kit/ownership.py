"""Whose bytes these are: names that tell their blob, and writers that tell their task."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_KEY = re.compile(r"[1-9][0-9]*/([1-9][0-9]{0,18})-[0-9a-f]{8}\.[a-z]+")
_TASK = re.compile(r"\btask ([1-9][0-9]*)$")

_task: ContextVar[int] = ContextVar("task", default=0)


def blob_key(holding_id: int, blob_id: int, salt: str, suffix: str) -> str:
    """The name of a blob in its tier; ``salt`` (8 hex digits) keeps it from being used twice."""
    return f"{holding_id}/{blob_id}-{salt}.{suffix}"


def blob_number(key: str) -> int | None:
    """The blob that a name was made for; None for a name that is not one of ours."""
    found = _KEY.fullmatch(key)
    return int(found[1]) if found else None


@contextmanager
def working_on(task: int) -> Iterator[None]:
    """What is written inside the block is written for this task of the ledger."""
    token = _task.set(task)
    try:
        yield
    finally:
        _task.reset(token)


def current_task() -> int:
    """The task that this thread works on; 0 for none."""
    return _task.get()


def names_task(task: int) -> str:
    """How a writer tells its task; empty for none."""
    return f"task {task}" if task else ""


def task_of(writer: str) -> int | None:
    """The task that a writer told, if any."""
    found = _TASK.search(writer)
    return int(found[1]) if found else None
