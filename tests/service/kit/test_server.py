"""A real server with mutual TLS: who gets in, what gets out, and how it ends."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.kit import errors, identity, threads
from services.kit.channel import aio_channel, remaining, sync_channel
from services.kit.config import ConfigError, PeerConfig, ServerConfig
from services.kit.server import Server
from tests.service.kit.mesh import SERVICE, Echo, EchoStub, Mesh, mount

ARITIES = ("unary", "down", "up", "both")
PEERS = {"gateway": [f"/{SERVICE}/*"], "tape": [f"/{SERVICE}/Unary"]}


@pytest.fixture
def mesh(tmp_path: Path) -> Mesh:
    return Mesh(tmp_path)


@asynccontextmanager
async def running(
    config: ServerConfig, echo: Echo | None = None, **options: Any
) -> AsyncIterator[Server]:
    server = Server(config, **options)
    mount(server, echo or Echo())
    await server.start()
    try:
        yield server
    finally:
        await server.drain()


def sync(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test with its fixtures."""

    def run(mesh: Mesh) -> None:
        asyncio.run(asyncio.wait_for(test(mesh), 60))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def failure(call: Awaitable[Any]) -> errors.NearlineError:
    with pytest.raises(grpc.RpcError) as caught:
        await call
    return errors.from_rpc_error(caught.value)


@pytest.mark.parametrize("arity", ARITIES)
def test_every_arity_answers_and_knows_peer_and_user(mesh: Mesh, arity: str) -> None:
    async def test() -> None:
        async with (
            running(mesh.server(peers=PEERS)) as server,
            aio_channel(mesh.peer("gateway", server.port)) as channel,
        ):
            with identity.acting_as(identity.Identity("ann")):
                assert await EchoStub(channel).call(arity, "hello") == "hello gateway ann"
            assert await EchoStub(channel).call(arity, "hello") == "hello gateway None"

    asyncio.run(test())


@pytest.mark.parametrize("arity", ARITIES)
def test_errors_of_every_arity_reach_the_caller(mesh: Mesh, arity: str) -> None:
    async def refuse(text: str) -> str:
        raise errors.NotFound("HOLDING_NOT_FOUND", "no holding 12; list yours", holding="12")

    async def test() -> None:
        echo = Echo()
        echo.answer = refuse
        async with (
            running(mesh.server(peers=PEERS), echo) as server,
            aio_channel(mesh.peer("gateway", server.port)) as channel,
        ):
            error = await failure(EchoStub(channel).call(arity, ""))
        assert type(error) is errors.NotFound
        assert error.reason == "HOLDING_NOT_FOUND"
        assert error.metadata == {"holding": "12"}

    asyncio.run(test())


@pytest.mark.parametrize("arity", ARITIES)
def test_unknown_exceptions_are_hidden_and_logged(mesh: Mesh, arity: str) -> None:
    async def crash(text: str) -> str:
        raise RuntimeError("password=hunter2")

    async def test() -> None:
        echo = Echo()
        echo.answer = crash
        with structlog.testing.capture_logs() as lines:
            async with (
                running(mesh.server(peers=PEERS), echo) as server,
                aio_channel(mesh.peer("gateway", server.port)) as channel,
            ):
                error = await failure(EchoStub(channel).call(arity, ""))
        assert type(error) is errors.Internal
        assert "hunter2" not in error.message
        assert error.metadata["request_id"] in error.message
        unhandled = [line for line in lines if line["event"] == "unhandled"]
        assert [str(line["exc_info"]) for line in unhandled] == ["password=hunter2"]

    asyncio.run(test())


@sync
async def test_an_error_of_the_next_service_is_passed_on(mesh: Mesh) -> None:
    async def busy(text: str) -> str:
        raise errors.Aborted("TRANSACTION_CONFLICT", "try again", retry_after=2)

    async with running(mesh.server(peers=PEERS), last := Echo()) as end:
        last.answer = busy
        async with aio_channel(mesh.peer("gateway", end.port)) as onward:
            first = Echo()
            first.answer = lambda text: EchoStub(onward).call("unary", text)
            async with (
                running(mesh.server(peers=PEERS), first) as front,
                aio_channel(mesh.peer("gateway", front.port)) as channel,
            ):
                error = await failure(EchoStub(channel).call("unary", ""))
    assert type(error) is errors.Aborted
    assert error.retry_after == 2


@sync
async def test_no_certificate_and_foreign_certificates_do_not_connect(mesh: Mesh) -> None:
    stranger = Mesh(mesh._directory)
    async with running(mesh.server(peers=PEERS)) as server:
        foreign = mesh.peer("gateway", server.port, by=stranger)
        async with aio_channel(foreign) as channel:
            assert isinstance(
                await failure(EchoStub(channel).unary(StringValue(), timeout=5)), errors.Unavailable
            )
        authority = grpc.ssl_channel_credentials(foreign.tls.ca.read_bytes())  # type: ignore[union-attr]
        async with grpc.aio.secure_channel(foreign.address, authority) as bare:
            assert isinstance(
                await failure(EchoStub(bare).unary(StringValue(), timeout=5)), errors.Unavailable
            )
        async with grpc.aio.insecure_channel(foreign.address) as plain:
            assert isinstance(
                await failure(EchoStub(plain).unary(StringValue(), timeout=5)), errors.Unavailable
            )


@sync
async def test_a_server_with_a_foreign_certificate_is_not_trusted(mesh: Mesh) -> None:
    stranger = Mesh(mesh._directory)
    impostor = mesh.server(peers=PEERS, tls=mesh.tls("echo", by=stranger))
    async with (
        running(impostor) as server,
        aio_channel(mesh.peer("gateway", server.port)) as channel,
    ):
        error = await failure(EchoStub(channel).unary(StringValue(), timeout=5))
    assert isinstance(error, errors.Unavailable)


@sync
async def test_peers_call_only_what_they_may(mesh: Mesh) -> None:
    async with running(mesh.server(peers=PEERS)) as server:
        async with aio_channel(mesh.peer("tape", server.port)) as channel:
            assert await EchoStub(channel).call("unary", "a") == "a tape None"
            error = await failure(EchoStub(channel).call("down", "a"))
            assert (type(error), error.reason) == (errors.PermissionDenied, "PEER_NOT_ALLOWED")
        async with aio_channel(mesh.peer("nobody", server.port)) as channel:
            error = await failure(EchoStub(channel).call("unary", "a"))
            assert (type(error), error.reason) == (errors.PermissionDenied, "PEER_NOT_ALLOWED")
            health = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


@sync
async def test_only_the_gateway_speaks_for_users(mesh: Mesh) -> None:
    stolen = ((identity.IDENTITY_KEY, identity.encode(identity.Identity("ann"))),)
    async with (
        running(mesh.server(peers=PEERS)) as server,
        aio_channel(mesh.peer("tape", server.port)) as channel,
    ):
        error = await failure(EchoStub(channel).unary(StringValue(value="a"), metadata=stolen))
        assert (type(error), error.reason) == (errors.PermissionDenied, "IDENTITY_NOT_ALLOWED")
        with identity.acting_as(identity.Identity("ann")):
            # A worker's channel leaves the identity out by itself.
            assert await EchoStub(channel).call("unary", "a") == "a tape None"


@sync
async def test_a_broken_identity_is_refused(mesh: Mesh) -> None:
    broken = ((identity.IDENTITY_KEY, b"\xff\xff"),)
    async with (
        running(mesh.server(peers=PEERS)) as server,
        aio_channel(mesh.peer("gateway", server.port)) as channel,
    ):
        error = await failure(EchoStub(channel).unary(StringValue(), metadata=broken))
    assert (type(error), error.reason) == (errors.InvalidArgument, "IDENTITY_INVALID")


@sync
async def test_the_request_id_is_kept_across_services_or_made(mesh: Mesh) -> None:
    seen: list[str | None] = []

    async def note(text: str) -> str:
        seen.append(identity.current_request_id())
        return ""

    echo = Echo()
    echo.answer = note
    async with (
        running(mesh.server(peers=PEERS), echo) as server,
        aio_channel(mesh.peer("tape", server.port)) as channel,
    ):
        stub = EchoStub(channel)
        with identity.acting_as(identity.Identity("ann", request_id="r-1")):
            await stub.call("unary", "")
        await stub.call("unary", "")
        await stub.unary(StringValue(), metadata=((identity.REQUEST_ID_KEY, "x" * 65),))
    assert seen[0] == "r-1"
    assert all(identity.valid_request_id(made) for made in seen)
    assert len(set(seen)) == 3


@sync
async def test_calls_onward_end_with_the_request(mesh: Mesh) -> None:
    left: list[float | None] = []

    async def note(text: str) -> str:
        left.append(await threads.in_thread(remaining))
        return ""

    echo = Echo()
    echo.answer = note
    async with (
        running(mesh.server(peers=PEERS), echo) as server,
        aio_channel(mesh.peer("tape", server.port)) as channel,
    ):
        await EchoStub(channel).call("unary", "")
        await EchoStub(channel).unary(StringValue(), timeout=3)
    assert left[0] is not None
    assert 5 < left[0] < 11
    assert left[1] is not None
    assert left[1] < 4


@sync
async def test_the_sync_channel_does_the_same(mesh: Mesh) -> None:
    def call(port: int) -> str:
        with sync_channel(mesh.peer("gateway", port)) as channel:
            stub = EchoStub(channel)
            first, _ = stub.unary.with_call(StringValue(value="a"))
            second = stub.unary.future(StringValue(value="b")).result()
            third = next(stub.down(StringValue(value="c")))
            return f"{first.value}; {second.value}; {third.value}"

    async with running(mesh.server(peers=PEERS)) as server:
        with identity.acting_as(identity.Identity("ann")):
            answers = await threads.in_thread(call, server.port)
    assert answers == "a gateway ann; b gateway ann; c gateway ann"


@sync
async def test_calls_are_repeated_while_the_peer_restarts(mesh: Mesh) -> None:
    async def busy(text: str) -> str:
        attempts.append(text)
        if len(attempts) < 3:
            raise errors.Unavailable("DATABASE_UNAVAILABLE", "down", retry_after=1)
        return "back"

    attempts: list[str] = []
    echo = Echo()
    echo.answer = busy
    async with (
        running(mesh.server(peers=PEERS), echo) as server,
        aio_channel(mesh.peer("tape", server.port)) as channel,
    ):
        assert await EchoStub(channel).call("unary", "a") == "back"
    assert len(attempts) == 3


@sync
async def test_the_operations_port_answers_health_and_reflection_only(mesh: Mesh) -> None:
    async with (
        running(mesh.server(peers=PEERS)) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.ops_port}") as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", SERVICE):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert await reflected(channel) == {
            SERVICE,
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        for arity in ARITIES:
            error = await failure(EchoStub(channel).call(arity, "a"))
            assert (type(error), error.reason) == (errors.Unauthenticated, "OPERATIONS_PORT")
        unknown: Any = channel.unary_unary("/no.Such/Method")
        assert isinstance(await failure(unknown(b"", timeout=5)), errors.Unauthenticated)


async def reflected(channel: grpc.aio.Channel) -> set[str]:
    """Names of the services that reflection lists."""
    call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    answer = await call.read()
    call.cancel()
    return {service.name for service in answer.list_services_response.service}


class Tokens(grpc.aio.ServerInterceptor):
    """Admits the token ``good`` as ann, as a gateway's interceptor would."""

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        sent = dict(handler_call_details.invocation_metadata or ())
        if sent.get("authorization") != "Bearer good":
            raise errors.Unauthenticated("TOKEN_INVALID", "log in again: nlds login")
        identity.bind(identity=identity.Identity("ann"))
        return await continuation(handler_call_details)


@sync
async def test_a_public_server_admits_by_its_own_interceptor(mesh: Mesh) -> None:
    config = mesh.server()
    assert config.tls is not None
    trusted = grpc.ssl_channel_credentials(config.tls.ca.read_bytes())
    good = ("authorization", "Bearer good")
    forged = (identity.IDENTITY_KEY, identity.encode(identity.Identity("eve")))
    async with (
        running(config, interceptors=[Tokens()], mutual_tls=False) as server,
        grpc.aio.secure_channel(f"127.0.0.1:{server.port}", trusted) as channel,
    ):
        stub = EchoStub(channel)
        answer = await stub.unary(StringValue(value="a"), metadata=(good,))
        assert answer.value == "a None ann"
        for arity in ARITIES:
            error = await failure(stub.call(arity, "a"))
            assert (type(error), error.reason) == (errors.Unauthenticated, "TOKEN_INVALID")
        error = await failure(stub.unary(StringValue(), metadata=(good, forged)))
        assert (type(error), error.reason) == (errors.PermissionDenied, "IDENTITY_NOT_ALLOWED")
        unknown: Any = channel.unary_unary("/no.Such/Method")
        assert isinstance(await failure(unknown(b"")), errors.Unauthenticated)
        health = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == 1
        assert SERVICE in await reflected(channel)


@sync
async def test_a_mesh_server_needs_certificates(mesh: Mesh) -> None:
    server = Server(ServerConfig(peers=PEERS))
    with pytest.raises(ConfigError, match=r"add cert, key and ca under \[server.tls\]"):
        await server.start()


@sync
async def test_a_taken_port_is_an_error_not_a_share(mesh: Mesh) -> None:
    async with running(mesh.server(peers=PEERS)) as first:
        address = f"127.0.0.1:{first.port}"
        server = Server(ServerConfig(listen=address, tls=mesh.tls("echo")))
        with pytest.raises(ConfigError, match="cannot listen"):
            await server.start()


@sync
async def test_draining_lets_running_calls_end_and_refuses_new_ones(mesh: Mesh) -> None:
    began, release = asyncio.Event(), asyncio.Event()
    order: list[str] = []

    async def wait(text: str) -> str:
        began.set()
        await release.wait()
        order.append("answered")
        return "done"

    async def callback() -> None:
        order.append("callback")

    echo = Echo()
    echo.answer = wait
    server = Server(mesh.server(peers=PEERS, grace_seconds=30))
    mount(server, echo)
    server.on_drain(callback)
    await server.start()
    ops = grpc.aio.insecure_channel(f"127.0.0.1:{server.ops_port}")
    async with aio_channel(mesh.peer("gateway", server.port)) as channel, ops:
        watch = health_pb2_grpc.HealthStub(ops).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        call = EchoStub(channel).unary(StringValue())
        await began.wait()
        draining = asyncio.create_task(server.drain())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        while not order:
            await asyncio.sleep(0)
        release.set()
        assert (await call).value == "done"
        await draining
        assert order == ["callback", "answered"]
        late = aio_channel(PeerConfig(address=f"127.0.0.1:{server.port}"))
        assert isinstance(
            await failure(EchoStub(late).unary(StringValue(), timeout=5)), errors.Unavailable
        )
        await late.close()


@sync
async def test_draining_ends_streams_after_the_grace_and_waits_for_their_end(mesh: Mesh) -> None:
    async def never(text: str) -> str:
        began.set()
        await asyncio.Event().wait()
        return ""

    began = asyncio.Event()
    echo = Echo()
    echo.answer = never
    server = Server(mesh.server(peers=PEERS, grace_seconds=0.2))
    mount(server, echo)
    await server.start()
    async with aio_channel(mesh.peer("gateway", server.port)) as channel:
        call = EchoStub(channel).down(StringValue())
        await began.wait()
        await server.drain()
        assert echo.unwound.is_set()
        assert isinstance(await failure(call.read()), errors.Unavailable)


@sync
async def test_a_watcher_of_health_does_not_hold_up_the_end(mesh: Mesh) -> None:
    server = Server(mesh.server(peers=PEERS, grace_seconds=3600))
    mount(server, Echo())
    await server.start()
    async with aio_channel(mesh.peer("gateway", server.port)) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        await asyncio.wait_for(server.drain(), 30)


@sync
async def test_a_cancelled_stream_unwinds_its_handler(mesh: Mesh) -> None:
    echo = Echo()
    async with (
        running(mesh.server(peers=PEERS), echo) as server,
        aio_channel(mesh.peer("gateway", server.port)) as channel,
    ):
        await EchoStub(channel).call("down", "a")
        await asyncio.wait_for(echo.unwound.wait(), 30)


@sync
async def test_health_follows_readiness(mesh: Mesh) -> None:
    async def broken() -> bool:
        raise ConnectionError("no database")

    server = Server(mesh.server(peers=PEERS))
    mount(server, Echo())
    server.set_readiness(broken)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.ops_port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        # What liveness probes ask: a restart would not bring the database back.
        alive = await health.Check(health_pb2.HealthCheckRequest(service="grpc.health.v1.Health"))
        assert alive.status == health_pb2.HealthCheckResponse.SERVING
    await server.drain()
