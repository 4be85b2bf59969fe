"""The ledger on a real database and a real port, with workers and clients of it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import grpc

from nearline.monitor.v1 import monitor_pb2 as pb
from nearline.monitor.v1.monitor_pb2_grpc import (
    MonitorServiceStub,
    add_MonitorServiceServicer_to_server,
)
from nearline.type.v1.identity_pb2 import Identity
from nearline.type.v1.task_pb2 import Task
from nearline.type.v1.transaction_pb2 import Transaction
from services.kit.channel import aio_channel
from services.kit.config import DatabaseConfig, PeerConfig, ServerConfig
from services.kit.db import Database
from services.kit.server import Server
from services.kit.worker import Handler, Worker
from services.monitor import sql
from services.monitor.config import LedgerConfig
from services.monitor.ledger import Ledger
from services.monitor.rules import is_final
from services.monitor.servicer import MonitorServicer

PATIENCE = 60.0

QUICK = LedgerConfig(
    heartbeat_seconds=0.2,
    lease_seconds=2.0,
    retry_first_seconds=0.05,
    poll_seconds=0.1,
    sweep_seconds=0.1,
)
"""Seconds instead of minutes, so that tests wait little."""

Kinds = Mapping[Any, Handler]


@dataclass
class Replica:
    """One running monitor and a client of it."""

    database: Database
    ledger: Ledger
    server: Server
    channel: grpc.aio.Channel
    stub: Any

    @property
    def peer(self) -> PeerConfig:
        """How to reach it."""
        return PeerConfig(address=f"127.0.0.1:{self.server.port}")

    def rows(self, statement: str, parameters: Any = ()) -> list[sql.Row]:
        """What the database says."""
        return self.database.read_sync(sql.rows, statement, parameters)

    def change(self, statement: str, parameters: Any = ()) -> None:
        """Make something come true that takes long by itself."""
        self.database.write_sync(sql.run, statement, parameters)


@asynccontextmanager
async def replica(
    database_config: DatabaseConfig, config: LedgerConfig = QUICK, listen: str = "127.0.0.1:0"
) -> AsyncIterator[Replica]:
    """A monitor in this process; ends with the block."""
    database = Database(database_config)
    ledger = Ledger(database, config)
    server = Server(ServerConfig(listen=listen, grace_seconds=2), mutual_tls=False)
    server.add(add_MonitorServiceServicer_to_server, MonitorServicer(ledger))
    server.on_drain(ledger.drain)
    await ledger.start()
    await server.start()
    channel = aio_channel(PeerConfig(address=f"127.0.0.1:{server.port}"))
    try:
        yield Replica(database, ledger, server, channel, MonitorServiceStub(channel))
    finally:
        await channel.close()
        await server.drain()
        await ledger.stop()
        database.close()


@asynccontextmanager
async def worker(peer: PeerConfig, handlers: Kinds, **options: Any) -> AsyncIterator[Worker]:
    """A worker of this process; told to stop at the end of the block."""
    options = {"service": "transfer", "slots": 2, "grace": 5.0, **options}
    made = Worker(lambda: aio_channel(peer), handlers=handlers, **options)
    stop = asyncio.Event()
    running = asyncio.create_task(made.run(stop))
    try:
        yield made
    finally:
        stop.set()
        await running


def spec(
    user: str = "alice",
    *,
    id_: str | None = None,
    group: str = "ocean",
    action: Any = Transaction.PUT,
    **fields: Any,
) -> pb.TransactionSpec:
    """What a request asks for."""
    who = Identity(user=user, groups=[Identity.GroupRole(group=group, role=Identity.USER)])
    return pb.TransactionSpec(
        id=id_ or str(uuid.uuid4()), identity=who, group=group, action=action, **fields
    )


def header(asked: pb.TransactionSpec) -> pb.SubmitRequest:
    return pb.SubmitRequest(header=pb.SubmitRequest.Header(transaction=asked))


def batch(first: int, paths: Sequence[str]) -> pb.SubmitRequest:
    return pb.SubmitRequest(paths=pb.SubmitRequest.Paths(first=first, paths=paths))


def commit(total: int = 0, **fields: Any) -> pb.SubmitRequest:
    return pb.SubmitRequest(commit=pb.SubmitRequest.Commit(total=total, **fields))


async def answers(stub: Any, *requests: pb.SubmitRequest) -> list[pb.SubmitResponse]:
    """All answers of one Submit call."""

    async def send() -> AsyncIterator[pb.SubmitRequest]:
        for request in requests:
            yield request

    return [answer async for answer in stub.Submit(send())]


async def submit(
    stub: Any,
    asked: pb.TransactionSpec,
    tasks: Sequence[pb.NewTask] = (),
    paths: Sequence[str] = (),
    chunk_kind: Any = Task.KIND_UNSPECIFIED,
) -> str:
    """Have a request accepted; its id."""
    batches = [batch(at, paths[at : at + 1000]) for at in range(0, len(paths), 1000)]
    end = commit(len(paths), tasks=tasks, chunk_kind=chunk_kind)
    answered = await answers(stub, header(asked), *batches, end)
    assert answered[-1].transaction.id == asked.id
    return asked.id


async def get(stub: Any, id_: str, **options: Any) -> Transaction:
    answer = await stub.GetTransaction(pb.GetTransactionRequest(id=id_, **options))
    return Transaction.FromString(answer.transaction.SerializeToString())


async def ended(stub: Any, id_: str) -> Transaction:
    """The transaction once it has its final state."""

    async def watch() -> Transaction:
        last = Transaction()
        async for answer in stub.Watch(pb.WatchRequest(id=id_)):
            last = answer.transaction
        assert is_final(last.state)
        return last

    return await asyncio.wait_for(watch(), PATIENCE)


async def until(holds: Callable[[], Awaitable[Any] | Any], what: str = "") -> Any:
    """Wait until ``holds`` gives something true; that."""
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                found = holds()
                if asyncio.iscoroutine(found):
                    found = await found
                if found:
                    return found
                await asyncio.sleep(0.02)
    except TimeoutError as error:
        raise AssertionError(f"never came true: {what or holds}") from error


class Raw:
    """A worker spoken by hand, to say what a well-behaved one would not."""

    def __init__(self, stub: Any, worker_id: str = "raw", **hello: Any) -> None:
        self.call = stub.Work()
        # A call takes one write at a time, and tests beat while they wait for something else.
        self._writing = asyncio.Lock()
        self._hello = pb.WorkRequest.Hello(
            worker_id=worker_id, service="transfer", host="here",
            **{"kinds": [Task.UPLOAD], "slots": 100, **hello},
        )  # fmt: skip
        self.inbox: list[pb.WorkResponse] = []

    async def connect(self) -> pb.WorkResponse.Welcome:
        await self.send(hello=self._hello)
        return (await self.next("welcome")).welcome

    async def send(self, **message: Any) -> None:
        async with self._writing:
            await self.call.write(pb.WorkRequest(**message))

    async def next(self, name: str) -> pb.WorkResponse:
        """The next message of this name; others wait for their turn."""
        for message in self.inbox:
            if message.WhichOneof("message") == name:
                self.inbox.remove(message)
                return message
        async with asyncio.timeout(PATIENCE):
            while (message := await self.call.read()) is not grpc.aio.EOF:
                if message.WhichOneof("message") == name:
                    return message
                self.inbox.append(message)
        raise AssertionError(f"the stream ended before {name}: {await self.call.code()}")

    async def lease(self) -> pb.WorkResponse.Assignment:
        await self.send(credit=pb.WorkRequest.Credit(tasks=1))
        return (await self.next("assignment")).assignment

    async def acked(self, **message: Any) -> bool:
        """Whether the ledger accepts a report."""
        await self.send(**message)
        return (await self.next("ack")).ack.accepted

    async def beat(self, *progress: pb.WorkRequest.Progress, trouble: str = "") -> None:
        await self.send(heartbeat=pb.WorkRequest.Heartbeat(progress=progress, trouble=trouble))

    async def close(self) -> None:
        await self.call.done_writing()
        with suppress(grpc.aio.AioRpcError):
            while await self.call.read() is not grpc.aio.EOF:
                pass
