"""The error model survives the wire, and the transport's own failures are told apart."""

from typing import Any

import grpc
import pytest
from google.rpc import status_pb2

from services.kit import errors


class Failure(grpc.RpcError):
    """A failed call as a stub raises it."""

    def __init__(
        self, code: grpc.StatusCode, details: str = "", status: status_pb2.Status | None = None
    ) -> None:
        self._code, self._details = code, details
        self._trailing = (
            (("grpc-status-details-bin", status.SerializeToString()),) if status else ()
        )

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Any:
        return self._trailing


@pytest.mark.parametrize("kind", errors.NearlineError.__subclasses__())
def test_every_kind_survives_the_wire(kind: type[errors.NearlineError]) -> None:
    sent = kind("SOME_REASON", "no holding 12; list yours", retry_after=1.5, holding=12)
    status = errors.to_status(sent)
    got = errors.from_rpc_error(Failure(kind.code, sent.message, status))
    assert type(got) is kind
    assert (got.reason, got.message) == ("SOME_REASON", "no holding 12; list yours")
    assert got.metadata == {"holding": "12"}
    assert got.retry_after == 1.5


def test_violations_survive_the_wire() -> None:
    sent = errors.InvalidArgument(
        "BAD_REQUEST", "two fields are wrong", violations=[("a.b", "too long"), ("c", "empty")]
    )
    got = errors.from_status(errors.to_status(sent))
    assert got.violations == (("a.b", "too long"), ("c", "empty"))
    assert got.retry_after is None


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (errors.Unavailable("X", ""), True),
        (errors.Aborted("X", ""), True),
        (errors.DeadlineExceeded("X", ""), True),
        (errors.ResourceExhausted("OVER_QUOTA", ""), False),
        (errors.ResourceExhausted("BUSY", "", retry_after=2), True),
        (errors.NotFound("X", ""), False),
        (errors.Internal("X", ""), False),
    ],
)
def test_transient(error: errors.NearlineError, transient: bool) -> None:
    assert error.transient is transient


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.CANCELLED,
    ],
)
def test_transport_failures_are_unavailable(code: grpc.StatusCode) -> None:
    got = errors.from_rpc_error(Failure(code, "Stream removed"))
    assert isinstance(got, errors.Unavailable)
    assert got.transient
    assert "Stream removed" in got.message


def test_an_internal_error_of_ours_stays_internal() -> None:
    status = errors.to_status(errors.Internal("INTERNAL", "a bug"))
    got = errors.from_rpc_error(Failure(grpc.StatusCode.INTERNAL, "a bug", status))
    assert type(got) is errors.Internal
    assert not got.transient


def test_codes_without_details_keep_their_class() -> None:
    got = errors.from_rpc_error(Failure(grpc.StatusCode.UNIMPLEMENTED, "Method not found!"))
    assert type(got) is errors.Unimplemented
    assert got.message == "Method not found!"


def test_an_overloaded_peer_is_transient() -> None:
    got = errors.from_rpc_error(Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent RPC limit"))
    assert type(got) is errors.ResourceExhausted
    assert got.transient


def test_garbage_details_do_not_hide_the_failure() -> None:
    broken = Failure(grpc.StatusCode.NOT_FOUND, "gone")
    broken._trailing = (("grpc-status-details-bin", b"\xff\xff\xff"),)
    assert type(errors.from_rpc_error(broken)) is errors.NotFound


def test_a_status_stays_below_the_metadata_limit() -> None:
    metadata: dict[str, Any] = {f"key{n}": "v" * 9000 for n in range(500)}
    huge = errors.InvalidArgument(
        "BAD_REQUEST",
        "m" * 100_000,
        violations=[("f" * 9000, "d" * 9000)] * 500,
        **metadata,
    )
    status = errors.to_status(huge)
    assert status.ByteSize() + len(status.message) < 12_000


def test_names_that_are_not_utf8_can_be_reported() -> None:
    status = errors.to_status(errors.NotFound("PATH_NOT_FOUND", "no \udcff", path="/a/\udcff"))
    assert errors.from_status(status).metadata["path"] == "/a/\\udcff"
