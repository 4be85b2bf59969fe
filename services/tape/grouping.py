"""Which cache blobs go into which aggregate: pure rules."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from nearline.type.v1 import storage_pb2

Blob = storage_pb2.Blob


@dataclass(frozen=True, slots=True)
class Limits:
    """When an aggregate is full, and how long blobs wait for company."""

    target_bytes: int
    most_members: int
    most_blobs: int
    flush_seconds: float


def form(blobs: Iterable[Blob], waited: float, limits: Limits) -> Iterator[list[Blob]]:
    """Aggregates of one holding's blobs, in the order they come.

    The last one, when it is not full, is formed only once its holding has ``waited`` (seconds, its
    oldest blob) for ``flush_seconds``: tape wants large files.
    """
    group: list[Blob] = []
    for blob in blobs:
        if group and not _has_room(group, blob, limits):
            yield group
            group = []
        group.append(blob)
    if group and (waited >= limits.flush_seconds or _is_full(group, limits)):
        yield group


def _has_room(group: Sequence[Blob], blob: Blob, limits: Limits) -> bool:
    return (
        _size(group) + blob.size <= limits.target_bytes
        and _members(group) + blob.files <= limits.most_members
        and len(group) < limits.most_blobs
    )


def _is_full(group: Sequence[Blob], limits: Limits) -> bool:
    return (
        _size(group) >= limits.target_bytes
        or _members(group) >= limits.most_members
        or len(group) >= limits.most_blobs
    )


def _size(group: Sequence[Blob]) -> int:
    return sum(blob.size for blob in group)


def _members(group: Sequence[Blob]) -> int:
    return sum(blob.files for blob in group)
