"""The one error that crosses RPCs, and how it is written to and read from the wire.

Code that cannot do what was asked raises a :class:`NearlineError`; the server's interceptor encodes
it once as ``google.rpc.Status`` and a caller decodes it with :func:`from_rpc_error`.
"""

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "nearline"
"""``ErrorInfo.domain`` of every error that a Nearline service made itself."""

DEPENDENCY = "dependency"
"""Key of the metadata that names what as a whole does not work."""

_M = TypeVar("_M", bound=Message)

Violations = tuple[tuple[str, str], ...]

_DETAILS_KEY = "grpc-status-details-bin"

# A status travels twice in the trailing metadata, which a peer may refuse above 8 KiB.
_MESSAGE_BYTES = 1024
_VALUE_BYTES = 256
_MOST_ENTRIES = 10


class NearlineError(Exception):
    """A failure with a code, a machine-readable reason and a message for a person.

    ``reason`` is an UPPER_SNAKE constant that callers may branch on, ``message`` says what, why and
    what to do, ``metadata`` holds the values the message speaks of, ``violations`` pairs of (field,
    description), and ``retry_after`` the seconds after which a repeat may succeed.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        retry_after: float | None = None,
        violations: Iterable[tuple[str, str]] = (),
        **metadata: object,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        self.violations: Violations = tuple(violations)
        self.metadata: dict[str, str] = {key: str(value) for key, value in metadata.items()}

    @property
    def transient(self) -> bool:
        """Whether the same request may succeed later without anyone changing it."""
        return self.code in _TRANSIENT or self.retry_after is not None

    @property
    def dependency(self) -> str:
        """What as a whole does not work (`cache`, `tape`, `catalog`); empty for anything else."""
        return self.metadata.get(DEPENDENCY, "")

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.reason!r}, {self.message!r})"


class InvalidArgument(NearlineError):
    """The request can never succeed as it is; ``violations`` names the fields."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(NearlineError):
    """What the request names does not exist."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(NearlineError):
    """What the request would make exists already, and differs."""

    code = grpc.StatusCode.ALREADY_EXISTS


class PermissionDenied(NearlineError):
    """The caller is known and may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED


class Unauthenticated(NearlineError):
    """The caller is not known: no valid token or certificate came along."""

    code = grpc.StatusCode.UNAUTHENTICATED


class FailedPrecondition(NearlineError):
    """The request is valid, but not in the present state of the system."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class ResourceExhausted(NearlineError):
    """A quota or limit is reached; transient only with ``retry_after``."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Aborted(NearlineError):
    """A concurrent change won; the whole operation may be repeated."""

    code = grpc.StatusCode.ABORTED


class Unavailable(NearlineError):
    """Something the service needs is down or unreachable for now."""

    code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(NearlineError):
    """The time allowed ran out before the work was done."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Unimplemented(NearlineError):
    """The service does not offer this operation."""

    code = grpc.StatusCode.UNIMPLEMENTED


class Internal(NearlineError):
    """A bug; the server's log has the traceback under the request id."""

    code = grpc.StatusCode.INTERNAL


_TRANSIENT = frozenset({
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
})  # fmt: skip

_BY_CODE: dict[grpc.StatusCode, type[NearlineError]] = {
    kind.code: kind for kind in NearlineError.__subclasses__()
}
_BY_NUMBER: dict[int, type[NearlineError]] = {
    code.value[0]: kind for code, kind in _BY_CODE.items()
}

# What a transport says by itself when the peer dies, restarts or resets a stream. A resumed peer
# may answer INTERNAL or UNKNOWN where it means "gone": only an ErrorInfo of ours makes those final.
_TRANSPORT = frozenset({
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.CANCELLED,
})  # fmt: skip


def to_status(error: NearlineError) -> status_pb2.Status:
    """Encode ``error`` with ErrorInfo, and BadRequest and RetryInfo where it has them."""
    status = status_pb2.Status(
        code=error.code.value[0], message=_clip(error.message, _MESSAGE_BYTES)
    )
    for detail in _details(error):
        status.details.add().Pack(detail)
    return status


def from_status(status: status_pb2.Status) -> NearlineError:
    """Decode what :func:`to_status` made; a code without a class of its own becomes Internal."""
    kind = _BY_NUMBER.get(status.code, Internal)
    info = _unpack(status, error_details_pb2.ErrorInfo())
    bad_request = _unpack(status, error_details_pb2.BadRequest())
    error = kind(
        (info and info.reason) or kind.code.name,
        status.message,
        retry_after=_retry_after(status),
        violations=[(v.field, v.description) for v in bad_request.field_violations]
        if bad_request
        else (),
    )
    error.metadata = dict(info.metadata) if info else {}
    return error


def from_rpc_error(error: grpc.RpcError) -> NearlineError:
    """Decode a failed call of a sync or aio stub.

    A failure that no Nearline service spoke of is the transport's: it becomes Unavailable when the
    peer was lost, and the class of its code otherwise.
    """
    status = _status_of(error)
    if status is not None:
        return from_status(status)
    code = error.code() or grpc.StatusCode.UNKNOWN
    details = error.details() or code.name
    if code in _TRANSPORT:
        return Unavailable(
            "PEER_UNREACHABLE", f"the service did not answer ({details}); try again", retry_after=1
        )
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return ResourceExhausted("PEER_OVERLOADED", details, retry_after=1)
    return _BY_CODE.get(code, Internal)(code.name, details)


def _status_of(error: grpc.RpcError) -> status_pb2.Status | None:
    # The stubs type a metadatum as opaque; it is a (key, value) pair everywhere.
    trailing: Iterable[tuple[str, str | bytes]] = cast(Any, error.trailing_metadata()) or ()
    for key, value in trailing:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            return _nearline_status(value)
    return None


def _nearline_status(data: bytes) -> status_pb2.Status | None:
    """The status in ``data``, unless it is broken or somebody else's."""
    try:
        status = status_pb2.Status.FromString(data)
    except DecodeError:
        return None
    info = _unpack(status, error_details_pb2.ErrorInfo())
    return status if info is not None and info.domain == DOMAIN else None


def _details(error: NearlineError) -> Iterator[Message]:
    metadata = list(error.metadata.items())[:_MOST_ENTRIES]
    yield error_details_pb2.ErrorInfo(
        reason=error.reason,
        domain=DOMAIN,
        metadata={key: _clip(value, _VALUE_BYTES) for key, value in metadata},
    )
    if error.violations:
        bad_request = error_details_pb2.BadRequest()
        for field, description in error.violations[:_MOST_ENTRIES]:
            bad_request.field_violations.add(
                field=_clip(field, _VALUE_BYTES), description=_clip(description, _VALUE_BYTES)
            )
        yield bad_request
    if error.retry_after is not None:
        retry_info = error_details_pb2.RetryInfo()
        retry_info.retry_delay.FromNanoseconds(round(error.retry_after * 1e9))
        yield retry_info


def _unpack(status: status_pb2.Status, into: _M) -> _M | None:
    for detail in status.details:
        if detail.Is(into.DESCRIPTOR) and detail.Unpack(into):
            return into
    return None


def _retry_after(status: status_pb2.Status) -> float | None:
    info = _unpack(status, error_details_pb2.RetryInfo())
    return info.retry_delay.ToNanoseconds() / 1e9 if info else None


def _clip(text: str, most: int) -> str:
    """At most ``most`` bytes of ``text``, with what UTF-8 cannot carry spelled out."""
    return text.encode("utf-8", "backslashreplace")[:most].decode("utf-8", "ignore")
