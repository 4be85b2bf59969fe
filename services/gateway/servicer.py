"""The public API: each method checks what the caller may ask, asks one service, passes it on."""

from collections.abc import AsyncIterator
from typing import Any, NoReturn, TypeVar

import grpc

from nearline.catalog.v1 import catalog_pb2 as catalog
from nearline.catalog.v1 import catalog_pb2_grpc
from nearline.gateway.v1 import gateway_pb2 as api
from nearline.gateway.v1 import gateway_pb2_grpc
from nearline.monitor.v1 import monitor_pb2 as ledger
from nearline.monitor.v1 import monitor_pb2_grpc
from nearline.type.v1 import storage_pb2, transaction_pb2
from services.gateway import access, requests, validate
from services.gateway.submissions import Submissions
from services.gateway.system import System
from services.kit import identity as identities
from services.kit.errors import NotFound, Unimplemented, from_rpc_error
from services.kit.identity import Role, require_identity

_R = TypeVar("_R", api.PutResponse, api.GetResponse, api.StageResponse)
_Context = grpc.aio.ServicerContext[Any, Any]


class GatewayServicer(gateway_pb2_grpc.GatewayServiceServicer):
    """Holds no state; bytes of local puts and gets never pass it."""

    def __init__(
        self, catalog_channel: grpc.aio.Channel, monitor_channel: grpc.aio.Channel, system: System
    ) -> None:
        self._catalog = catalog_pb2_grpc.CatalogServiceStub(catalog_channel)
        self._monitor = monitor_pb2_grpc.MonitorServiceStub(monitor_channel)
        self._submissions = Submissions(self._monitor)
        self._system = system

    async def Put(  # noqa: N802 - gRPC's name
        self, request_iterator: AsyncIterator[api.PutRequest], context: _Context
    ) -> AsyncIterator[api.PutResponse]:
        header = requests.header_of(await anext(request_iterator, None))
        spec = requests.put_spec(require_identity(), header)

        async def commit() -> ledger.SubmitRequest.Commit:
            await self._check_quota(spec.group)
            opened = await self._catalog.OpenHolding(requests.open_holding(spec, header))
            return requests.put_commit(opened)

        async for step in self._submissions.submit(spec, request_iterator, commit):
            yield _answer(api.PutResponse, step)

    async def Get(  # noqa: N802
        self, request_iterator: AsyncIterator[api.GetRequest], context: _Context
    ) -> AsyncIterator[api.GetResponse]:
        header = requests.header_of(await anext(request_iterator, None))
        spec = requests.get_spec(require_identity(), header)
        async for step in self._submissions.submit(
            spec, request_iterator, _resolve, regex=header.regex
        ):
            yield _answer(api.GetResponse, step)

    async def Stage(  # noqa: N802
        self, request_iterator: AsyncIterator[api.StageRequest], context: _Context
    ) -> AsyncIterator[api.StageResponse]:
        header = requests.header_of(await anext(request_iterator, None))
        spec = requests.stage_spec(require_identity(), header)
        async for step in self._submissions.submit(
            spec, request_iterator, _resolve, regex=header.regex
        ):
            yield _answer(api.StageResponse, step)

    async def ListHoldings(  # noqa: N802
        self, request: api.ListHoldingsRequest, context: _Context
    ) -> AsyncIterator[api.ListHoldingsResponse]:
        wanted = requests.list_holdings(require_identity(), request)
        async for batch in self._catalog.ListHoldings(wanted):
            yield api.ListHoldingsResponse(holdings=batch.holdings, cursor=batch.cursor)

    async def FindFiles(  # noqa: N802
        self, request: api.FindFilesRequest, context: _Context
    ) -> AsyncIterator[api.FindFilesResponse]:
        wanted = requests.find_files(require_identity(), request)
        async for batch in self._catalog.FindFiles(wanted):
            yield api.FindFilesResponse(files=batch.files, cursor=batch.cursor)

    async def UpdateHolding(  # noqa: N802
        self, request: api.UpdateHoldingRequest, context: _Context
    ) -> api.UpdateHoldingResponse:
        wanted = requests.update_holding(require_identity(), request)
        answer = await self._catalog.UpdateHolding(wanted)
        return api.UpdateHoldingResponse(holding=answer.holding)

    async def GetTransaction(  # noqa: N802
        self, request: api.GetTransactionRequest, context: _Context
    ) -> api.GetTransactionResponse:
        transaction = await self._transaction(request.id, failures=request.with_failures)
        return api.GetTransactionResponse(transaction=transaction)

    async def ListTransactions(  # noqa: N802
        self, request: api.ListTransactionsRequest, context: _Context
    ) -> AsyncIterator[api.ListTransactionsResponse]:
        wanted = requests.list_transactions(require_identity(), request)
        async for batch in self._monitor.ListTransactions(wanted):
            yield api.ListTransactionsResponse(transactions=batch.transactions, cursor=batch.cursor)

    async def ListFailures(  # noqa: N802
        self, request: api.ListFailuresRequest, context: _Context
    ) -> AsyncIterator[api.ListFailuresResponse]:
        wanted = ledger.ListFailuresRequest(
            id=validate.transaction_id(request.id, "id"),
            visibility=access.visibility(require_identity()),
            cursor=request.cursor,
        )
        async for batch in self._monitor.ListFailures(wanted):
            yield api.ListFailuresResponse(failures=batch.failures, cursor=batch.cursor)

    async def ListTasks(  # noqa: N802
        self, request: api.ListTasksRequest, context: _Context
    ) -> AsyncIterator[api.ListTasksResponse]:
        wanted = ledger.ListTasksRequest(
            id=validate.transaction_id(request.id, "id"),
            visibility=access.visibility(require_identity()),
            after=validate.number(request.after, "after"),
        )
        async for batch in self._monitor.ListTasks(wanted):
            yield api.ListTasksResponse(tasks=batch.tasks)

    async def WatchTransaction(  # noqa: N802
        self, request: api.WatchTransactionRequest, context: _Context
    ) -> AsyncIterator[api.WatchTransactionResponse]:
        wanted = ledger.WatchRequest(
            id=validate.transaction_id(request.id, "id"),
            visibility=access.visibility(require_identity()),
        )
        async for change in self._monitor.Watch(wanted):
            yield api.WatchTransactionResponse(transaction=change.transaction)

    async def CancelTransaction(  # noqa: N802
        self, request: api.CancelTransactionRequest, context: _Context
    ) -> api.CancelTransactionResponse:
        visible = await self._cancellable(request.id)
        answer = await self._monitor.CancelTransaction(
            ledger.CancelTransactionRequest(id=request.id, visibility=visible)
        )
        return api.CancelTransactionResponse(transaction=answer.transaction)

    async def RetryTransaction(  # noqa: N802
        self, request: api.RetryTransactionRequest, context: _Context
    ) -> api.RetryTransactionResponse:
        identity = require_identity()
        old = await self._transaction(request.id)
        access.own_transaction(identity, old)
        if old.action == transaction_pb2.Transaction.PUT:
            await self._check_quota(old.group)
        answer = await self._monitor.RetryTransaction(requests.retry(identity, old))
        return api.RetryTransactionResponse(transaction=answer.transaction)

    async def EvictHolding(  # noqa: N802
        self, request: api.EvictHoldingRequest, context: _Context
    ) -> api.EvictHoldingResponse:
        identity = require_identity()
        holding = await self._holding(request.holding_id)
        access.require_role(identity, holding.group, Role.MANAGER, "evicting a holding")
        transaction = await self._submissions.submit_tasks(
            requests.evict_spec(identity, request, holding), requests.evict_commit(holding.id)
        )
        return api.EvictHoldingResponse(transaction=transaction)

    async def GetUsage(  # noqa: N802
        self, request: api.GetUsageRequest, context: _Context
    ) -> AsyncIterator[api.GetUsageResponse]:
        groups = access.readable_groups(require_identity(), request.group)
        # No group in the request means every group of the store to the catalog.
        if groups:
            async for usage in self._catalog.GetUsage(catalog.GetUsageRequest(groups=groups)):
                groups.remove(usage.group)
                yield api.GetUsageResponse(usage=usage)
        # The catalog does not know groups that have never stored anything.
        for group in groups:
            yield api.GetUsageResponse(usage=catalog.GetUsageResponse(group=group))

    async def SetQuota(  # noqa: N802
        self, request: api.SetQuotaRequest, context: _Context
    ) -> api.SetQuotaResponse:
        group = access.own_group(require_identity(), request.group)
        access.require_role(require_identity(), group, Role.MANAGER, "setting a quota")
        await self._catalog.SetQuota(
            catalog.SetQuotaRequest(
                group=group,
                quota_bytes=validate.number(request.quota_bytes, "quota_bytes"),
                quota_files=validate.number(request.quota_files, "quota_files"),
            )
        )
        return api.SetQuotaResponse()

    async def ListFaults(  # noqa: N802
        self, request: api.ListFaultsRequest, context: _Context
    ) -> AsyncIterator[api.ListFaultsResponse]:
        wanted = requests.list_faults(require_identity(), request)
        async for batch in self._catalog.ListFaults(wanted):
            yield api.ListFaultsResponse(faults=batch.faults, cursor=batch.cursor)

    async def GetSystem(  # noqa: N802
        self, request: api.GetSystemRequest, context: _Context
    ) -> api.GetSystemResponse:
        return await self._system.look()

    async def ListParkedTasks(  # noqa: N802
        self, request: api.ListParkedTasksRequest, context: _Context
    ) -> AsyncIterator[api.ListParkedTasksResponse]:
        wanted = ledger.ListParkedTasksRequest(
            visibility=access.managed(require_identity(), request.group),
            before=validate.number(request.before, "before"),
        )
        async for batch in self._monitor.ListParkedTasks(wanted):
            yield api.ListParkedTasksResponse(tasks=batch.tasks)

    async def GetIdentity(  # noqa: N802
        self, request: api.GetIdentityRequest, context: _Context
    ) -> api.GetIdentityResponse:
        return api.GetIdentityResponse(identity=identities.to_proto(require_identity()))

    async def Delete(  # noqa: N802
        self, request_iterator: AsyncIterator[api.DeleteRequest], context: _Context
    ) -> AsyncIterator[api.DeleteResponse]:
        _not_built("deleting files")
        yield

    async def Undelete(  # noqa: N802
        self, request_iterator: AsyncIterator[api.UndeleteRequest], context: _Context
    ) -> AsyncIterator[api.UndeleteResponse]:
        _not_built("taking back a deletion")
        yield

    async def UploadFile(  # noqa: N802
        self, request_iterator: AsyncIterator[api.UploadFileRequest], context: _Context
    ) -> api.UploadFileResponse:
        _not_built("storing a remote file")

    async def DownloadFile(  # noqa: N802
        self, request: api.DownloadFileRequest, context: _Context
    ) -> AsyncIterator[api.DownloadFileResponse]:
        _not_built("reading a file remotely")
        yield

    async def _check_quota(self, group: str) -> None:
        async for usage in self._catalog.GetUsage(catalog.GetUsageRequest(groups=[group])):
            requests.check_quota(usage)

    async def _transaction(
        self, transaction_id: str, *, failures: bool = False
    ) -> transaction_pb2.Transaction:
        answer = await self._monitor.GetTransaction(
            ledger.GetTransactionRequest(
                id=validate.transaction_id(transaction_id, "id"),
                visibility=_mine(),
                with_failures=failures,
            )
        )
        return answer.transaction

    async def _cancellable(self, transaction_id: str) -> ledger.Visibility:
        """What the caller may stop: what is there, or an own request that still arrives."""
        identity = require_identity()
        try:
            access.may_change(identity, await self._transaction(transaction_id))
        except grpc.aio.AioRpcError as error:
            if not isinstance(from_rpc_error(error), NotFound):
                raise
            return access.visibility(identity, user=identity.user)
        return access.visibility(identity)

    async def _holding(self, holding_id: int) -> storage_pb2.Holding:
        wanted = catalog.ListHoldingsRequest(
            selector=storage_pb2.HoldingSelector(
                groups=sorted(require_identity().groups),
                holding_id=validate.number(holding_id, "holding_id", least=1),
            )
        )
        async for batch in self._catalog.ListHoldings(wanted):
            for holding in batch.holdings:
                return holding
        raise NotFound(
            "HOLDING_NOT_FOUND",
            f"none of your groups has a holding {holding_id}; `nlds list` shows those that exist",
            holding_id=holding_id,
        )


async def _resolve() -> ledger.SubmitRequest.Commit:
    return requests.resolve_commit()


def _answer(kind: type[_R], step: int | transaction_pb2.Transaction) -> _R:
    if isinstance(step, int):
        return kind(next=step)
    return kind(transaction=step)


def _mine() -> ledger.Visibility:
    return access.visibility(require_identity())


def _not_built(what: str) -> NoReturn:
    raise Unimplemented("NOT_BUILT", f"{what} is not built yet in this version of the store")
