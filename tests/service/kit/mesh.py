"""A small service with one method of each arity, and certificates of a mesh to call it with."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import trustme
from google.protobuf.wrappers_pb2 import StringValue

from services.kit import identity
from services.kit.config import PeerConfig, SecretFile, ServerConfig, TlsConfig
from services.kit.server import Server

SERVICE = "nearline.test.v1.EchoService"


class Mesh:
    """A certificate authority and the certificates it gave out."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._authority = trustme.CA()

    def tls(self, name: str, *, by: "Mesh | None" = None) -> TlsConfig:
        """Certificate of ``name``, issued by ``by``'s authority but trusting this one's."""
        issued = (by or self)._authority.issue_cert("127.0.0.1", "localhost", common_name=name)
        base = self._directory / f"{name}-{id(by or self)}"
        chain, key, authority = (base.with_suffix(s) for s in (".crt", ".key", ".ca"))
        issued.private_key_pem.write_to_path(str(key))
        key.chmod(0o600)
        chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        self._authority.cert_pem.write_to_path(str(authority))
        return TlsConfig(cert=chain, key=SecretFile(key), ca=authority)

    def server(self, **options: Any) -> ServerConfig:
        """Configuration of the mesh's server ``echo`` on free ports."""
        options.setdefault("tls", self.tls("echo"))
        return ServerConfig(listen="127.0.0.1:0", ops_listen="127.0.0.1:0", **options)

    def peer(self, name: str, port: int, *, by: "Mesh | None" = None) -> PeerConfig:
        """How ``name`` calls the server at ``port``."""
        return PeerConfig(address=f"127.0.0.1:{port}", tls=self.tls(name, by=by), timeout=10)


class Echo:
    """Answers with what ``answer`` makes of the requests; raises what it raises."""

    def __init__(self) -> None:
        self.answer: Callable[[str], Awaitable[str]] = self._who
        self.unwound = asyncio.Event()

    async def _who(self, text: str) -> str:
        caller = identity.current_identity()
        return f"{text} {identity.current_peer()} {caller.user if caller else None}"

    async def unary(self, request: StringValue, context: Any) -> StringValue:
        return StringValue(value=await self.answer(request.value))

    async def down(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        try:
            while True:
                yield StringValue(value=await self.answer(request.value))
        finally:
            self.unwound.set()

    async def up(self, requests: AsyncIterator[StringValue], context: Any) -> StringValue:
        return StringValue(value=await self.answer(",".join([r.value async for r in requests])))

    async def both(
        self, requests: AsyncIterator[StringValue], context: Any
    ) -> AsyncIterator[StringValue]:
        async for request in requests:
            yield StringValue(value=await self.answer(request.value))


def mount(server: Server, echo: Echo) -> None:
    """Serve ``echo`` as :data:`SERVICE`."""
    coders = (StringValue.FromString, StringValue.SerializeToString)
    server.add_handlers(
        SERVICE,
        {
            "Unary": grpc.unary_unary_rpc_method_handler(echo.unary, *coders),
            "Down": grpc.unary_stream_rpc_method_handler(echo.down, *coders),
            "Up": grpc.stream_unary_rpc_method_handler(echo.up, *coders),
            "Both": grpc.stream_stream_rpc_method_handler(echo.both, *coders),
        },
    )


class EchoStub:
    """A stub of the service, as generated code makes one."""

    def __init__(self, channel: Any) -> None:
        coders = (StringValue.SerializeToString, StringValue.FromString)
        self.unary = channel.unary_unary(f"/{SERVICE}/Unary", *coders)
        self.down = channel.unary_stream(f"/{SERVICE}/Down", *coders)
        self.up = channel.stream_unary(f"/{SERVICE}/Up", *coders)
        self.both = channel.stream_stream(f"/{SERVICE}/Both", *coders)

    async def call(self, arity: str, text: str) -> str:
        """The first answer to ``text`` over the method of that arity."""
        request = StringValue(value=text)
        if arity == "unary":
            return str((await self.unary(request)).value)
        if arity == "up":
            return str((await self.up(_stream(request))).value)
        call = self.down(request) if arity == "down" else self.both(_stream(request))
        try:
            async for answer in call:
                return str(answer.value)
            raise AssertionError("the stream ended without an answer")
        finally:
            call.cancel()


async def _stream(*requests: StringValue) -> AsyncIterator[StringValue]:
    for request in requests:
        yield request
