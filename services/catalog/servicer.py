"""Translates the RPCs of the catalog: converts, makes one call, converts."""

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc

from nearline.catalog.v1 import catalog_pb2 as api
from nearline.catalog.v1 import catalog_pb2_grpc
from services.catalog import (
    archive,
    blobs,
    evict,
    faults,
    find,
    holdings,
    listing,
    pins,
    removal,
    rules,
    stale,
)
from services.catalog import register as registering
from services.catalog import seal as sealing
from services.catalog import usage as usages
from services.kit.db import Database
from services.kit.errors import Unimplemented

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class CatalogServicer(catalog_pb2_grpc.CatalogServiceServicer):
    """Answers from one database. ``reservation_hours``: see CatalogConfig."""

    def __init__(self, database: Database, reservation_hours: int) -> None:
        self._database = database
        self._reservation_hours = reservation_hours

    async def OpenHolding(  # noqa: N802
        self, request: api.OpenHoldingRequest, context: Context
    ) -> api.OpenHoldingResponse:
        return await self._database.write(holdings.open_holding, request)

    async def ListHoldings(  # noqa: N802
        self, request: api.ListHoldingsRequest, context: Context
    ) -> AsyncIterator[api.ListHoldingsResponse]:
        async for answer in listing.list_holdings(self._database, request):
            yield answer

    async def UpdateHolding(  # noqa: N802
        self, request: api.UpdateHoldingRequest, context: Context
    ) -> api.UpdateHoldingResponse:
        changed = await self._database.write(holdings.update, request)
        return api.UpdateHoldingResponse(holding=changed)

    async def FindFiles(  # noqa: N802
        self, request: api.FindFilesRequest, context: Context
    ) -> AsyncIterator[api.FindFilesResponse]:
        async for answer in find.find(self._database, request):
            yield answer

    async def RegisterFiles(  # noqa: N802
        self, requests: AsyncIterator[api.RegisterFilesRequest], context: Context
    ) -> AsyncIterator[api.RegisterFilesResponse]:
        stream = aiter(requests)
        header = (await _first(stream, "header")).header
        hours = self._reservation_hours
        target = await self._database.read(registering.target, header, hours)
        async for request in stream:
            entries = _only(request, "batch").batch.entries
            yield await registering.register(self._database, target, entries)

    async def GetFiles(  # noqa: N802
        self, request: api.GetFilesRequest, context: Context
    ) -> AsyncIterator[api.GetFilesResponse]:
        async for answer in listing.get_files(self._database, request):
            yield answer

    async def ResolveFiles(  # noqa: N802
        self, requests: AsyncIterator[api.ResolveFilesRequest], context: Context
    ) -> AsyncIterator[api.ResolveFilesResponse]:
        stream = aiter(requests)
        header = (await _first(stream, "header")).header
        resolver = find.Resolver(self._database, header)
        async for request in stream:
            async for answer in resolver.batch(_only(request, "batch").batch.paths):
                yield answer

    async def AllocateBlobs(  # noqa: N802
        self, request: api.AllocateBlobsRequest, context: Context
    ) -> api.AllocateBlobsResponse:
        named = await self._database.write(blobs.allocate, request)
        return api.AllocateBlobsResponse(blobs=named)

    async def RecordBlob(  # noqa: N802
        self, requests: AsyncIterator[api.RecordBlobRequest], context: Context
    ) -> AsyncIterator[api.RecordBlobResponse]:
        members = sealing.Members()
        async for request in requests:
            if request.WhichOneof("message") == "batch":
                members.add(request.batch.members)
            else:
                seal = sealing.checked(_only(request, "seal").seal)
                yield await self._database.write(sealing.seal, seal, members)
                members = sealing.Members()

    async def ListMembers(  # noqa: N802
        self, request: api.ListMembersRequest, context: Context
    ) -> AsyncIterator[api.ListMembersResponse]:
        async for answer in listing.list_members(self._database, request):
            yield answer

    async def ListArchivable(  # noqa: N802
        self, request: api.ListArchivableRequest, context: Context
    ) -> AsyncIterator[api.ListArchivableResponse]:
        async for answer in listing.list_archivable(self._database, request):
            yield answer

    async def ClaimAggregate(  # noqa: N802
        self, request: api.ClaimAggregateRequest, context: Context
    ) -> api.ClaimAggregateResponse:
        return await self._database.write(archive.claim, request)

    async def ReleaseAggregate(  # noqa: N802
        self, request: api.ReleaseAggregateRequest, context: Context
    ) -> api.ReleaseAggregateResponse:
        await self._database.write(archive.release, request.blob_id)
        return api.ReleaseAggregateResponse()

    async def SetBlobStates(  # noqa: N802
        self, request: api.SetBlobStatesRequest, context: Context
    ) -> api.SetBlobStatesResponse:
        rules.check_number(len(request.blob_ids), "blob_ids", most=blobs.MOST_BLOBS)
        changed = await self._database.write(
            removal.set_states, request.blob_ids, request.state, request.only_from
        )
        return api.SetBlobStatesResponse(changed=changed)

    async def ClaimEviction(  # noqa: N802
        self, request: api.ClaimEvictionRequest, context: Context
    ) -> api.ClaimEvictionResponse:
        claimed = await evict.claim(self._database, request)
        return api.ClaimEvictionResponse(blobs=claimed)

    async def ListBlobs(  # noqa: N802
        self, request: api.ListBlobsRequest, context: Context
    ) -> AsyncIterator[api.ListBlobsResponse]:
        async for answer in listing.list_blobs(self._database, request):
            yield answer

    async def ReportFault(  # noqa: N802
        self, request: api.ReportFaultRequest, context: Context
    ) -> api.ReportFaultResponse:
        lost = await self._database.write(removal.report_fault, request)
        return api.ReportFaultResponse(lost_file_ids=lost)

    async def ListFaults(  # noqa: N802
        self, request: api.ListFaultsRequest, context: Context
    ) -> AsyncIterator[api.ListFaultsResponse]:
        async for answer in faults.list_faults(self._database, request):
            yield answer

    async def ReinstateCopies(  # noqa: N802
        self, request: api.ReinstateCopiesRequest, context: Context
    ) -> api.ReinstateCopiesResponse:
        reinstated = await self._database.write(faults.reinstate, request)
        return api.ReinstateCopiesResponse(reinstated=reinstated)

    async def ClaimReplaced(  # noqa: N802
        self, request: api.ClaimReplacedRequest, context: Context
    ) -> api.ClaimReplacedResponse:
        return await self._database.write(faults.claim_replaced, request)

    async def ListStalePuts(  # noqa: N802
        self, request: api.ListStalePutsRequest, context: Context
    ) -> AsyncIterator[api.ListStalePutsResponse]:
        async for answer in stale.list_puts(self._database, request):
            yield answer

    async def ForgetPuts(  # noqa: N802
        self, request: api.ForgetPutsRequest, context: Context
    ) -> api.ForgetPutsResponse:
        return await stale.forget(self._database, request)

    async def GetUsage(  # noqa: N802
        self, request: api.GetUsageRequest, context: Context
    ) -> AsyncIterator[api.GetUsageResponse]:
        for row in await self._database.read(usages.of_groups, request.groups):
            yield usages.message(row)

    async def SetQuota(  # noqa: N802
        self, request: api.SetQuotaRequest, context: Context
    ) -> api.SetQuotaResponse:
        await self._database.write(usages.set_quota, request)
        return api.SetQuotaResponse()

    async def PinFiles(  # noqa: N802
        self, request: api.PinFilesRequest, context: Context
    ) -> api.PinFilesResponse:
        await self._database.write(pins.pin, request)
        return api.PinFilesResponse()

    async def DeleteFiles(  # noqa: N802
        self, requests: AsyncIterator[api.DeleteFilesRequest], context: Context
    ) -> AsyncIterator[api.DeleteFilesResponse]:
        raise _not_built("DeleteFiles")
        yield

    async def UndeleteFiles(  # noqa: N802
        self, requests: AsyncIterator[api.UndeleteFilesRequest], context: Context
    ) -> AsyncIterator[api.UndeleteFilesResponse]:
        raise _not_built("UndeleteFiles")
        yield


async def _first(stream: AsyncIterator[Any], kind: str) -> Any:
    request = await anext(stream, None)
    if request is None:
        raise rules.invalid(kind, "is missing; send it as the first message")
    return _only(request, kind)


def _only(request: Any, kind: str) -> Any:
    """A message of the stream, which must be of this kind here."""
    if request.WhichOneof("message") != kind:
        raise rules.invalid(kind, "is expected here; send one header, then only batches")
    return request


def _not_built(rpc: str) -> Unimplemented:
    return Unimplemented("NOT_BUILT", f"{rpc} is not built yet; files stay stored until it is")
