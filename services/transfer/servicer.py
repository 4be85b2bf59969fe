"""What transfer tells the mesh; its work comes from the ledger."""

from collections.abc import AsyncIterator
from typing import Any, NoReturn

import grpc

from nearline.transfer.v1 import transfer_pb2 as transfer
from nearline.transfer.v1 import transfer_pb2_grpc
from services.kit.errors import Unimplemented
from services.transfer.credentials import privileged
from services.transfer.processes import Processes

_Context = grpc.aio.ServicerContext[Any, Any]


class TransferServicer(transfer_pb2_grpc.TransferServiceServicer):
    """Answers from the worker processes' supervisor."""

    def __init__(self, processes: Processes, roots: list[str]) -> None:
        self._processes = processes
        self._roots = roots

    async def GetStatus(  # noqa: N802 - gRPC's name
        self, request: transfer.GetStatusRequest, context: _Context
    ) -> transfer.GetStatusResponse:
        down = self._processes.wanted - self._processes.running
        return transfer.GetStatusResponse(
            roots=self._roots,
            privileged=privileged(),
            trouble=f"{down} worker processes are down; the log says why" if down else "",
            workers=self._processes.running,
        )

    async def UploadFile(  # noqa: N802
        self, request_iterator: AsyncIterator[transfer.UploadFileRequest], context: _Context
    ) -> transfer.UploadFileResponse:
        _not_built("storing a remote file")

    async def DownloadFile(  # noqa: N802
        self, request: transfer.DownloadFileRequest, context: _Context
    ) -> AsyncIterator[transfer.DownloadFileResponse]:
        _not_built("reading a file remotely")
        yield


def _not_built(what: str) -> NoReturn:
    raise Unimplemented("NOT_BUILT", f"{what} is not built yet in this version of the store")
