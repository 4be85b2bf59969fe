"""How files are dealt out to tasks: pure rules over numbers and sizes."""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator

from nearline.monitor.v1 import monitor_pb2 as ledger
from nearline.type.v1 import storage_pb2, task_pb2
from services.kit import spans
from services.kit.batches import Batch, Batches
from services.kit.jobs import new_task

Blob = storage_pb2.Blob
Attributes = storage_pb2.Attributes

# Files sorted at once: 16 bytes of memory each, and some 60 more while they are sorted.
_WINDOW = 1_000_000

MOST_BLOBS = 1000
"""Tape blobs in one bulk prepare."""


class SortedBatches:
    """As `Batches`, for files that come in the order of their names.

    A task's payload is short only where numbers follow one another, and numbers were given in the
    order of the walk; that is also the order of the bytes in the cache.
    """

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._numbers = array("q")
        self._sizes = array("q")

    def add(self, number: int, size: int) -> None:
        """A file of ``size`` bytes."""
        self._numbers.append(number)
        self._sizes.append(size)
        if len(self._numbers) >= _WINDOW:
            self._deal()

    def tasks(self) -> list[ledger.NewTask]:
        """All tasks."""
        self._deal()
        return self._batches.tasks()

    def _deal(self) -> None:
        for index in sorted(range(len(self._numbers)), key=self._numbers.__getitem__):
            self._batches.add(self._numbers[index], self._sizes[index])
        self._numbers, self._sizes = array("q"), array("q")


class UploadPlan:
    """Which UPLOAD tasks the files of a scan become: packs of small files, large ones apart."""

    def __init__(self, *, threshold: int, pack_bytes: int, pack_files: int) -> None:
        self._threshold = threshold
        kind = task_pb2.Task.UPLOAD
        self._small = Batches(kind, most_files=pack_files, most_bytes=pack_bytes)
        self._large = Batches(kind, most_files=pack_files, most_bytes=8 * pack_bytes)

    def add(self, number: int, size: int) -> None:
        """A registered file of ``size`` bytes."""
        (self._small if size < self._threshold else self._large).add(number, size)

    def tasks(self) -> list[ledger.NewTask]:
        """All tasks."""
        return self._small.tasks() + self._large.tasks()


Inode = tuple[int, str, bytes]


class ReadPlan:
    """Which tasks bring a set of files back, from where they are now."""

    def __init__(self, *, download: bool, most_files: int, most_bytes: int) -> None:
        """``download``: to POSIX (GET); otherwise to the cache only (STAGE)."""
        self._download = download
        self._downloads = SortedBatches(
            Batches(task_pb2.Task.DOWNLOAD, most_files=most_files, most_bytes=most_bytes)
        )
        self._directories: list[int] = []
        self._linked: defaultdict[Inode, list[int]] = defaultdict(list)
        self._tape: dict[tuple[int, str], Batch] = {}

    def add(self, file: storage_pb2.StoredFile) -> bool:
        """Plan one file; False when it has no readable copy."""
        kind, size = file.attributes.type, file.attributes.size
        if kind == Attributes.DIRECTORY:
            self._directories.append(file.id)
            return True
        if file.attributes.hardlink:
            self._linked[inode(file)].append(file.id)
        on_tape = next((piece for piece in file.slices if piece.tier == Blob.TAPE), None)
        cached = any(piece.tier == Blob.CACHE for piece in file.slices)
        if cached or kind == Attributes.SYMLINK or size == 0:
            self._downloads.add(file.id, size)
        elif on_tape is not None:
            batch = self._tape.setdefault((on_tape.blob_id, on_tape.key), Batch())
            batch.numbers.append(file.id)
            batch.bytes += size
        else:
            return False
        return True

    @property
    def at_hand(self) -> list[task_pb2.FilesTask]:
        """For a STAGE: files that need nothing, as they are in the cache already."""
        return [task_pb2.FilesTask.FromString(task.payload) for task in self._downloads.tasks()]

    @property
    def directories(self) -> list[int]:
        """Numbers of the directories among the files."""
        return self._directories

    def tasks(self) -> list[ledger.NewTask]:
        """Tasks that follow."""
        tasks = self._downloads.tasks() if self._download else []
        tasks += map(self._stage, _in_groups(self._tape))
        # The names of one file may come back by different tasks: they are joined at the end.
        names = [number for several in self._linked.values() if several[1:] for number in several]
        if self._download and (self._directories or names):
            payload = task_pb2.FilesTask(files=spans.to_ranges([*self._directories, *names]))
            finish = task_pb2.Task.FINISH_DIRECTORIES
            tasks.append(new_task(finish, payload, last=True, files=len(self._directories)))
        return tasks

    def _stage(self, blobs: list[tuple[int, str]]) -> ledger.NewTask:
        payload = task_pb2.StageTask()
        for key in blobs:
            batch = self._tape[key]
            payload.recalls.add(
                blob_id=key[0],
                key=key[1],
                files=spans.to_ranges(batch.numbers),
                bytes=batch.bytes,
                download=self._download,
            )
        files = sum(len(self._tape[key].numbers) for key in blobs)
        return new_task(task_pb2.Task.STAGE, payload, files=files)


def inode(file: storage_pb2.StoredFile) -> Inode:
    """What names of the same file share, where `hardlink` is set."""
    return (file.holding_id, file.attributes.hardlink, file.digest)


def without_nested(paths: Iterable[bytes]) -> list[bytes]:
    """``paths`` without repeats and without those below another of them."""
    kept: list[bytes] = []
    # Sorted by components, everything below a path follows it directly.
    for path in sorted(set(paths), key=lambda path: path.split(b"/")):
        if not kept or not _is_below(path, kept[-1]):
            kept.append(path)
    return kept


def _is_below(path: bytes, directory: bytes) -> bool:
    return path.startswith(directory.rstrip(b"/") + b"/")


def _in_groups(blobs: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    ordered = sorted(blobs)
    for start in range(0, len(ordered), MOST_BLOBS):
        yield ordered[start : start + MOST_BLOBS]
