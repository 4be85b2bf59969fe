"""Writing one object of unknown size with bounded memory, every part verified by the server."""

from __future__ import annotations

import base64
import logging
import mmap
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import google_crc32c

from services.kit import crash
from services.kit.errors import InvalidArgument, NearlineError
from services.kit.objecterrors import UPLOAD_GONE, translated, truncated

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client
    from types_boto3_s3.type_defs import CompletedPartTypeDef
    from typing_extensions import Buffer

MAX_PARTS = 10_000
_SEND_BYTES = 1 << 20

log = logging.getLogger(__name__)


class Body:
    """Bytes that are sent a mebibyte at a time.

    One timeout of the socket covers one call of sendall: a large body in one piece fails on a slow
    link, and a file object is cut into 16 KiB by the HTTP client, which costs CPU.
    """

    def __init__(self, data: Buffer) -> None:
        self._view = memoryview(data)

    def __len__(self) -> int:
        return self._view.nbytes

    def __iter__(self) -> Iterator[memoryview]:
        for start in range(0, len(self), _SEND_BYTES):
            yield self._view[start : start + _SEND_BYTES]

    def seek(self, _offset: int) -> int:
        """Called before a retry; every iteration starts at the beginning anyway."""
        return 0


class Target(NamedTuple):
    """Where an upload goes: ``key`` is the full key in the bucket."""

    client: S3Client
    bucket: str
    key: str


def put_verified(target: Target, data: Buffer, crc: int) -> None:
    """Store ``data`` as one object; the server compares it with its CRC32C."""
    with translated(target.key):
        target.client.put_object(
            Bucket=target.bucket, Key=target.key, Body=_body(data), ChecksumCRC32C=_header(crc)
        )


class Upload:
    """One object being written; made by `ObjectStore.open_upload`, used by one thread.

    Nothing exists under the key before `commit` returned. As a context manager it aborts unless
    committed. Memory: at most ``parallel`` + 1 parts.
    """

    def __init__(self, target: Target, part_size: int, parallel: int) -> None:
        self._target = target
        self._part_size = part_size
        self._parallel = parallel
        self._buffer = _new_buffer(part_size)
        self._filled = 0
        self._crc = 0
        self._size = 0
        self._parts: list[CompletedPartTypeDef] = []
        self._pending: deque[tuple[Future[CompletedPartTypeDef], mmap.mmap]] = deque()
        self._upload_id = ""
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

    def __enter__(self) -> Upload:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.abort()

    def write(self, data: Buffer) -> None:
        """Append ``data``, which may be reused as soon as this returns.

        Waits while ``parallel`` parts are under way. Raises `NearlineError` when an earlier part
        could not be stored; the upload must then be aborted.
        """
        self._check_open()
        view = memoryview(data).cast("B")
        while view:
            piece = view[: self._part_size - self._filled]
            self._append(piece)
            view = view[len(piece) :]

    def commit(self) -> int:
        """Make the object visible and return its size in bytes. Raises like `write`."""
        self._check_open()
        if not self._upload_id:
            put_verified(self._target, memoryview(self._buffer)[: self._filled], self._crc)
        else:
            if self._filled:
                self._send_buffer()
            while self._pending:
                self._collect_oldest()
            self._complete()
        self._close()
        return self._size

    def abort(self) -> None:
        """Drop everything written; does nothing after `commit` or a second time.

        Does not raise: what an unreachable store keeps is removed by the reconciler.
        """
        if self._closed:
            return
        # A part that arrives after the abort would stay, so those under way are awaited.
        self._close()
        if not self._upload_id:
            return
        try:
            self._call(self._target.client.abort_multipart_upload)
        except NearlineError as error:
            log.warning("unfinished upload is left to the sweep: %s", error)

    def _append(self, piece: memoryview) -> None:
        end = self._filled + len(piece)
        self._buffer[self._filled : end] = piece
        self._crc = crc32c(piece, self._crc)
        self._filled = end
        self._size += len(piece)
        if end == self._part_size:
            self._send_buffer()

    def _send_buffer(self) -> None:
        """Hand the buffer to a sender and take another one."""
        number = len(self._parts) + len(self._pending) + 1
        if number > MAX_PARTS:
            raise InvalidArgument(
                "OBJECT_TOO_LARGE",
                f"an object has at most {MAX_PARTS} parts of {self._part_size} bytes;"
                " give its size when the upload is opened",
            )
        pool = self._start()
        part = memoryview(self._buffer)[: self._filled]
        self._pending.append((pool.submit(self._send_part, number, part, self._crc), self._buffer))
        self._filled = self._crc = 0
        if len(self._pending) > self._parallel:
            self._buffer = self._collect_oldest()
        else:
            self._buffer = _new_buffer(self._part_size)

    def _start(self) -> ThreadPoolExecutor:
        if self._pool is None:
            with translated(self._target.key):
                answer = self._target.client.create_multipart_upload(
                    Bucket=self._target.bucket, Key=self._target.key, ChecksumAlgorithm="CRC32C"
                )
            self._upload_id = answer["UploadId"]
            self._pool = ThreadPoolExecutor(self._parallel, thread_name_prefix="s3-upload")
        return self._pool

    def _send_part(self, number: int, part: memoryview, crc: int) -> CompletedPartTypeDef:
        checksum = _header(crc)
        answer = self._call(
            self._target.client.upload_part,
            PartNumber=number,
            Body=_body(part),
            ChecksumCRC32C=checksum,
        )
        return {"ETag": answer["ETag"], "PartNumber": number, "ChecksumCRC32C": checksum}

    def _collect_oldest(self) -> mmap.mmap:
        future, buffer = self._pending.popleft()
        self._parts.append(future.result())
        return buffer

    def _complete(self) -> None:
        complete = self._target.client.complete_multipart_upload
        crash.point("cache.multipart.before_complete")
        try:
            self._call(complete, MultipartUpload={"Parts": self._parts})
        except NearlineError as error:
            # A repeat after a lost answer finds the upload gone and the object in its place.
            if error.reason != UPLOAD_GONE:
                raise
        crash.point("cache.multipart.after_complete")
        self._check_stored_size()

    def _check_stored_size(self) -> None:
        with translated(self._target.key):
            head = self._target.client.head_object(Bucket=self._target.bucket, Key=self._target.key)
        if head["ContentLength"] != self._size:
            raise truncated(self._target.key, self._size, head["ContentLength"])

    def _call(self, method: Callable[..., Any], **arguments: Any) -> Any:
        with translated(self._target.key):
            return method(
                Bucket=self._target.bucket,
                Key=self._target.key,
                UploadId=self._upload_id,
                **arguments,
            )

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the upload is finished")

    def _close(self) -> None:
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()
        del self._buffer


def _new_buffer(size: int) -> mmap.mmap:
    # Unlike a bytearray its pages take memory only once written: most uploads are small.
    return mmap.mmap(-1, size)


def crc32c(data: Buffer, crc: int = 0) -> int:
    """CRC32C of ``data``, or of what ``crc`` is of with ``data`` behind it."""
    # The C extension takes bytes only: small copies stay in the processor's cache.
    for piece in Body(data):
        crc = google_crc32c.extend(crc, bytes(piece))
    return crc


def _header(crc: int) -> str:
    return base64.b64encode(crc.to_bytes(4, "big")).decode()


def _body(data: Buffer) -> Any:
    # boto3's stubs know files and bytes only; the client sends anything it can iterate.
    return Body(data)
