"""A service as an own process: it starts from a file, logs, counts, and ends on a signal."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from services.kit import identity
from services.kit.channel import aio_channel
from services.kit.config import PeerConfig, TlsConfig
from tests.service.kit.mesh import SERVICE, EchoStub, Mesh


class Process:
    """The running service."""

    def __init__(self, mesh: Mesh, directory: Path, log_format: str = "json") -> None:
        self.port, self.metrics_port = free_ports(2)
        self._log = directory / "log"
        path = directory / "echo.toml"
        path.write_text(configuration(self, mesh.tls("echo"), log_format))
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "tests.service.kit.echoservice", str(path)],
            stderr=self._log.open("wb"),
        )

    def peer(self, mesh: Mesh, name: str) -> PeerConfig:
        """How ``name`` calls it."""
        return mesh.peer(name, self.port)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit code after the signal."""
        self.popen.send_signal(number)
        return self.popen.wait(30)

    def text(self) -> str:
        """What it logged."""
        return self._log.read_text()

    def lines(self) -> list[dict[str, Any]]:
        """What it logged as JSON."""
        return [json.loads(line) for line in self.text().splitlines()]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [made.getsockname()[1] for made in sockets]
    for made in sockets:
        made.close()
    return ports


def configuration(process: Process, tls: TlsConfig, log_format: str) -> str:
    return f"""
[server]
listen = "127.0.0.1:{process.port}"
metrics_listen = "127.0.0.1:{process.metrics_port}"
peers = {{ gateway = ["/{SERVICE}/*"] }}
tls = {{ cert = "{tls.cert}", key = "{tls.key.path}", ca = "{tls.ca}" }}
[log]
format = "{log_format}"
level = "debug"
"""


@pytest.fixture
def mesh(tmp_path: Path) -> Mesh:
    return Mesh(tmp_path)


@pytest.fixture
def process(mesh: Mesh, tmp_path: Path) -> Iterator[Process]:
    made = Process(mesh, tmp_path)
    yield made
    made.popen.kill()
    made.popen.wait()


async def call(peer: PeerConfig, text: str) -> str:
    """The answer, waiting for the process to start."""
    async with aio_channel(peer) as channel:
        stub = EchoStub(channel)
        return str((await stub.unary(StringValue(value=text), wait_for_ready=True)).value)


def test_logs_tell_who_called_what_under_which_id(mesh: Mesh, process: Process) -> None:
    with identity.acting_as(identity.Identity("ann", request_id="r-7")):
        asyncio.run(call(process.peer(mesh, "gateway"), "hi"))
    with pytest.raises(grpc.RpcError):
        asyncio.run(call(process.peer(mesh, "gateway"), "crash"))
    assert process.end() == 0
    lines = process.lines()
    access = [line for line in lines if line["event"] == "rpc"]
    assert access[0]["code"] == "OK"
    assert (access[0]["request_id"], access[0]["user"], access[0]["peer"]) == (
        "r-7",
        "ann",
        "gateway",
    )
    assert {line["service"] for line in lines} == {"echo"}
    unhandled = next(line for line in lines if line["event"] == "unhandled")
    assert "RuntimeError: a bug" in unhandled["exception"]
    assert unhandled["request_id"] == access[1]["request_id"]
    assert (access[1]["code"], access[1]["level"]) == ("INTERNAL", "warning")
    events = [line["event"] for line in lines]
    assert "draining" in events
    assert events[-1] == "stopped"


def test_metadata_is_never_logged(mesh: Mesh, process: Process) -> None:
    async def secret() -> None:
        async with aio_channel(process.peer(mesh, "gateway")) as channel:
            for text in ("hi", "crash"):
                await EchoStub(channel).unary(
                    StringValue(value=text),
                    wait_for_ready=True,
                    metadata=(("authorization", "Bearer hunter2"),),
                )

    with pytest.raises(grpc.RpcError):
        asyncio.run(secret())
    assert process.end() == 0
    assert "hunter2" not in process.text()


def test_metrics_count_rpcs(mesh: Mesh, process: Process) -> None:
    asyncio.run(call(process.peer(mesh, "gateway"), "hi"))
    with pytest.raises(grpc.RpcError):
        asyncio.run(call(process.peer(mesh, "nobody"), "hi"))
    url = f"http://127.0.0.1:{process.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        metrics = answer.read().decode()
    labels = f'method="Unary",service="{SERVICE}"'
    assert f"rpc_started_total{{{labels}}} 2.0" in metrics
    assert f"rpc_active{{{labels}}} 0.0" in metrics
    assert f"rpc_seconds_count{{{labels}}} 2.0" in metrics
    assert f'rpc_handled_total{{code="OK",{labels}}} 1.0' in metrics
    assert f'rpc_handled_total{{code="PERMISSION_DENIED",{labels}}} 1.0' in metrics


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_running_call_end(
    mesh: Mesh, process: Process, number: signal.Signals
) -> None:
    async def test() -> None:
        peer = process.peer(mesh, "gateway")
        await call(peer, "ready")
        running = asyncio.create_task(call(peer, "slow"))
        while process.text().count('"event": "rpc"') < 1 or not active(process):
            await asyncio.sleep(0.01)
        process.popen.send_signal(number)
        assert (await running).startswith("slow")

    asyncio.run(test())
    assert process.popen.wait(30) == 0


def active(process: Process) -> bool:
    url = f"http://127.0.0.1:{process.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return f'rpc_active{{method="Unary",service="{SERVICE}"}} 1.0' in answer.read().decode()


def test_a_console_log_is_for_people(mesh: Mesh, tmp_path: Path) -> None:
    process = Process(mesh, tmp_path, log_format="console")
    try:
        asyncio.run(call(process.peer(mesh, "gateway"), "hi"))
        assert process.end() == 0
    finally:
        process.popen.kill()
    assert "[info     ] rpc" in process.text()


def test_a_bad_configuration_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    path = tmp_path / "echo.toml"
    path.write_text("[server]\nlissen = 'x'\n[log]\n")
    done = subprocess.run(
        [sys.executable, "-m", "tests.service.kit.echoservice", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "server: Object contains unknown field `lissen`" in done.stderr
    assert len(done.stderr.splitlines()) == 1
