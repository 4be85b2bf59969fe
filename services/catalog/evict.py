"""Claiming cache blobs for eviction, a few at a time, so that no transaction gets long."""

import time
from typing import Any

from sqlalchemy import Row

from nearline.catalog.v1.catalog_pb2 import ClaimEvictionRequest
from nearline.type.v1.storage_pb2 import Blob
from services.catalog import removal
from services.catalog.rules import check_number
from services.kit import crash
from services.kit.db import Database

MOST = 1000
_AT_ONCE = 32
# The caller asks again; what was claimed by then must reach it before its deadline.
_SECONDS = 10.0


async def claim(database: Database, request: ClaimEvictionRequest) -> list[Blob]:
    """Blobs that are REMOVING now: what earlier claims left, then the least recently used.

    Fewer than asked for come when time runs out; a repeat returns them again, and more.
    """
    check_number(request.holding_id, "holding_id")
    check_number(request.bytes, "bytes")
    limit = min(request.limit or MOST, MOST)
    done = await database.read(removal.unfinished, request.holding_id, limit)
    behind: Row[Any] | None = None
    end = time.monotonic() + _SECONDS
    while (few := _few(request, done, limit)) and time.monotonic() < end:
        found = await database.read(removal.candidates, request.holding_id, behind, few)
        if not found:
            break
        left = max(0, request.bytes - _size(done))
        done += await database.write(removal.evict, [row.id for row in found], left)
        crash.point("catalog.evict.after_commit")
        behind = found[-1]
    return done


def _few(request: ClaimEvictionRequest, done: list[Blob], limit: int) -> int:
    """How many blobs to look at next; 0 when enough is claimed."""
    if request.bytes and _size(done) >= request.bytes:
        return 0
    return min(_AT_ONCE, limit - len(done))


def _size(blobs: list[Blob]) -> int:
    return sum(blob.size for blob in blobs)
