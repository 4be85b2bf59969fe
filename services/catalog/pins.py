"""Keeping files in the cache until a time."""

from datetime import UTC

from sqlalchemy import Connection, text

from nearline.catalog.v1.catalog_pb2 import PinFilesRequest
from services.catalog.ranges import merged
from services.catalog.rules import invalid

# Ranges as they came: a recalled file is pinned too, though its cache blob is a new one.
_PIN = text("""
    INSERT INTO pin (first, last, until) VALUES (:first, :last, :until)
    ON CONFLICT (first, last) DO UPDATE SET until = greatest(pin.until, excluded.until)
""")
_EXPIRE = text("DELETE FROM pin WHERE until <= now()")


def pin(connection: Connection, request: PinFilesRequest) -> None:
    """Keep the files until the time; where two pins overlap the later one wins."""
    if not request.HasField("until"):
        raise invalid("until", "must say until when the files are kept")
    try:
        until = request.until.ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        raise invalid("until", "must be a time between the years 1 and 9999") from error
    ranges = merged(request.files, "files")
    rows = [{"first": first, "last": last, "until": until} for first, last in ranges]
    if rows:
        connection.execute(_PIN, rows)


def expire(connection: Connection) -> None:
    """Forget pins whose time has come."""
    connection.execute(_EXPIRE)
