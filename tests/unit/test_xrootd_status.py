"""What a status of the XRootD client means to the tape service."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from services.kit.errors import (
    AlreadyExists,
    NearlineError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from services.tape.endpoints.xrootd_client import check, failure


@dataclass
class FakeStatus:
    code: int
    errno: int = 0
    ok: bool = False
    message: str = "[ERROR] what the server says\n"


@pytest.mark.parametrize(
    ("code", "errno", "kind", "reason", "transient"),
    [
        (400, 3011, NotFound, "TAPE_FILE_NOT_FOUND", False),
        (400, 3018, AlreadyExists, "TAPE_FILE_EXISTS", False),
        (400, 3009, ResourceExhausted, "TAPE_NO_SPACE", True),
        (400, 3021, ResourceExhausted, "TAPE_NO_SPACE", True),
        (400, 3010, PermissionDenied, "TAPE_DENIED", True),
        (400, 3030, Unavailable, "TAPE_AUTH_FAILED", True),
        (400, 3005, Unavailable, "TAPE_ERROR", True),
        (204, 0, Unavailable, "TAPE_AUTH_FAILED", True),
        (101, 0, Unavailable, "TAPE_UNREACHABLE", True),
        (206, 0, Unavailable, "TAPE_UNREACHABLE", True),
    ],
)
def test_statuses(
    code: int, errno: int, kind: type[NearlineError], reason: str, transient: bool
) -> None:
    error = failure(FakeStatus(code, errno), "write", "a/b")
    assert type(error) is kind
    assert (error.reason, error.transient) == (reason, transient)
    assert "a/b" in error.message
    with pytest.raises(kind):
        check(FakeStatus(code, errno), "write", "a/b")


def test_a_success_is_no_error() -> None:
    check(FakeStatus(0, ok=True), "write", "a/b")
