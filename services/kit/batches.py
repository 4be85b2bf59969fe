"""Dealing files out to tasks: pure rules over numbers and sizes."""

from dataclasses import dataclass, field

from nearline.monitor.v1 import monitor_pb2 as ledger
from nearline.type.v1 import task_pb2
from services.kit import spans
from services.kit.jobs import new_task

# Costs in seconds of work, for the fair order: what one process moves here, roughly.
_FILES_PER_SECOND = 2000
_BYTES_PER_SECOND = 200 << 20


@dataclass(slots=True)
class Batch:
    """Files by their numbers, and their bytes."""

    numbers: list[int] = field(default_factory=list)
    bytes: int = 0


class Batches:
    """Collects files into tasks of at most so many files and bytes; a larger file is one alone."""

    def __init__(
        self, kind: task_pb2.Task.Kind.ValueType, *, most_files: int, most_bytes: int
    ) -> None:
        self._kind = kind
        self._most_files = most_files
        self._most_bytes = most_bytes
        self._batch = Batch()
        self._tasks: list[ledger.NewTask] = []

    def add(self, number: int, size: int) -> None:
        """Put a file of ``size`` bytes into the current task, or the next if it is full."""
        full = len(self._batch.numbers) >= self._most_files
        if full or self._batch.bytes + size > self._most_bytes:
            self._close()
        self._batch.numbers.append(number)
        self._batch.bytes += size

    def tasks(self) -> list[ledger.NewTask]:
        """All tasks, the unfilled one included."""
        self._close()
        return self._tasks

    def _close(self) -> None:
        batch, self._batch = self._batch, Batch()
        if batch.numbers:
            payload = task_pb2.FilesTask(files=spans.to_ranges(batch.numbers), bytes=batch.bytes)
            files = len(batch.numbers)
            self._tasks.append(
                new_task(self._kind, payload, cost=cost(files, batch.bytes), files=files)
            )


def cost(files: int, size: int) -> float:
    """Seconds of work that moving so many files and bytes is about."""
    return max(files / _FILES_PER_SECOND + size / _BYTES_PER_SECOND, 0.01)
