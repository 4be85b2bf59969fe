"""Advisory locks of a database transaction, taken always in the order in which they stand here.

After them row locks are taken: blobs by ascending number, then files by ascending number.
"""

from enum import IntEnum

from sqlalchemy import Connection, text

_LOCK = text("SELECT pg_advisory_xact_lock(:kind, hashtext(:key))")


class Lock(IntEnum):
    """What a lock keeps others from doing at the same time."""

    OPEN = 1
    """Opening a holding for one transaction."""
    REGISTER = 2
    """Registering paths in one holding: no conflict can then arise between look-up and COPY."""
    QUOTA = 3
    """Measuring the room of one group and using it."""
    NUMBERS = 4
    """Taking a run of consecutive file numbers."""
    CLAIM = 5
    """Claiming an aggregate under one key."""
    REMOVE = 6
    """Taking readable copies away: two at once could each count on what the other takes."""


def hold(connection: Connection, lock: Lock, key: object = "") -> None:
    """Wait for a lock and keep it until the database transaction ends."""
    connection.execute(_LOCK, {"kind": int(lock), "key": str(key)})
