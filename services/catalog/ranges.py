"""Ranges of file numbers: checked, merged, and cut into pieces that one statement can serve."""

from collections.abc import Iterable, Iterator

from nearline.type.v1.storage_pb2 import IdRange
from services.catalog.rules import check_number

MOST_NUMBERS = 50_000_000
"""Most file numbers that one request may span."""

Range = tuple[int, int]
"""First and last number."""


def merged(ranges: Iterable[IdRange], field: str) -> list[Range]:
    """The ranges in ascending order without overlaps; InvalidArgument for a bad one."""
    done: list[Range] = []
    for first, last in sorted(_checked(entry, field) for entry in ranges):
        if done and first <= done[-1][1] + 1:
            done[-1] = (done[-1][0], max(last, done[-1][1]))
        else:
            done.append((first, last))
    check_number(sum(last - first + 1 for first, last in done), field, most=MOST_NUMBERS)
    return done


def pieces(ranges: Iterable[Range], size: int) -> Iterator[list[Range]]:
    """Lists of ranges that together hold at most ``size`` numbers each."""
    piece: list[Range] = []
    room = size
    for first, last in ranges:
        while first <= last:
            end = min(last, first + room - 1)
            piece.append((first, end))
            room -= end - first + 1
            first = end + 1
            if room == 0:
                yield piece
                piece, room = [], size
    if piece:
        yield piece


def _checked(entry: IdRange, field: str) -> Range:
    check_number(entry.first, f"{field}.first", least=1)
    check_number(entry.count, f"{field}.count", least=1, most=MOST_NUMBERS)
    return entry.first, entry.first + entry.count - 1
