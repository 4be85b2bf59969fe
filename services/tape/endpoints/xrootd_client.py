"""The XRootD client library: how it is loaded, and what its statuses mean."""

from __future__ import annotations

import functools
import os
from types import ModuleType
from typing import Any, Protocol

from services.kit.errors import (
    AlreadyExists,
    NearlineError,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from services.tape.endpoint import TAPE, not_found

# The client reads these when it is loaded. By its own defaults a refused port costs 8 minutes and a
# silent peer 10; an error window would fail calls after the server is back; and pgwrite's CRC32C
# costs two thirds of the speed, where this service checks the Adler-32 of every file anyway. A
# request to a frozen server ends by the request timeout only.
_ENVIRONMENT = {
    "XRD_CONNECTIONWINDOW": "5",
    "XRD_CONNECTIONRETRY": "1",
    "XRD_TIMEOUTRESOLUTION": "1",
    "XRD_STREAMERRORWINDOW": "0",
    "XRD_REQUESTTIMEOUT": "20",
    "XRD_STREAMTIMEOUT": "15",
    "XRD_CPUSEPGWRTRD": "0",
}

INVALID_RESPONSE = 303
_SERVER_ERROR = 400
_AUTH_FAILED = 204

_NO_SPACE = 3009
_DENIED = 3010
_NOT_FOUND = 3011
_EXISTS = 3018
_OVER_QUOTA = 3021
_SERVER_AUTH_FAILED = 3030

_LATER = 60.0


class Status(Protocol):
    """The part of ``XRootDStatus`` that is used here."""

    ok: bool
    code: int
    errno: int
    message: str


@functools.cache
def load() -> ModuleType:
    """Import the client with this service's timeouts, unless the environment sets others."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from XRootD import client

    module: ModuleType = client
    return module


@functools.cache
def flags() -> Any:
    """The client's flag enumerations."""
    load()
    from XRootD.client import flags as module

    return module


def check(status: Status, action: str, path: str) -> None:
    """Raise what a failed ``action`` on ``path`` means."""
    if not status.ok:
        raise failure(status, action, path)


def failure(status: Status, action: str, path: str) -> NearlineError:
    """The error that a status stands for."""
    text = f"the tape endpoint could not {action} {path}: {status.message.strip()}"
    if status.code == _SERVER_ERROR:
        return _refusal(status.errno, text, path)
    if status.code == _AUTH_FAILED:
        return _auth_failure(text)
    return Unavailable("TAPE_UNREACHABLE", text, path=path, dependency=TAPE)


def _refusal(errno: int, text: str, path: str) -> NearlineError:
    if errno == _NOT_FOUND:
        return not_found(path)
    if errno == _EXISTS:
        return AlreadyExists("TAPE_FILE_EXISTS", text, path=path)
    if errno in (_NO_SPACE, _OVER_QUOTA):
        return ResourceExhausted("TAPE_NO_SPACE", text, retry_after=_LATER, path=path)
    if errno == _DENIED:
        return PermissionDenied("TAPE_DENIED", text, retry_after=_LATER, path=path)
    if errno == _SERVER_AUTH_FAILED:
        return _auth_failure(text)
    return Unavailable("TAPE_ERROR", text, path=path)


def _auth_failure(text: str) -> Unavailable:
    advice = "; check that the service's keytab is the one the endpoint knows"
    return Unavailable("TAPE_AUTH_FAILED", text + advice, retry_after=_LATER, dependency=TAPE)
