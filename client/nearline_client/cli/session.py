"""The connection of a command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from nearline_client.cli.render import one_line

if TYPE_CHECKING:
    from nearline_client.client import Client
    from nearline_client.errors import ServiceError


@contextmanager
def connected() -> Iterator[Client]:
    """A client of the configured gateway."""
    # Not before it is needed: gRPC is slow to import.
    from nearline_client.client import connect

    with connect(on_busy=_say_busy) as client:
        yield client


def _say_busy(error: ServiceError, pause: float) -> None:
    click.echo(f"nlds: {one_line(str(error))}; trying again in {max(round(pause), 1)} s", err=True)
