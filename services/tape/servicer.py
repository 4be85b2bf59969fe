"""What tape tells the mesh; its work comes from the ledger."""

from collections.abc import AsyncIterator
from typing import Any

import grpc

from nearline.tape.v1 import tape_pb2 as tape
from nearline.tape.v1 import tape_pb2_grpc
from services.kit.catalogclient import in_batches
from services.kit.errors import InvalidArgument
from services.kit.threads import in_thread
from services.tape.context import Context
from services.tape.endpoint import TapeFileState
from services.tape.faulty import check_faults
from services.tape.reconcile import Options, orphans

_MOST_KEYS = 1000
_MOST_ORPHANS = 500
_RpcContext = grpc.aio.ServicerContext[Any, Any]


class TapeServicer(tape_pb2_grpc.TapeServiceServicer):
    """Answers from the endpoint."""

    def __init__(self, context: Context, driver: str, where: str) -> None:
        self._context = context
        self._endpoint = context.tape
        self._driver = driver
        self._where = where

    async def GetStatus(  # noqa: N802 - gRPC's name
        self, request: tape.GetStatusRequest, context: _RpcContext
    ) -> tape.GetStatusResponse:
        trouble = await in_thread(self._endpoint.healthy)
        return tape.GetStatusResponse(
            driver=self._driver, endpoint=self._where, trouble=trouble or ""
        )

    async def GetTapeFiles(  # noqa: N802
        self, request: tape.GetTapeFilesRequest, context: _RpcContext
    ) -> tape.GetTapeFilesResponse:
        if len(request.keys) > _MOST_KEYS:
            problem = f"has {len(request.keys)} keys; at most {_MOST_KEYS} are accepted"
            raise InvalidArgument("TOO_MANY", f"keys {problem}", violations=[("keys", problem)])
        states = await in_thread(self._endpoint.stat, list(request.keys), sizes=True)
        return tape.GetTapeFilesResponse(files=map(_to_proto, states))

    async def Reconcile(  # noqa: N802
        self, request: tape.ReconcileRequest, context: _RpcContext
    ) -> AsyncIterator[tape.ReconcileResponse]:
        config = self._context.config.reconcile
        options = Options(
            grace=request.grace_seconds or config.grace_seconds,
            put_grace=request.grace_seconds or config.put_grace_seconds,
            dry_run=request.dry_run,
            include_unknown=request.include_unknown,
        )
        batches = in_batches(orphans(self._context, options), _MOST_ORPHANS)
        while batch := await in_thread(next, batches, None):
            yield tape.ReconcileResponse(orphans=batch)

    async def VerifyFaults(  # noqa: N802
        self, request: tape.VerifyFaultsRequest, context: _RpcContext
    ) -> AsyncIterator[tape.VerifyFaultsResponse]:
        blobs = list(request.blob_ids)
        found = check_faults(self._context, blobs, stage=request.stage)
        while checked := await in_thread(next, found, None):
            yield tape.VerifyFaultsResponse(
                blob_id=checked.blob_id,
                key=checked.key,
                faults=checked.faults,
                reinstated=checked.reinstated,
                trouble=checked.trouble,
            )


def _to_proto(state: TapeFileState) -> tape.GetTapeFilesResponse.TapeFile:
    return tape.GetTapeFilesResponse.TapeFile(
        key=state.path,
        exists=state.exists,
        size=state.size or 0,
        online=state.online,
        on_tape=state.on_tape,
        requested=state.requested,
        error=state.error,
    )
