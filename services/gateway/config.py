"""Configuration of the gateway."""

from services.gateway.token_config import TokenConfig
from services.kit.config import Count, LogConfig, PeerConfig, Section, ServerConfig


class GatewayConfig(Section, frozen=True):
    """``gateway.toml``."""

    server: ServerConfig
    """The public address; its ``tls`` is what users connect to, who show tokens."""
    tokens: TokenConfig
    catalog: PeerConfig
    monitor: PeerConfig
    transfer: PeerConfig
    calls_per_user: Count = 200
    """Calls of one user that may run at once, streams and watches included."""
    log: LogConfig = LogConfig()
