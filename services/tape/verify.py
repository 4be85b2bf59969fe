"""Checks the digests of files inside a stream of bytes that passes once. Pure."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import _Hash


@dataclass(frozen=True, slots=True)
class Slice:
    """A file to check: ``length`` bytes from ``offset`` of the stream have this SHA-256."""

    file_id: int
    offset: int
    length: int
    digest: bytes


class SliceChecker:
    """Feed it a stream from its first byte; ``bad`` holds the files whose bytes differ.

    Slices do not overlap, unless they are the same (hard links). Memory does not depend on sizes.
    """

    def __init__(self, slices: Sequence[Slice]) -> None:
        self.bad: set[int] = set()
        # Directories, links and the like have no bytes to check.
        self._rest = sorted(
            (piece for piece in slices if piece.digest), key=lambda piece: -piece.offset
        )
        self._hash: _Hash = hashlib.sha256()
        self._at = 0

    def feed(self, data: bytes) -> None:
        """The next bytes of the stream."""
        view = memoryview(data)
        start, end = self._at, self._at + len(view)
        self._at = end
        while self._rest and self._rest[-1].offset <= end:
            piece = self._rest[-1]
            piece_end = piece.offset + piece.length
            self._hash.update(view[max(piece.offset - start, 0) : max(piece_end - start, 0)])
            if piece_end > end:
                return
            self._finish(piece)

    def finish(self) -> None:
        """The stream has ended: what is not complete is bad."""
        self.bad.update(piece.file_id for piece in self._rest)
        self._rest.clear()

    def _finish(self, piece: Slice) -> None:
        digest = self._hash.digest()
        self._hash = hashlib.sha256()
        while self._rest and _same(self._rest[-1], piece):
            if self._rest[-1].digest != digest:
                self.bad.add(self._rest[-1].file_id)
            self._rest.pop()


def _same(one: Slice, other: Slice) -> bool:
    return (one.offset, one.length) == (other.offset, other.length)
