"""Each test gets a catalog with an empty database of its own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.local import postgres
from services.kit.config import DatabaseConfig
from tests.fixtures.parts import DatabaseFactory
from tests.service.catalog.harness import Catalog, config_of, migrated, serving


@pytest.fixture(scope="session")
def catalog_schema(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[postgres.Database], None]:
    return migrated(tmp_path_factory.mktemp("catalog-schema"))


@pytest.fixture
def database_config(
    database_factory: DatabaseFactory,
    catalog_schema: Callable[[postgres.Database], None],
    tmp_path: Path,
) -> DatabaseConfig:
    return config_of(database_factory(catalog_schema), tmp_path)


@pytest.fixture
def catalog(database_config: DatabaseConfig, tmp_path: Path) -> Iterator[Catalog]:
    with serving(database_config, tmp_path) as running:
        yield running
