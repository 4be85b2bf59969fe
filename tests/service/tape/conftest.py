"""Each test gets tape's handlers on a catalog, a cache and an endpoint of its own, all real."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.local import postgres
from deploy.local.seaweed import S3Store
from services.kit.config import SecretFile
from services.kit.objectstore import ObjectStore, S3Config
from services.tape.endpoints.directory import DirectoryEndpoint
from services.tape.endpoints.xrootd import XRootDEndpoint
from tests.fixtures.parts import DatabaseFactory
from tests.fixtures.tape import RunningRig
from tests.service.catalog.harness import config_of, migrated, serving
from tests.service.tape.harness import Disk, TapeStore


@pytest.fixture(scope="session")
def catalog_schema(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[postgres.Database], None]:
    return migrated(tmp_path_factory.mktemp("catalog-schema"))


@pytest.fixture
def cache(s3: S3Store, tmp_path: Path) -> Iterator[ObjectStore]:
    for name, value in (("access", s3.access_key), ("secret", s3.secret_key)):
        (tmp_path / name).touch(0o600)
        (tmp_path / name).write_text(value)
    config = S3Config(
        endpoint=s3.endpoint,
        bucket=s3.bucket,
        access_key=SecretFile(tmp_path / "access"),
        secret_key=SecretFile(tmp_path / "secret"),
        prefix=f"{tmp_path.name}-{uuid.uuid4().hex}/",
    )
    store = ObjectStore(config)
    yield store
    store.close()


@pytest.fixture
def directory_disk(tmp_path: Path) -> Disk:
    """A directory as tape."""
    root = tmp_path / "tape"
    root.mkdir()
    return Disk(DirectoryEndpoint(root), root)


@pytest.fixture
def xrootd_disk(xrootd_rig: RunningRig) -> Disk:
    """A directory of a real XRootD server."""
    name = f"handlers/{uuid.uuid4().hex}"
    endpoint = XRootDEndpoint(f"{xrootd_rig.rig.url}/{name}", xrootd_rig.rig.keytab)
    return Disk(endpoint, xrootd_rig.local(name))


@pytest.fixture
def make_store(
    database_factory: DatabaseFactory,
    catalog_schema: Callable[[postgres.Database], None],
    cache: ObjectStore,
    tmp_path: Path,
) -> Iterator[Callable[[Disk], TapeStore]]:
    database = config_of(database_factory(catalog_schema), tmp_path)
    with serving(database, tmp_path) as catalog:
        yield lambda disk: TapeStore(catalog, cache, disk)


@pytest.fixture
def store(make_store: Callable[[Disk], TapeStore], directory_disk: Disk) -> TapeStore:
    """On a directory: quick, for what does not depend on the driver."""
    return make_store(directory_disk)


@pytest.fixture(params=["directory", "xrootd"])
def either(make_store: Callable[[Disk], TapeStore], request: pytest.FixtureRequest) -> TapeStore:
    """On each driver."""
    disk: Disk = request.getfixturevalue(f"{request.param}_disk")
    return make_store(disk)
