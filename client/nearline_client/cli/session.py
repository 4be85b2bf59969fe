"""The connection of a command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nearline_client.client import Client


@contextmanager
def connected() -> Iterator[Client]:
    """A client of the configured gateway."""
    # Not before it is needed: gRPC is slow to import.
    from nearline_client.client import connect

    with connect() as client:
        yield client
