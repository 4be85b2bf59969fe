"""Configuration of the catalog."""

from services.kit.config import Count, DatabaseConfig, LogConfig, Seconds, Section, ServerConfig


class CatalogConfig(Section, frozen=True):
    """The catalog's TOML file."""

    server: ServerConfig
    database: DatabaseConfig
    log: LogConfig = LogConfig()
    reservation_hours: Count = 24
    """How long what a PUT registered, and did not store yet, counts against the quota."""
    maintenance_seconds: Seconds = 10.0
    """How often changes of usage are summed up and expired pins are forgotten."""
