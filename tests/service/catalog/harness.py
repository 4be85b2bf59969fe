"""A catalog on a real PostgreSQL behind its real server, and shorthand for what tests ask of it."""

import asyncio
import hashlib
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from deploy.local import postgres
from nearline.catalog.v1 import catalog_pb2 as api
from nearline.catalog.v1 import catalog_pb2_grpc
from nearline.type.v1.storage_pb2 import (
    Attributes,
    Blob,
    File,
    FileSelector,
    Holding,
    HoldingSelector,
    IdRange,
    StoredFile,
)
from services.catalog.__main__ import MIGRATIONS
from services.catalog.maintenance import Maintenance
from services.catalog.servicer import CatalogServicer
from services.kit.channel import sync_channel
from services.kit.config import DatabaseConfig, SecretFile
from services.kit.db import Database
from services.kit.errors import NearlineError, from_rpc_error
from services.kit.migrate import upgrade
from services.kit.server import Server
from tests.service.kit.mesh import Mesh

GROUP, USER = "gws_one", "ann"
Member = api.RecordBlobRequest.Member


def config_of(database: postgres.Database, directory: Path) -> DatabaseConfig:
    """How a service reaches the database; the password goes into a file of ``directory``."""
    secret = directory / f"{database.name}.password"
    secret.write_text(database.password)
    secret.chmod(0o600)
    return DatabaseConfig(
        host=database.host,
        port=database.port,
        name=database.name,
        user=database.user,
        password=SecretFile(secret),
    )


class Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Any) -> Any:
        """The result of a coroutine that runs in the loop."""
        done: Future[Any] = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        return done.result(60)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@contextmanager
def serving(database: DatabaseConfig, directory: Path) -> "Iterator[Catalog]":
    """A catalog that serves over mutual TLS; the peer is called ``transfer``."""
    mesh, loop = Mesh(directory), Loop()
    rpcs = ["/nearline.catalog.v1.CatalogService/*"]

    async def start() -> tuple[Database, Server]:
        opened = Database(database)
        server = Server(mesh.server(peers={"transfer": rpcs}, grace_seconds=2.0))
        servicer = CatalogServicer(opened, reservation_hours=24)
        server.add(catalog_pb2_grpc.add_CatalogServiceServicer_to_server, servicer)
        await server.start()
        return opened, server

    opened, server = loop.run(start())
    channel = sync_channel(mesh.peer("transfer", server.port))
    try:
        yield Catalog(catalog_pb2_grpc.CatalogServiceStub(channel), opened, loop, channel)
    finally:
        channel.close()
        loop.run(server.drain())
        opened.close()
        loop.stop()


def migrated(directory: Path) -> Callable[[postgres.Database], None]:
    """Prepares a database with the catalog's schema."""

    def prepare(database: postgres.Database) -> None:
        upgrade(config_of(database, directory), MIGRATIONS)

    return prepare


def digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def a_file(size: int = 10, **more: Any) -> Attributes:
    return Attributes(
        type=Attributes.FILE,
        size=size,
        mode=0o640,
        uid=1000,
        gid=100,
        mtime_ns=1_700_000_000_123_456_789,
        **more,
    )


def a_directory() -> Attributes:
    return Attributes(type=Attributes.DIRECTORY, mode=0o755)


def ranges(numbers: Iterable[int]) -> list[IdRange]:
    return [IdRange(first=number, count=1) for number in numbers]


@contextmanager
def refused(reason: str) -> Iterator[list[NearlineError]]:
    """The block's call is refused for ``reason``; the error is in the list afterwards."""
    caught: list[NearlineError] = []
    with pytest.raises(grpc.RpcError) as info:
        yield caught
    caught.append(from_rpc_error(info.value))
    assert caught[0].reason == reason, caught[0]


@dataclass
class Put:
    """A PUT transaction that has opened a holding."""

    holding: Holding
    transaction: str = field(default_factory=lambda: str(uuid.uuid4()))


@dataclass
class Catalog:
    """The catalog's stub, and the calls that tests make most."""

    stub: catalog_pb2_grpc.CatalogServiceStub
    database: Database
    loop: Loop
    channel: grpc.Channel

    def open(self, label: str = "", user: str = USER, group: str = GROUP, **more: Any) -> Put:
        transaction = more.pop("transaction", None) or str(uuid.uuid4())
        request = api.OpenHoldingRequest(
            transaction_id=transaction, user=user, group=group, label=label, **more
        )
        return Put(self.stub.OpenHolding(request).holding, transaction)

    def register(self, put: Put, found: dict[str, Attributes]) -> api.RegisterFilesResponse:
        (answer,) = self.register_all(put, [list(found.items())])
        return answer

    def register_all(
        self, put: Put, batches: Iterable[Sequence[tuple[str, Attributes]]]
    ) -> list[api.RegisterFilesResponse]:
        request, entry = api.RegisterFilesRequest, api.RegisterFilesRequest.Entry
        header = request.Header(holding_id=put.holding.id, transaction_id=put.transaction)

        def messages() -> Iterator[api.RegisterFilesRequest]:
            yield request(header=header)
            for batch in batches:
                entries = [entry(path=path, attributes=found) for path, found in batch]
                yield request(batch=request.Batch(entries=entries))

        return list(self.stub.RegisterFiles(messages()))

    def allocate(self, holding: int, tier: Any = Blob.CACHE, count: int = 1) -> list[Blob]:
        request = api.AllocateBlobsRequest(
            holding_id=holding, tier=tier, format=Blob.TAR, count=count, writer="test"
        )
        return list(self.stub.AllocateBlobs(request).blobs)

    def record(
        self, blob: Blob, members: Iterable[Member], state: Any = None, **seal: Any
    ) -> api.RecordBlobResponse:
        request = api.RecordBlobRequest
        members = list(members)
        seal.setdefault("size", sum(m.length for m in members) + 1000 * len(members) or 1)
        usual = Blob.STORED if blob.tier == Blob.CACHE else Blob.WRITTEN
        sealed = request.Seal(blob_id=blob.id, state=state or usual, **seal)
        parts = [members[at : at + 5000] for at in range(0, len(members), 5000)]
        messages = [request(batch=request.Batch(members=part)) for part in parts]
        (answer,) = self.stub.RecordBlob(iter([*messages, request(seal=sealed)]))
        return answer

    def store(self, put: Put, contents: dict[str, bytes]) -> tuple[Blob, dict[str, int]]:
        """Register files and record them in one cache blob."""
        answer = self.register(put, {path: a_file(len(data)) for path, data in contents.items()})
        numbers = dict(zip(contents, answer.file_ids, strict=True))
        (blob,) = self.allocate(put.holding.id)
        self.record(blob, members(numbers, contents))
        return blob, numbers

    def claim(self, put: Put, sources: Sequence[int], key: str = "") -> api.ClaimAggregateResponse:
        request = api.ClaimAggregateRequest(
            holding_id=put.holding.id,
            source_blob_ids=sources,
            claim_key=key or str(uuid.uuid4()),
        )
        return self.stub.ClaimAggregate(request)

    def archive(self, put: Put, sources: Sequence[Blob], state: Any = Blob.WRITTEN) -> Blob:
        """Claim and record an aggregate of whole cache blobs."""
        claimed = self.claim(put, [blob.id for blob in sources])
        copied = [
            Member(
                file_id=m.file.id,
                offset=at * 1000,
                length=m.file.attributes.size,
                digest=m.file.digest,
            )
            for at, m in enumerate(self.members(claimed.source_blob_ids))
        ]
        self.record(claimed.blob, copied, state=state, adler32=7)
        return claimed.blob

    def members(self, blobs: Iterable[int]) -> list[api.ListMembersResponse.Member]:
        answers = self.stub.ListMembers(api.ListMembersRequest(blob_ids=list(blobs)))
        return [member for answer in answers for member in answer.members]

    def files(self, numbers: Iterable[int]) -> list[StoredFile]:
        answers = self.stub.GetFiles(api.GetFilesRequest(files=ranges(numbers)))
        return [file for answer in answers for file in answer.files]

    def find(self, holdings: HoldingSelector | None = None, **more: Any) -> list[File]:
        request_fields = {k: more.pop(k) for k in ("descending", "limit", "cursor") if k in more}
        selector = FileSelector(holdings=holdings or HoldingSelector(groups=[GROUP]), **more)
        answers = self.stub.FindFiles(api.FindFilesRequest(selector=selector, **request_fields))
        return [file for answer in answers for file in answer.files]

    def resolve(
        self,
        *batches: Sequence[str],
        holdings: HoldingSelector | None = None,
        regex: bool = False,
    ) -> list[tuple[list[StoredFile], list[str]]]:
        """For each batch its files and the paths that matched nothing."""
        request = api.ResolveFilesRequest
        header = request.Header(holdings=holdings or HoldingSelector(groups=[GROUP]), regex=regex)
        messages = [request(batch=request.Batch(paths=batch)) for batch in batches]
        done, files = [], []
        for answer in self.stub.ResolveFiles(iter([request(header=header), *messages])):
            assert len(answer.files) <= 1000
            files += answer.files
            if answer.batch_done:
                done.append((files, list(answer.unmatched)))
                files = []
        assert not files
        return done

    def set_state(self, state: Any, *blobs: Blob) -> int:
        numbers = [blob.id for blob in blobs]
        return self.stub.SetBlobStates(
            api.SetBlobStatesRequest(blob_ids=numbers, state=state)
        ).changed

    def evict(self, **wanted: Any) -> list[Blob]:
        return list(self.stub.ClaimEviction(api.ClaimEvictionRequest(**wanted)).blobs)

    def blobs(self, **wanted: Any) -> dict[int, Blob]:
        answers = self.stub.ListBlobs(api.ListBlobsRequest(**wanted))
        return {blob.id: blob for answer in answers for blob in answer.blobs}

    def holdings(self, selector: HoldingSelector | None = None, **more: Any) -> list[Holding]:
        selector = selector or HoldingSelector(groups=[GROUP])
        answers = self.stub.ListHoldings(api.ListHoldingsRequest(selector=selector, **more))
        return [holding for answer in answers for holding in answer.holdings]

    def archivable(self, **wanted: Any) -> list[api.ListArchivableResponse]:
        return list(self.stub.ListArchivable(api.ListArchivableRequest(**wanted)))

    def usage(self, group: str = GROUP) -> api.GetUsageResponse:
        found = list(self.stub.GetUsage(api.GetUsageRequest(groups=[group])))
        return found[0] if found else api.GetUsageResponse(group=group)

    def fault(self, blob: Blob, *files: int) -> list[int]:
        request = api.ReportFaultRequest(blob_id=blob.id, file_ids=files, reason="gone")
        return list(self.stub.ReportFault(request).lost_file_ids)

    def faults(self, **wanted: Any) -> list[api.Fault]:
        answers = self.stub.ListFaults(api.ListFaultsRequest(**wanted))
        return [fault for answer in answers for fault in answer.faults]

    def tidy(self) -> None:
        """Run the maintenance once."""
        self.loop.run(Maintenance(self.database, 1).once())


def members(numbers: dict[str, int], contents: dict[str, bytes]) -> list[Member]:
    """Members of a pack that holds the contents one after the other."""
    done, offset = [], 512
    for path, number in numbers.items():
        data = contents[path]
        member = Member(
            file_id=number,
            offset=offset,
            length=len(data),
            digest=digest(data),
            attributes=a_file(len(data)),
        )
        done.append(member)
        offset += len(data) + 512
    return done
