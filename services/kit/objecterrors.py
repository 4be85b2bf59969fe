"""What S3 clients and servers say when they fail, as the one error model; no I/O.

Everything that is the store's own trouble is transient, wrong keys and a missing bucket included: a
person mends those while the ledger waits. Only what is said about one object is final.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import urllib3.exceptions
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from services.kit.errors import (
    DEPENDENCY,
    Internal,
    NearlineError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)

#: The body of an answer broke off. The request can be repeated at once.
BROKEN_BODY = (
    ReadTimeoutError,
    ResponseStreamingError,
    IncompleteReadError,
    urllib3.exceptions.HTTPError,
    ConnectionError,
)

#: Reason of the error that a multipart upload is unknown: completed, aborted or swept.
UPLOAD_GONE = "OBJECT_UPLOAD_GONE"
OBJECT_TRUNCATED = "OBJECT_TRUNCATED"
OBJECT_STORE_FAILED = "OBJECT_STORE_FAILED"
OBJECT_STORE_UNREACHABLE = "OBJECT_STORE_UNREACHABLE"
OFFSET, LENGTH = "offset", "length"
"""Metadata of a read that failed: the bytes that were asked for."""
CACHE = "cache"
"""The object store, as work depends on it."""
CACHE_SPACE = "cache space"
"""Room in it: a full store can still be read and evicted from."""

_UNREACHABLE = (*BROKEN_BODY, ConnectTimeoutError, EndpointConnectionError, HTTPClientError)


class _Rule(NamedTuple):
    """What some S3 error codes mean; ``{key}`` and ``{code}`` are filled into the message."""

    codes: frozenset[str]
    kind: type[NearlineError]
    reason: str
    message: str
    retry_after: float | None
    dependency: str = ""
    """What as a whole does not work; empty when it is about one object."""


_RULES = (
    _Rule(
        frozenset({"NoSuchKey", "NotFound", "404"}),
        NotFound,
        "OBJECT_MISSING",
        "object {key} is not in the object store",
        None,
    ),
    _Rule(
        frozenset({"InvalidRange", "416"}),
        NotFound,
        OBJECT_TRUNCATED,
        "object {key} ends before the bytes that were asked for; restore it from tape",
        None,
    ),
    _Rule(
        frozenset({"507", "InsufficientCapacity", "InsufficientStorage", "QuotaExceeded"})
        | {"XMinioStorageFull"},
        ResourceExhausted,
        "OBJECT_STORE_FULL",
        "the object store has no space left ({code}); free some or add capacity",
        60,
        dependency=CACHE_SPACE,
    ),
    _Rule(
        frozenset({"401", "403", "AccessDenied", "InvalidAccessKeyId"})
        | {"RequestTimeTooSkewed", "SignatureDoesNotMatch"},
        Unavailable,
        "OBJECT_STORE_DENIED",
        "the object store refuses this service ({code});"
        " check the keys, the bucket's policy and the clocks",
        60,
        dependency=CACHE,
    ),
    _Rule(
        frozenset({"NoSuchBucket"}),
        Unavailable,
        "OBJECT_BUCKET_MISSING",
        "the object store does not have the configured bucket; create it",
        60,
        dependency=CACHE,
    ),
    _Rule(
        frozenset({"BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch"}),
        Unavailable,
        "OBJECT_CORRUPTED_IN_TRANSIT",
        "object {key} arrived damaged at the object store ({code}); it is sent again",
        1,
    ),
    _Rule(
        frozenset({"NoSuchUpload"}),
        Unavailable,
        UPLOAD_GONE,
        "the upload of {key} was removed meanwhile; it is begun again",
        1,
    ),
)

_BY_CODE = {code: rule for rule in _RULES for code in rule.codes}


@contextmanager
def translated(key: str) -> Iterator[None]:
    """Raise what boto3 raises inside as the matching `NearlineError` about ``key``."""
    try:
        yield
    except ClientError as error:
        raise from_answer(error, key) from error
    except _UNREACHABLE as error:
        raise unreachable(error, key) from error
    except BotoCoreError as error:
        raise Internal(
            "OBJECT_STORE_CLIENT", f"the request for {key} could not be made: {error}", key=key
        ) from error


def unreachable(error: Exception, key: str) -> Unavailable:
    """The store did not answer, or not to the end."""
    return Unavailable(
        OBJECT_STORE_UNREACHABLE,
        f"the object store does not answer ({type(error).__name__}); it is tried again",
        retry_after=5,
        key=key,
        dependency=CACHE,
    )


def truncated(key: str, wanted: int, got: int) -> NotFound:
    """The object ends before the range that was asked for: these bytes do not exist."""
    return NotFound(
        OBJECT_TRUNCATED,
        f"object {key} is shorter than it was when stored: {got} of {wanted} bytes are there;"
        " restore it from tape",
        key=key,
    )


def from_answer(error: ClientError, key: str) -> NearlineError:
    """The error for an answer of the server other than success."""
    code = error.response.get("Error", {}).get("Code", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return from_code(code, status, key)


def from_code(code: str, status: int, key: str) -> NearlineError:
    """The error for an S3 error ``code`` and its HTTP ``status`` (0 when not known)."""
    rule = _BY_CODE.get(code) or _BY_CODE.get(str(status))
    if rule is not None:
        message = rule.message.format(key=key, code=code)
        error = rule.kind(rule.reason, message, retry_after=rule.retry_after, key=key)
        if rule.dependency:
            error.metadata[DEPENDENCY] = rule.dependency
        return error
    if status >= 500 or code in ("SlowDown", "RequestTimeout"):
        return Unavailable(
            OBJECT_STORE_FAILED,
            f"the object store answered {code or status}; it is tried again",
            retry_after=5,
            key=key,
            dependency=CACHE,
        )
    return Internal(
        "OBJECT_STORE_REFUSED", f"the object store refused the request: {code or status}", key=key
    )
