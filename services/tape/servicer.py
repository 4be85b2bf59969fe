"""What tape tells the mesh; its work comes from the ledger."""

from typing import Any

import grpc

from nearline.tape.v1 import tape_pb2 as tape
from nearline.tape.v1 import tape_pb2_grpc
from services.kit.errors import InvalidArgument
from services.kit.threads import in_thread
from services.tape.endpoint import TapeEndpoint, TapeFileState

_MOST_KEYS = 1000
_Context = grpc.aio.ServicerContext[Any, Any]


class TapeServicer(tape_pb2_grpc.TapeServiceServicer):
    """Answers from the endpoint."""

    def __init__(self, endpoint: TapeEndpoint, driver: str, where: str) -> None:
        self._endpoint = endpoint
        self._driver = driver
        self._where = where

    async def GetStatus(  # noqa: N802 - gRPC's name
        self, request: tape.GetStatusRequest, context: _Context
    ) -> tape.GetStatusResponse:
        trouble = await in_thread(self._endpoint.healthy)
        return tape.GetStatusResponse(
            driver=self._driver, endpoint=self._where, trouble=trouble or ""
        )

    async def GetTapeFiles(  # noqa: N802
        self, request: tape.GetTapeFilesRequest, context: _Context
    ) -> tape.GetTapeFilesResponse:
        if len(request.keys) > _MOST_KEYS:
            problem = f"has {len(request.keys)} keys; at most {_MOST_KEYS} are accepted"
            raise InvalidArgument("TOO_MANY", f"keys {problem}", violations=[("keys", problem)])
        states = await in_thread(self._endpoint.stat, list(request.keys), sizes=True)
        return tape.GetTapeFilesResponse(files=map(_to_proto, states))


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
