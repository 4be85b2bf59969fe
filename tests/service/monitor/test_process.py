"""The service as it is deployed: from a file, over mutual TLS, until a signal."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from nearline.monitor.v1 import monitor_pb2 as pb
from nearline.monitor.v1.monitor_pb2_grpc import MonitorServiceStub
from nearline.type.v1.task_pb2 import Task
from nearline.type.v1.transaction_pb2 import Transaction
from services.kit.channel import aio_channel
from services.kit.config import DatabaseConfig
from services.kit.jobs import new_task
from services.kit.worker import Done
from tests.fixtures.parts import DatabaseFactory
from tests.service.kit.mesh import Mesh
from tests.service.kit.test_process import free_ports
from tests.service.monitor.asynctests import sync
from tests.service.monitor.conftest import config_of
from tests.service.monitor.rig import ended, spec, submit, until, worker
from tests.service.monitor.test_crash import persistently

SERVICE = "/nearline.monitor.v1.MonitorService"


def configuration(database: DatabaseConfig, mesh: Mesh, port: int) -> str:
    tls = mesh.tls("monitor")
    return f"""
[server]
listen = "127.0.0.1:{port}"
grace_seconds = 5
[server.tls]
cert = "{tls.cert}"
key = "{tls.key.path}"
ca = "{tls.ca}"
[server.peers]
gateway = ["{SERVICE}/*"]
transfer = ["{SERVICE}/Work"]
[database]
host = "{database.host}"
port = {database.port}
name = "{database.name}"
user = "{database.user}"
password = "{database.password.path}"
"""


def test_the_service_migrates_serves_and_ends(
    database_factory: DatabaseFactory, tmp_path: Path
) -> None:
    mesh, [port] = Mesh(tmp_path), free_ports(1)
    path = tmp_path / "monitor.toml"
    path.write_text(configuration(config_of(database_factory(), tmp_path), mesh, port))
    command = [sys.executable, "-m", "services.monitor"]
    for _ in range(2):
        subprocess.run([*command, "migrate", "--config", str(path)], check=True, timeout=60)
    serving = subprocess.Popen([*command, "--config", str(path)])

    @sync
    async def use() -> None:
        gateway, transfer = (mesh.peer(name, port) for name in ("gateway", "transfer"))
        async with (
            aio_channel(gateway) as channel,
            aio_channel(transfer) as other,
            worker(transfer, {Task.UPLOAD: lambda job, context: Done(1, 1, 1, 1)}),
        ):
            stub = MonitorServiceStub(channel)
            asked = spec()
            await persistently(lambda: submit(stub, asked, [new_task(Task.UPLOAD)]))
            assert (await ended(stub, asked.id)).state == Transaction.COMPLETE
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await MonitorServiceStub(other).ListWorkers(pb.ListWorkersRequest())
            assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
            serving.send_signal(signal.SIGTERM)
            await until(lambda: serving.poll() is not None)

    try:
        use()
        assert serving.returncode == 0
    finally:
        serving.kill()
        serving.wait()
