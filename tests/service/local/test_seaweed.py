"""The S3 server of the local stack: closed to strangers, checked, survives kill -9."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from deploy.local.ports import Ports
from deploy.local.process import Supervisor
from deploy.local.seaweed import S3Store, Seaweed


def test_a_foreign_key_is_refused(s3: S3Store) -> None:
    stranger = replace(s3, secret_key="guess")
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        stranger.client.list_objects_v2(Bucket=s3.bucket)


def test_a_bucket_is_not_made_by_a_put(s3: S3Store) -> None:
    with pytest.raises(ClientError, match="NoSuchBucket"):
        s3.client.put_object(Bucket="unknown", Key="key", Body=b"")


def test_a_wrong_checksum_is_refused(s3: S3Store) -> None:
    with pytest.raises(ClientError, match=r"BadDigest|checksum"):
        s3.client.put_object(Bucket=s3.bucket, Key="key", Body=b"body", ChecksumCRC32="AAAAAA==")


def _tear_the_indexes(server: Seaweed) -> None:
    """As a write that found no room leaves them: half an entry is there."""
    indexes = [path for path in server.directory.glob("*.idx") if path.stat().st_size]
    assert indexes
    for index in indexes:
        with index.open("ab") as stream:
            stream.write(bytes(5))


@pytest.mark.parametrize("harm", [lambda _: None, _tear_the_indexes], ids=["none", "torn"])
def test_acknowledged_objects_survive_kill_9(
    tmp_path: Path, harm: Callable[[Seaweed], None]
) -> None:
    supervisor = Supervisor(tmp_path)
    server = Seaweed(tmp_path / "seaweed", Ports(tmp_path / "ports.json"))
    client, bucket = server.store.client, server.store.bucket
    try:
        supervisor.start(server.prepare())
        for number in range(20):
            client.put_object(Bucket=bucket, Key=f"key-{number}", Body=bytes([number]) * 1000)
        supervisor.kill("seaweed", signal.SIGKILL)
        supervisor.wait_gone("seaweed")
        harm(server)
        supervisor.start(server.prepare())
        bodies = [
            client.get_object(Bucket=bucket, Key=f"key-{n}")["Body"].read() for n in range(20)
        ]
        assert bodies == [bytes([number]) * 1000 for number in range(20)]
    finally:
        supervisor.stop("seaweed")
