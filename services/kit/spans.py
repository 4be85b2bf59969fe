"""Sets of file numbers as ranges: what task payloads carry instead of lists. Pure."""

from collections.abc import Iterable, Iterator

from nearline.type.v1 import storage_pb2


def to_ranges(numbers: Iterable[int]) -> list[storage_pb2.IdRange]:
    """The ranges that cover exactly ``numbers``, ascending and each as long as possible."""
    ranges: list[storage_pb2.IdRange] = []
    for number in sorted(set(numbers)):
        if ranges and ranges[-1].first + ranges[-1].count == number:
            ranges[-1].count += 1
        else:
            ranges.append(storage_pb2.IdRange(first=number, count=1))
    return ranges


def numbers_of(ranges: Iterable[storage_pb2.IdRange]) -> Iterator[int]:
    """Every number of ``ranges`` in their order."""
    for span in ranges:
        yield from range(span.first, span.first + span.count)


def count(ranges: Iterable[storage_pb2.IdRange]) -> int:
    """How many numbers ``ranges`` hold."""
    return sum(span.count for span in ranges)
