"""The Python client of the Nearline store; `nearline_client.cli` is the `nlds` command.

    import nearline_client

    with nearline_client.connect() as store:
        transaction = store.put(["results/"], label="run-7")
        store.wait(transaction.id)

Names are imported on first use: gRPC costs a fifth of a second, and `nlds --help` needs none of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nearline_client.auth_errors import ConfigError
    from nearline_client.client import Client, connect
    from nearline_client.errors import NotAllowed, NotLoggedIn, ServiceError
    from nearline_client.names import PathError

__all__ = [
    "Client",
    "ConfigError",
    "NotAllowed",
    "NotLoggedIn",
    "PathError",
    "ServiceError",
    "connect",
]

_HOME = {
    "Client": "client",
    "ConfigError": "auth_errors",
    "NotAllowed": "errors",
    "NotLoggedIn": "errors",
    "PathError": "names",
    "ServiceError": "errors",
    "connect": "client",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
