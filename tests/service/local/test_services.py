"""The five services as the stack runs them: healthy, closed to strangers, restarted by name."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from deploy.local.parts import SERVICES
from deploy.local.stack import Stack
from nearline.gateway.v1 import gateway_pb2, gateway_pb2_grpc


def test_every_part_is_healthy(stack: Stack) -> None:
    assert {part.name: part.trouble for part in stack.status()} == dict.fromkeys(stack.parts())


def test_a_test_user_is_known_with_the_ids_of_this_machine(stack: Stack) -> None:
    file = stack.login("alice")
    assert file.stat().st_mode & 0o077 == 0
    with stack.client("alice") as client:
        identity = client.identity()
    assert identity.user == "alice"
    home = stack.home("alice").stat()
    assert (identity.uid, identity.gid) == (home.st_uid, home.st_gid)


def test_the_gateway_refuses_a_call_without_a_token(stack: Stack) -> None:
    authority = stack.site.authority.certificate.read_bytes()
    credentials = grpc.ssl_channel_credentials(authority)
    with grpc.secure_channel(stack.site.address("gateway"), credentials) as channel:
        stub = gateway_pb2_grpc.GatewayServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refusal:
            stub.GetSystem(gateway_pb2.GetSystemRequest(), timeout=10)
    assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("service", ["catalog", "monitor", "transfer", "tape"])
def test_mesh_ports_need_a_certificate_of_the_mesh(stack: Stack, service: str) -> None:
    authority = stack.site.authority.certificate.read_bytes()
    credentials = grpc.ssl_channel_credentials(authority)
    with grpc.secure_channel(stack.site.address(service), credentials) as channel:
        call = channel.unary_unary(f"/nearline.{service}.v1.{service.capitalize()}Service/Any")
        with pytest.raises(grpc.RpcError) as refusal:
            call(b"", timeout=10)
    assert refusal.value.code() in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNAUTHENTICATED,
    )


@pytest.mark.parametrize("service", SERVICES)
def test_a_killed_service_is_back_on_its_port_after_a_restart(stack: Stack, service: str) -> None:
    address, before = stack.site.address(service), stack.pid(service)
    stack.kill(service)
    stack.restart(service)
    assert stack.pid(service) not in (None, before)
    assert stack.site.address(service) == address
    stack.wait_healthy()


def test_logs_hold_no_secret(stack: Stack) -> None:
    secrets = [path.read_text() for path in (stack.site.directory / "secrets").iterdir()]
    logs: list[Path] = [stack.log_path(name) for name in stack.parts()]
    text = "".join(path.read_text(errors="replace") for path in logs)
    assert len(text) > 0
    assert not [secret for secret in secrets if secret in text]
