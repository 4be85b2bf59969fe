"""The cache: objects in an S3 bucket, verified on the way in and bounded in memory.

Keys are names that the catalog made, never user paths, which S3 stores mangle or refuse. Every
failure is a `NearlineError`: Unavailable or ResourceExhausted while the store has trouble, NotFound
with reason OBJECT_MISSING or OBJECT_TRUNCATED when the bytes do not exist.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import boto3
from botocore.config import Config

from services.kit.config import Count, SecretFile, Section
from services.kit.errors import NearlineError, NotFound, ResourceExhausted
from services.kit.memory import give_back
from services.kit.objecterrors import (
    BROKEN_BODY,
    LENGTH,
    OFFSET,
    UPLOAD_GONE,
    from_code,
    translated,
    truncated,
)
from services.kit.objectupload import MAX_PARTS, Target, Upload, crc32c, put_verified

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client
    from types_boto3_s3.type_defs import ObjectIdentifierTypeDef
    from typing_extensions import Buffer

MIB = 1 << 20
HEALTH_KEY = "health"
"""The one object that is no blob: the health check writes it again and again."""
_CONNECT_SECONDS = 5
_READ_SECONDS = 30
# Few and quick: waiting out a longer outage is the ledger's work, not a handler's.
_ATTEMPTS = 3
_DELETE_BATCH = 1000
_PREFIX = re.compile(r"([A-Za-z0-9._-]+/)*")


class S3Config(Section, frozen=True):
    """The bucket that is the cache."""

    endpoint: str
    """URL of the S3 server, ``http://host:port`` or ``https://host``."""
    bucket: str
    access_key: SecretFile
    secret_key: SecretFile
    region: str = "us-east-1"
    ca: Path | None = None
    """Certificates the server's must come from; the system's when not set."""
    prefix: str = ""
    """Put before every key, such as ``nearline/``, so that a bucket can be shared."""
    path_style: bool = True
    """Bucket in the path of the URL rather than in the host name."""
    connections: Count = 32
    """Connections kept open, and the most that are useful at once."""

    def __post_init__(self) -> None:
        if not self.endpoint.startswith(("http://", "https://")):
            raise ValueError(f"endpoint {self.endpoint!r} must begin with http:// or https://")
        if not _PREFIX.fullmatch(self.prefix):
            raise ValueError(f"prefix {self.prefix!r} must be empty or plain names ending in '/'")


class StoredObject(NamedTuple):
    """An object as the store lists it; ``size`` in bytes, ``modified`` with a time zone."""

    key: str
    size: int
    modified: datetime


class StaleUpload(NamedTuple):
    """A multipart upload that was begun and not finished."""

    key: str
    upload_id: str
    started: datetime


class ObjectStore:
    """One bucket. Thread-safe; connects at the first call."""

    def __init__(self, config: S3Config) -> None:
        self._bucket = config.bucket
        self._prefix = config.prefix
        self._client = _connect(config)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def put(self, key: str, data: Buffer) -> None:
        """Store ``data`` as one object; the server verifies its CRC32C."""
        put_verified(self._target(key), data, crc32c(data))

    def open_upload(
        self, key: str, *, part_size: int = 8 * MIB, parallel: int = 3, size_hint: int = 0
    ) -> Upload:
        """Start writing an object of any size.

        What fits into one part is put in one request. ``size_hint``, in bytes, makes parts larger
        where 10,000 of ``part_size`` would not do; fewer are then under way at once.
        """
        part = max(part_size, -(-size_hint // (MAX_PARTS - 1)))
        return Upload(self._target(key), part, max(1, min(parallel, parallel * part_size // part)))

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``, in one piece of memory."""
        if not length:
            return b""
        try:
            with translated(key):
                for _ in range(_ATTEMPTS - 1):
                    try:
                        return self._get(key, offset, length)
                    except BROKEN_BODY:
                        continue
                return self._get(key, offset, length)
        except NearlineError as error:
            error.metadata |= {OFFSET: str(offset), LENGTH: str(length)}
            raise

    def stream(
        self, key: str, offset: int, length: int, *, chunk: int = 8 * MIB, readahead: int = 2
    ) -> Iterator[bytes]:
        """Yield ``length`` bytes from ``offset`` in pieces of ``chunk`` (the last may be shorter).

        Each piece is a request of its own, so a broken connection costs one piece. Memory: at most
        ``readahead`` + 1 pieces.
        """
        starts = range(offset, offset + length, chunk)
        pieces = ((start, min(chunk, offset + length - start)) for start in starts)
        if len(starts) <= 1:
            return (self.get_range(key, *piece) for piece in pieces)
        return self._read_ahead(key, pieces, readahead)

    def head(self, key: str) -> StoredObject:
        """Size and age of an object."""
        with translated(key):
            answer = self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)
        return StoredObject(key, answer["ContentLength"], answer["LastModified"])

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove objects; those that do not exist are no error."""
        rest = iter(keys)
        while batch := list(islice(rest, _DELETE_BATCH)):
            self._delete_batch(batch)

    def list_objects(self, prefix: str = "") -> Iterator[StoredObject]:
        """All objects whose key begins with ``prefix``, in the order of their keys."""
        pages = self._client.get_paginator("list_objects_v2")
        with translated(prefix):
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix):
                for item in page.get("Contents", ()):
                    yield StoredObject(
                        item["Key"].removeprefix(self._prefix), item["Size"], item["LastModified"]
                    )

    def list_uploads(self) -> Iterator[StaleUpload]:
        """Multipart uploads that are not finished, those under way included."""
        pages = self._client.get_paginator("list_multipart_uploads")
        with translated(""):
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix):
                for item in page.get("Uploads", ()):
                    yield StaleUpload(
                        item["Key"].removeprefix(self._prefix), item["UploadId"], item["Initiated"]
                    )

    def has_parts(self, upload: StaleUpload) -> bool:
        """Whether anything was sent to an unfinished upload; not when it is gone."""
        try:
            with translated(upload.key):
                answer = self._client.list_parts(
                    Bucket=self._bucket,
                    Key=self._prefix + upload.key,
                    UploadId=upload.upload_id,
                    MaxParts=1,
                )
        except NearlineError as error:
            if error.reason != UPLOAD_GONE:
                raise
            return False
        return bool(answer.get("Parts"))

    def abort_upload(self, upload: StaleUpload) -> None:
        """Remove an unfinished upload with its parts; one that is gone is no error."""
        try:
            with translated(upload.key):
                self._client.abort_multipart_upload(
                    Bucket=self._bucket, Key=self._prefix + upload.key, UploadId=upload.upload_id
                )
        except NearlineError as error:
            if error.reason != UPLOAD_GONE:
                raise

    def healthy(self) -> str | None:
        """None when the store works, or what is wrong in words; full is not wrong.

        Asked by a write, because servers answer reads and probes before they can write.
        """
        error = self._write_error()
        return None if error is None or isinstance(error, ResourceExhausted) else error.message

    def has_room(self) -> str | None:
        """None unless the store says that it is full; that in words then."""
        error = self._write_error()
        return error.message if isinstance(error, ResourceExhausted) else None

    def _write_error(self) -> NearlineError | None:
        try:
            self.put(HEALTH_KEY, b"ok")
        except NearlineError as error:
            return error
        return None

    def _target(self, key: str) -> Target:
        return Target(self._client, self._bucket, self._prefix + key)

    def _get(self, key: str, offset: int, length: int) -> bytes:
        answer = self._client.get_object(
            Bucket=self._bucket,
            Key=self._prefix + key,
            Range=f"bytes={offset}-{offset + length - 1}",
        )
        data = answer["Body"].read()
        if len(data) != length:
            raise truncated(key, length, len(data))
        return data

    def _read_ahead(
        self, key: str, pieces: Iterator[tuple[int, int]], readahead: int
    ) -> Iterator[bytes]:
        pending: deque[Future[bytes]] = deque()
        with ExitStack() as stack:
            stack.callback(give_back)
            pool = ThreadPoolExecutor(readahead, thread_name_prefix="s3-read")
            stack.callback(pool.shutdown, wait=True, cancel_futures=True)
            for piece in pieces:
                pending.append(pool.submit(self.get_range, key, *piece))
                if len(pending) > readahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def _delete_batch(self, keys: list[str]) -> None:
        names: list[ObjectIdentifierTypeDef] = [{"Key": self._prefix + key} for key in keys]
        with translated(keys[0]):
            answer = self._client.delete_objects(
                Bucket=self._bucket, Delete={"Objects": names, "Quiet": True}
            )
        for failure in answer.get("Errors", ()):
            error = from_code(failure.get("Code", ""), 500, failure.get("Key", keys[0]))
            if not isinstance(error, NotFound):
                raise error


def _connect(config: S3Config) -> S3Client:
    client: S3Client = boto3.session.Session().client(
        "s3",
        endpoint_url=config.endpoint,
        region_name=config.region,
        aws_access_key_id=config.access_key.read(),
        aws_secret_access_key=config.secret_key.read(),
        verify=str(config.ca) if config.ca else None,
        config=Config(
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            max_pool_connections=config.connections,
            tcp_keepalive=True,
            parameter_validation=False,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={
                "addressing_style": "path" if config.path_style else "virtual",
                # The CRC32C header is what the server checks; hashing the body again is waste.
                "payload_signing_enabled": False,
            },
        ),
    )
    return client
