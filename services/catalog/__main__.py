"""``python -m services.catalog [serve|migrate|restored] --config FILE``."""

from pathlib import Path

from nearline.catalog.v1 import catalog_pb2_grpc
from services.catalog.config import CatalogConfig
from services.catalog.maintenance import Maintenance
from services.catalog.servicer import CatalogServicer
from services.kit import migrate as schema
from services.kit.db import Database
from services.kit.entry import main
from services.kit.server import Server

MIGRATIONS = Path(__file__).with_name("migrations")


async def serve(config: CatalogConfig) -> None:
    """Wire the catalog and serve until told to stop."""
    database = Database(config.database)
    maintenance = Maintenance(database, config.maintenance_seconds)
    server = Server(config.server)
    servicer = CatalogServicer(database, config.reservation_hours)
    server.add(catalog_pb2_grpc.add_CatalogServiceServicer_to_server, servicer)
    server.set_readiness(maintenance.ready)
    try:
        async with maintenance:
            await server.run()
    finally:
        database.close()


def migrate(config: CatalogConfig) -> None:
    """Bring the database to the newest schema."""
    schema.upgrade(config.database, MIGRATIONS)


def restored(config: CatalogConfig) -> None:
    """Make a database that was restored from a backup safe to serve."""
    schema.skip_numbers(config.database)


if __name__ == "__main__":
    main("catalog", CatalogConfig, serve, {"migrate": migrate, "restored": restored})
