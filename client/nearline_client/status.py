"""Turns failed gRPC calls into `ServiceError`s."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from nearline_client.errors import NotAllowed, NotLoggedIn, ServiceError

_DOMAIN = "nearline"
_DETAILS_KEY = "grpc-status-details-bin"
_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
_KINDS = {"UNAUTHENTICATED": NotLoggedIn, "PERMISSION_DENIED": NotAllowed}
_ADVICE = {"UNAUTHENTICATED": "run `nlds login`"}

# What a transport says by itself when the service dies, restarts or resets a stream.
_TRANSPORT = frozenset({"UNAVAILABLE", "UNKNOWN", "INTERNAL", "CANCELLED"})

_M = TypeVar("_M", bound=Message)


def from_rpc_error(error: grpc.RpcError, server: str) -> ServiceError:
    """What `error` means. `server` is the URL, for messages about a service that did not answer."""
    status = _status_of(error)
    if status is not None:
        return _from_status(status)
    code = (error.code() or grpc.StatusCode.UNKNOWN).name
    details = " ".join((error.details() or code).split())
    if code in _TRANSPORT:
        return _unreachable(server, details)
    if code == "UNIMPLEMENTED":
        return ServiceError(
            code,
            "NOT_OFFERED",
            f"{server} does not offer this ({details})",
            advice="check that the URL is that of a Nearline gateway, and its version",
        )
    if code == "DEADLINE_EXCEEDED":
        message = f"{server} did not answer in time"
        return ServiceError(code, code, message, advice="try again, or see `nlds system`")
    return _KINDS.get(code, ServiceError)(code, code, details, advice=_ADVICE.get(code, ""))


def _unreachable(server: str, details: str) -> ServiceError:
    if "CERTIFICATE_VERIFY_FAILED" in details:
        why = "its certificate is not trusted"
        advice = "check the URL, or name the authority's file with `nlds init --ca FILE`"
    else:
        why = details
        advice = "check the URL and the network, or try again later"
    return ServiceError(
        "UNAVAILABLE", "UNREACHABLE", f"{server} did not answer ({why})", advice=advice
    )


def _from_status(status: status_pb2.Status) -> ServiceError:
    code = _NAMES.get(status.code, "UNKNOWN")
    info = _unpack(status, error_details_pb2.ErrorInfo())
    bad_request = _unpack(status, error_details_pb2.BadRequest())
    retry = _unpack(status, error_details_pb2.RetryInfo())
    return _KINDS.get(code, ServiceError)(
        code,
        info.reason if info else code,
        status.message,
        advice="" if "nlds login" in status.message else _ADVICE.get(code, ""),
        retry_after=retry.retry_delay.ToNanoseconds() / 1e9 if retry else None,
        violations=[(v.field, v.description) for v in bad_request.field_violations]
        if bad_request
        else (),
        metadata=info.metadata if info else None,
    )


def _status_of(error: grpc.RpcError) -> status_pb2.Status | None:
    """The status that a Nearline service sent along, None when the transport speaks for itself."""
    trailing: Iterable[tuple[str, str | bytes]] = cast(Any, error.trailing_metadata()) or ()
    for key, value in trailing:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            return _nearline_status(value)
    return None


def _nearline_status(data: bytes) -> status_pb2.Status | None:
    try:
        status = status_pb2.Status.FromString(data)
    except DecodeError:
        return None
    info = _unpack(status, error_details_pb2.ErrorInfo())
    return status if info is not None and info.domain == _DOMAIN else None


def _unpack(status: status_pb2.Status, into: _M) -> _M | None:
    for detail in status.details:
        if detail.Is(into.DESCRIPTOR) and detail.Unpack(into):
            return into
    return None
