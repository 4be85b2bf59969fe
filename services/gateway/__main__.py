"""``python -m services.gateway --config FILE``: serves the public API."""

from nearline.gateway.v1 import gateway_pb2_grpc
from services.gateway.authentication import Authentication
from services.gateway.calllimit import CallLimit
from services.gateway.config import GatewayConfig
from services.gateway.servicer import GatewayServicer
from services.gateway.system import System
from services.gateway.tokens import TokenVerifier
from services.kit.channel import aio_channel
from services.kit.entry import main
from services.kit.server import Server


async def serve(config: GatewayConfig) -> None:
    """Wire the gateway and serve until told to stop."""
    channels = {
        "catalog": aio_channel(config.catalog),
        "monitor": aio_channel(config.monitor),
        "transfer": aio_channel(config.transfer),
    }
    verifier = TokenVerifier(config.tokens)
    interceptors = [Authentication(verifier), CallLimit(config.calls_per_user)]
    server = Server(config.server, interceptors=interceptors, mutual_tls=False)
    servicer = GatewayServicer(channels["catalog"], channels["monitor"], System(channels))
    server.add(gateway_pb2_grpc.add_GatewayServiceServicer_to_server, servicer)
    try:
        await server.run()
    finally:
        await verifier.close()
        for channel in channels.values():
            await channel.close()


if __name__ == "__main__":
    main("gateway", GatewayConfig, serve)
