"""What every handler of transfer works with."""

from collections.abc import Iterator
from dataclasses import dataclass

import grpc

from nearline.monitor.v1 import monitor_pb2 as ledger
from nearline.monitor.v1 import monitor_pb2_grpc
from nearline.type.v1 import identity_pb2
from nearline_client import names
from services.kit.catalogclient import CatalogClient
from services.kit.errors import Unavailable, from_rpc_error
from services.kit.jobs import Job, JobContext
from services.kit.objectstore import ObjectStore
from services.transfer.config import TransferConfig
from services.transfer.credentials import Credentials, lookup
from services.transfer.filefailures import FileError
from services.transfer.userfs import UserFiles, UserFs

_PATHS_SECONDS = 60.0
_FILESYSTEM_RETRY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Context:
    """Wired once per worker process; everything in it is thread-safe."""

    config: TransferConfig
    catalog: CatalogClient
    ledger: "PathLists"
    cache: ObjectStore
    users: UserFs

    def serving(self, job: Job, target: bytes = b"", task: int = 0) -> UserFiles:
        """The file access of the user who asked. PermissionDenied when it cannot be given.

        Links below ``target`` (the directory that a GET names) are not followed: what is restored
        there comes from others too, and their link must not lead a file of theirs elsewhere.
        Temporary files are those of ``task``, the job's own as a rule.
        """
        return self.users.serving(
            credentials_of(job.transaction.identity), target or None, task or job.task_id
        )


class PathLists:
    """The ledger's lists of paths."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = monitor_pb2_grpc.MonitorServiceStub(channel)

    def read(self, job: Job) -> Iterator[list[str]]:
        """The paths of the job's chunk in batches, in wire form. Raises NearlineError."""
        request = ledger.ReadPathsRequest(transaction_id=job.transaction.id, chunk=job.chunk or 0)
        try:
            for batch in self._stub.ReadPaths(request, timeout=_PATHS_SECONDS):
                yield list(batch.paths)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error


def credentials_of(identity: identity_pb2.Identity) -> Credentials:
    """POSIX ids: those of the token where it has some, else this host's for the name."""
    if identity.HasField("uid"):
        return Credentials(identity.uid, identity.gid, tuple(identity.gids))
    return lookup(identity.user)


def unavailable(error: FileError) -> Unavailable:
    """What ends an attempt when the file system is what failed."""
    failure = error.failure
    return Unavailable(failure.code, failure.reason, retry_after=_FILESYSTEM_RETRY_SECONDS)


def record_failure(ctx: JobContext, path: str, error: FileError, *, target: bytes = b"") -> None:
    """Record a file that failed for good; Unavailable when the file system is what failed.

    ``target``: where it was to be written, named in the reason when that is not ``path`` itself.
    """
    failure = error.failure
    if failure.transient:
        raise unavailable(error) from error
    place = names.encode(target) if target else path
    reason = failure.reason if place == path else f"{failure.reason}: {place}"
    ctx.failures([(path, failure.code, reason)])
