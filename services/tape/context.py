"""What every handler of tape works with."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import grpc

from nearline.monitor.v1 import monitor_pb2 as ledger
from nearline.monitor.v1 import monitor_pb2_grpc
from nearline.type.v1 import task_pb2, transaction_pb2
from nearline_client.states import is_final
from services.kit.catalogclient import CatalogClient
from services.kit.errors import NotFound, from_rpc_error
from services.kit.objectstore import ObjectStore
from services.kit.retrying import retry_id
from services.tape.config import TapeConfig
from services.tape.endpoint import TapeEndpoint


@dataclass(frozen=True, slots=True)
class Context:
    """Wired once per process; everything in it is thread-safe."""

    config: TapeConfig
    catalog: CatalogClient
    ledger: "OpenTasks"
    cache: ObjectStore
    tape: TapeEndpoint


class OpenTasks:
    """What the ledger still has to do."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = monitor_pb2_grpc.MonitorServiceStub(channel)

    def count(self, key: str, kind: task_pb2.Task.Kind.ValueType) -> int:
        """Tasks of this key and kind that have not ended. Raises NearlineError."""
        try:
            return self._stub.CountTasks(ledger.CountTasksRequest(key=key, kind=kind)).count
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def is_open(self, task_id: int) -> bool:
        """Whether a task has not ended. Raises NearlineError."""
        try:
            return bool(self._stub.CountTasks(ledger.CountTasksRequest(task_id=task_id)).count)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def has_ended(self, transaction_id: str, grace: float) -> bool:
        """Whether a transaction is over for ``grace`` seconds, or was never accepted.

        So must be the retry of it, and the retry's, which go on with what it left.
        Raises NearlineError.
        """
        before = datetime.now(UTC) - timedelta(seconds=grace)
        id_ = transaction_id
        while (found := self._find(id_)) is not None:
            if not is_final(found.state) or found.finished_at.ToDatetime(UTC) > before:
                return False
            id_ = retry_id(id_)
        return True

    def _find(self, transaction_id: str) -> transaction_pb2.Transaction | None:
        try:
            return self._stub.GetTransaction(
                ledger.GetTransactionRequest(id=transaction_id)
            ).transaction
        except grpc.RpcError as error:
            failure = from_rpc_error(error)
            if isinstance(failure, NotFound):
                return None
            raise failure from error
