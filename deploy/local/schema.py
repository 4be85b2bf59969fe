"""``python -m deploy.local.schema``: do the migrations lead to the tables that the code declares?

Runs those of both services on a throw-away server and compares; exits 1 when they differ.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from alembic.util import CommandError

from deploy.local.files import secret
from deploy.local.ports import Ports
from deploy.local.postgres import HOST, VOLATILE, Postgres
from deploy.local.process import Supervisor
from deploy.local.watchdog import Watchdog
from services.kit import migrate
from services.kit.config import DatabaseConfig, SecretFile

_SERVICES = ("catalog", "monitor")
_ROOT = Path(__file__).parents[2] / "services"


def compare(server: Postgres, directory: Path, service: str) -> str | None:
    """Migrate a new database of the service; return how it differs from the declared tables."""
    password = directory / f"{service}.password"
    server.ensure_database(service, secret(password))
    config = DatabaseConfig(
        host=HOST, port=server.port, name=service, user=service, password=SecretFile(password)
    )
    scripts = _ROOT / service / "migrations"
    migrate.upgrade(config, scripts)
    try:
        migrate.check(config, scripts)
    except CommandError as error:
        return f"{service}: {error}"
    return None


def main() -> int:
    """Compare both; returns the exit code."""
    directory = Path(tempfile.mkdtemp(prefix="nearline-schema-"))
    watchdog = Watchdog(directory)
    try:
        port = Ports(directory / "ports.json").get("postgres")
        server = Postgres(directory / "postgres", port, VOLATILE)
        Supervisor(directory).start(server.prepare())
        differences = [compare(server, directory, service) for service in _SERVICES]
    finally:
        watchdog.finish()
    for difference in filter(None, differences):
        print(difference, file=sys.stderr)
    return int(any(differences))


if __name__ == "__main__":
    sys.exit(main())
