"""``python -m services.monitor [serve|migrate|restored] --config FILE``."""

from pathlib import Path

from nearline.monitor.v1.monitor_pb2_grpc import add_MonitorServiceServicer_to_server
from services.kit import entry, migrate
from services.kit.db import Database
from services.kit.server import Server
from services.monitor.config import Config
from services.monitor.ledger import Ledger
from services.monitor.servicer import MonitorServicer

MIGRATIONS = Path(__file__).parent / "migrations"


async def serve(config: Config) -> None:
    """Run a replica until it is told to stop."""
    database = Database(config.database)
    ledger = Ledger(database, config.ledger)
    server = Server(config.server)
    server.add(add_MonitorServiceServicer_to_server, MonitorServicer(ledger))
    server.on_drain(ledger.drain)
    server.set_readiness(ledger.ready)
    await ledger.start()
    try:
        await server.run()
    finally:
        await ledger.stop()
        database.close()


def upgrade(config: Config) -> None:
    """Bring the database to the newest schema."""
    migrate.upgrade(config.database, MIGRATIONS)


def restored(config: Config) -> None:
    """Make a database that was restored from a backup safe to serve."""
    migrate.skip_numbers(config.database)


if __name__ == "__main__":
    entry.main("monitor", Config, serve, {"migrate": upgrade, "restored": restored})
