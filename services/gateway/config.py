"""Configuration of the gateway."""

from services.gateway.token_config import TokenConfig
from services.kit.config import LogConfig, PeerConfig, Section, ServerConfig


class GatewayConfig(Section, frozen=True):
    """``gateway.toml``."""

    server: ServerConfig
    """The public address; its ``tls`` is what users connect to, who show tokens."""
    tokens: TokenConfig
    catalog: PeerConfig
    monitor: PeerConfig
    transfer: PeerConfig
    log: LogConfig = LogConfig()
