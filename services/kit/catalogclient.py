"""The catalog as workers use it: blocking calls from threads, answers as messages.

Every call raises NearlineError; all may be repeated. A call that is not answered in whole within
its deadline fails as DeadlineExceeded, which the ledger tries again.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nearline.catalog.v1 import catalog_pb2 as catalog
from nearline.catalog.v1 import catalog_pb2_grpc
from nearline.type.v1 import storage_pb2
from services.kit.errors import DEPENDENCY, Internal, NotFound, Unavailable, from_rpc_error
from services.kit.ownership import current_task, names_task

T = TypeVar("T")
M = TypeVar("M", bound=Message)
Blob = storage_pb2.Blob
Member = catalog.RecordBlobRequest.Member

_STREAM_SECONDS = 600.0
_BATCH = 2000
_HEALTH_SECONDS = 3.0

CATALOG = "catalog"
"""The catalog, as work depends on it."""


class CatalogClient:
    """Thread-safe. ``writer`` names the service that allocates blobs, for operators."""

    def __init__(self, channel: grpc.Channel, writer: str) -> None:
        self._stub = catalog_pb2_grpc.CatalogServiceStub(channel)
        self._health = health_pb2_grpc.HealthStub(channel)
        self._writer = writer

    def healthy(self) -> str | None:
        """None when the catalog serves, or what is wrong in words. Raises NearlineError."""
        with _rpc_errors():
            answer = self._health.Check(health_pb2.HealthCheckRequest(), timeout=_HEALTH_SECONDS)
        serving = answer.status == health_pb2.HealthCheckResponse.SERVING
        return None if serving else "it answers, but cannot reach its database"

    def holding(self, holding_id: int, group: str) -> storage_pb2.Holding:
        """A holding of ``group`` by its number; NotFound when there is none."""
        selector = storage_pb2.HoldingSelector(groups=[group], holding_id=holding_id)
        request = catalog.ListHoldingsRequest(selector=selector)
        with _rpc_errors():
            for batch in self._stub.ListHoldings(request, timeout=_STREAM_SECONDS):
                for holding in batch.holdings:
                    return holding
        raise NotFound("HOLDING_NOT_FOUND", f"group {group} has no holding {holding_id}")

    def register(
        self,
        holding_id: int,
        transaction_id: str,
        batches: Iterable[Sequence[catalog.RegisterFilesRequest.Entry]],
    ) -> Iterator[catalog.RegisterFilesResponse]:
        """Register the entries of a PUT; one answer a batch, in order."""
        header = catalog.RegisterFilesRequest.Header(
            holding_id=holding_id, transaction_id=transaction_id
        )

        def requests() -> Iterator[catalog.RegisterFilesRequest]:
            yield catalog.RegisterFilesRequest(header=header)
            for batch in batches:
                entries = catalog.RegisterFilesRequest.Batch(entries=batch)
                yield catalog.RegisterFilesRequest(batch=entries)

        # A walk of slow directories is behind this stream: its length has no bound.
        with _rpc_errors():
            yield from self._stub.RegisterFiles(requests())

    def files(self, ranges: Iterable[storage_pb2.IdRange]) -> Iterator[storage_pb2.StoredFile]:
        """The files of these numbers, ascending, with their readable slices."""
        request = catalog.GetFilesRequest(files=ranges)
        with _rpc_errors():
            for batch in self._stub.GetFiles(request, timeout=_STREAM_SECONDS):
                yield from batch.files

    def resolve(
        self,
        header: catalog.ResolveFilesRequest.Header,
        paths: Iterable[Sequence[str]],
    ) -> Iterator[catalog.ResolveFilesResponse]:
        """What batches of up to 1000 paths mean."""

        def requests() -> Iterator[catalog.ResolveFilesRequest]:
            yield catalog.ResolveFilesRequest(header=header)
            for batch in paths:
                wanted = catalog.ResolveFilesRequest.Batch(paths=batch)
                yield catalog.ResolveFilesRequest(batch=wanted)

        with _rpc_errors():
            yield from self._stub.ResolveFiles(requests(), timeout=_STREAM_SECONDS)

    def allocate(
        self,
        holding_id: int,
        tier: Blob.Tier.ValueType,
        form: Blob.Format.ValueType,
    ) -> Blob:
        """Name one blob before its bytes are written."""
        # Who cleans up after it asks the ledger whether this task still runs.
        writer = f"{self._writer} {names_task(current_task())}".strip()
        request = catalog.AllocateBlobsRequest(
            holding_id=holding_id, tier=tier, format=form, count=1, writer=writer
        )
        with _rpc_errors():
            return self._stub.AllocateBlobs(request).blobs[0]

    def record(
        self,
        blob_id: int,
        members: Iterable[Member],
        *,
        size: int,
        state: Blob.State.ValueType,
        adler32: int = 0,
        pack_adler32: int = 0,
    ) -> catalog.RecordBlobResponse:
        """Record a complete and verified blob of ``size`` bytes with its members, all at once."""
        seal = catalog.RecordBlobRequest.Seal(
            blob_id=blob_id, size=size, adler32=adler32, state=state, pack_adler32=pack_adler32
        )

        def requests() -> Iterator[catalog.RecordBlobRequest]:
            for batch in in_batches(members, _BATCH):
                yield catalog.RecordBlobRequest(
                    batch=catalog.RecordBlobRequest.Batch(members=batch)
                )
            yield catalog.RecordBlobRequest(seal=seal)

        with _rpc_errors():
            for answer in self._stub.RecordBlob(requests(), timeout=_STREAM_SECONDS):
                return answer
        raise Internal("NO_ANSWER", "the catalog did not answer a seal; see its log")

    def members(self, blob_ids: Sequence[int]) -> Iterator[catalog.ListMembersResponse.Member]:
        """Members of the blobs, in the order asked for and by offset."""
        request = catalog.ListMembersRequest(blob_ids=blob_ids)
        with _rpc_errors():
            for batch in self._stub.ListMembers(request, timeout=_STREAM_SECONDS):
                yield from batch.members

    def archivable(
        self, min_age_seconds: int, limit: int = 0
    ) -> Iterator[catalog.ListArchivableResponse]:
        """Cache blobs without a tape copy, by holding."""
        request = catalog.ListArchivableRequest(min_age_seconds=min_age_seconds, limit=limit)
        with _rpc_errors():
            yield from self._stub.ListArchivable(request, timeout=_STREAM_SECONDS)

    def claim_aggregate(
        self, holding_id: int, sources: Sequence[int], claim_key: str
    ) -> catalog.ClaimAggregateResponse:
        """Reserve cache blobs for one aggregate and name its tape blob."""
        request = catalog.ClaimAggregateRequest(
            holding_id=holding_id, source_blob_ids=sources, claim_key=claim_key
        )
        with _rpc_errors():
            return self._stub.ClaimAggregate(request)

    def release_aggregate(self, blob_id: int) -> None:
        """Give up an aggregate that will not be written."""
        with _rpc_errors():
            self._stub.ReleaseAggregate(catalog.ReleaseAggregateRequest(blob_id=blob_id))

    def set_states(
        self,
        blob_ids: Sequence[int],
        state: Blob.State.ValueType,
        only_from: Blob.State.ValueType = Blob.STATE_UNSPECIFIED,
    ) -> None:
        """Move blobs along their life; those of another state than ``only_from`` stay."""
        request = catalog.SetBlobStatesRequest(blob_ids=blob_ids, state=state, only_from=only_from)
        with _rpc_errors():
            self._stub.SetBlobStates(request)

    def claim_eviction(self, holding_id: int, bytes_wanted: int) -> Sequence[Blob]:
        """Cache blobs whose bytes may be removed now; they are not read any more."""
        request = catalog.ClaimEvictionRequest(holding_id=holding_id, bytes=bytes_wanted)
        with _rpc_errors():
            return self._stub.ClaimEviction(request).blobs

    def blobs(self, request: catalog.ListBlobsRequest) -> Iterator[Blob]:
        """Blobs by tier and state, by ascending number."""
        with _rpc_errors():
            for batch in self._stub.ListBlobs(request, timeout=_STREAM_SECONDS):
                yield from batch.blobs

    def usage(self) -> Iterator[catalog.GetUsageResponse]:
        """Usage of every group."""
        with _rpc_errors():
            yield from self._stub.GetUsage(catalog.GetUsageRequest())

    def report_fault(self, blob_id: int, file_ids: Sequence[int], reason: str) -> frozenset[int]:
        """Say that copies are missing (no file ids: the whole blob) or damaged, not to be read.

        Returns the files of them that have no readable copy any more.
        """
        request = catalog.ReportFaultRequest(blob_id=blob_id, file_ids=file_ids, reason=reason)
        with _rpc_errors():
            return frozenset(self._stub.ReportFault(request).lost_file_ids)

    def faults(
        self, *, blob_ids: Sequence[int] = (), file_ids: Sequence[int] = ()
    ) -> Iterator[catalog.Fault]:
        """Open faults by ascending blob and file: all, or those of up to 10,000 blobs or files."""
        request = catalog.ListFaultsRequest(open=True, blob_ids=blob_ids, file_ids=file_ids)
        with _rpc_errors():
            for batch in self._stub.ListFaults(request, timeout=_STREAM_SECONDS):
                yield from batch.faults

    def reinstate(self, blob_id: int, file_ids: Sequence[int], state: Blob.State.ValueType) -> int:
        """Read copies again that were at fault and are good; how many."""
        request = catalog.ReinstateCopiesRequest(blob_id=blob_id, file_ids=file_ids, state=state)
        with _rpc_errors():
            return self._stub.ReinstateCopies(request).reinstated

    def claim_replaced(
        self, tier: Blob.Tier.ValueType, min_age_seconds: int, *, dry_run: bool
    ) -> Iterator[Sequence[Blob]]:
        """Lost blobs whose files all have good copies elsewhere; REMOVING unless ``dry_run``.

        They come in batches, each of which is REMOVING when it comes; some are empty.
        """
        request = catalog.ClaimReplacedRequest(
            tier=tier, min_age_seconds=min_age_seconds, dry_run=dry_run
        )
        while True:
            with _rpc_errors():
                answer = self._stub.ClaimReplaced(request)
            yield answer.blobs
            if not answer.next_after:
                return
            request.after = answer.next_after

    def stale_puts(self, min_age_seconds: int) -> Iterator[catalog.ListStalePutsResponse.Put]:
        """PUTs that left registered files or an empty holding, whether they run or not."""
        request = catalog.ListStalePutsRequest(min_age_seconds=min_age_seconds)
        with _rpc_errors():
            for batch in self._stub.ListStalePuts(request, timeout=_STREAM_SECONDS):
                yield from batch.puts

    def forget_puts(self, transaction_ids: Sequence[str]) -> None:
        """Remove what these PUTs, which have ended, registered and did not store."""
        with _rpc_errors():
            self._stub.ForgetPuts(catalog.ForgetPutsRequest(transaction_ids=transaction_ids))

    def pin(self, request: catalog.PinFilesRequest) -> None:
        """Keep files in the cache for a time."""
        with _rpc_errors():
            self._stub.PinFiles(request)


def in_sized_batches(items: Iterable[M], most: int, most_bytes: int) -> Iterator[list[M]]:
    """Messages in lists of up to ``most`` and about ``most_bytes``; never an empty one."""
    batch: list[M] = []
    size = 0
    for item in items:
        batch.append(item)
        size += item.ByteSize()
        if len(batch) >= most or size >= most_bytes:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def in_batches(items: Iterable[T], most: int) -> Iterator[list[T]]:
    """``items`` in lists of up to ``most``; never an empty one."""
    rest = iter(items)
    while batch := list(islice(rest, most)):
        yield batch


@contextmanager
def _rpc_errors() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        decoded = from_rpc_error(error)
        if isinstance(decoded, Unavailable):
            decoded.metadata[DEPENDENCY] = CATALOG
        raise decoded from error
