"""A server that has as many calls as it can take refuses more, and says when to come again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.gateway.calllimit import CallLimit
from services.kit import errors, identity
from services.kit.interceptor import Continuation, Details
from services.kit.server import Server
from tests.service.kit.mesh import Echo, EchoStub, Mesh, mount


class NamedByText(grpc.aio.ServerInterceptor):
    """Takes the user's name from the metadata, as a token would say it."""

    async def intercept_service(self, continuation: Continuation, details: Details) -> Any:
        sent = dict(details.invocation_metadata or ())
        identity.bind(identity=identity.Identity(str(sent["user"])))
        return await continuation(details)


class Held(Echo):
    """Keeps unary calls until it is told to let go."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = asyncio.Semaphore(0)
        self.go = asyncio.Event()
        self.answer = self._hold

    async def _hold(self, text: str) -> str:
        self.entered.release()
        await self.go.wait()
        return text


async def refused(call: Any) -> errors.ResourceExhausted:
    try:
        await call
    except grpc.RpcError as error:
        found = errors.from_rpc_error(error)
        assert isinstance(found, errors.ResourceExhausted)
        assert found.transient
        return found
    raise AssertionError("the call was taken")


def test_calls_beyond_the_limits_are_told_when_to_come_again(tmp_path: Path) -> None:
    async def test() -> None:
        config = Mesh(tmp_path).server(max_concurrent_rpcs=3, grace_seconds=1)
        assert config.tls is not None
        echo = Held()
        interceptors = [NamedByText(), CallLimit(2)]
        server = Server(config, interceptors=interceptors, mutual_tls=False)
        mount(server, echo)
        await server.start()
        trusted = grpc.ssl_channel_credentials(config.tls.ca.read_bytes())
        async with grpc.aio.secure_channel(f"127.0.0.1:{server.port}", trusted) as channel:
            stub = EchoStub(channel)

            def call(user: str) -> Any:
                return stub.unary(StringValue(value=user), metadata=(("user", user),))

            running = [call(user) for user in ("ann", "ann", "bob")]
            for _ in running:
                await echo.entered.acquire()
            assert (await refused(call("eve"))).reason == "OVERLOADED"
            # Probes are answered whatever else happens.
            health = health_pb2_grpc.HealthStub(channel)
            assert (await health.Check(health_pb2.HealthCheckRequest())).status == 1
            running.pop().cancel()
            async with asyncio.timeout(10):
                while (error := await refused(call("ann"))).reason == "OVERLOADED":
                    await asyncio.sleep(0.01)
            assert (error.reason, error.metadata["limit"]) == ("TOO_MANY_CALLS", "2")
            echo.go.set()
            assert [(await each).value for each in running] == ["ann", "ann"]
            assert (await call("ann")).value == "ann"
        await server.drain()

    asyncio.run(asyncio.wait_for(test(), 60))
