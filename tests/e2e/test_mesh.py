"""What each service shows to whom: probes, mesh members, and everybody else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from deploy.local.parts import SERVICES
from deploy.local.stack import Stack
from nearline.catalog.v1 import catalog_pb2, catalog_pb2_grpc
from nearline.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from tests.fixtures.store import Store

_GRPCURL = str(Path(sys.executable).with_name("grpcurl"))
UNARY = {
    "gateway": "GetSystem",
    "catalog": "SetQuota",
    "monitor": "ListWorkers",
    "transfer": "GetStatus",
    "tape": "GetStatus",
}


def grpcurl(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [_GRPCURL, "-max-time", "20", *words],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def ops(stack: Stack, name: str) -> str:
    return stack.site.address(name, "ops")


def full_name(name: str) -> str:
    return f"nearline.{name}.v1.{name.capitalize()}Service"


def gateway(stack: Stack) -> tuple[str, ...]:
    return "-cacert", str(stack.site.authority.certificate), stack.site.address("gateway")


@pytest.mark.parametrize("name", SERVICES)
def test_the_operations_port_describes_the_service(stack: Stack, name: str) -> None:
    listed = grpcurl("-plaintext", ops(stack, name), "list")
    assert full_name(name) in listed.stdout.split(), listed.stderr
    described = grpcurl("-plaintext", ops(stack, name), "describe", full_name(name))
    assert f"rpc {UNARY[name]} " in described.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_says_that_it_serves(stack: Stack, name: str) -> None:
    for asked in ("", full_name(name)):
        words = ("-d", json.dumps({"service": asked}), ops(stack, name))
        answer = grpcurl("-plaintext", *words, "grpc.health.v1.Health/Check")
        assert json.loads(answer.stdout) == {"status": "SERVING"}, answer.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_nothing_else_is_answered_without_a_certificate(stack: Stack, name: str) -> None:
    method = f"{full_name(name)}/{UNARY[name]}"
    answer = grpcurl("-plaintext", "-d", "{}", ops(stack, name), method)
    assert "Code: Unauthenticated" in answer.stderr, answer.stdout


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "gateway"])
def test_the_mesh_port_wants_a_certificate(stack: Stack, name: str) -> None:
    authority = str(stack.site.authority.certificate)
    method = f"{full_name(name)}/{UNARY[name]}"
    quick = ("-connect-timeout", "2", "-d", "{}")
    answer = grpcurl(*quick, "-cacert", authority, stack.site.address(name), method)
    assert "certificate required" in answer.stderr or "Failed to dial" in answer.stderr
    plain = grpcurl(*quick, "-plaintext", stack.site.address(name), method)
    assert "Failed to dial" in plain.stderr


def test_every_rpc_of_the_gateway_wants_a_token(stack: Stack) -> None:
    listed = grpcurl(*gateway(stack), "list", full_name("gateway"))
    methods = listed.stdout.split()
    assert len(methods) > 15
    for method in methods:
        service, _, name = method.rpartition(".")
        answer = grpcurl(*gateway(stack), f"{service}/{name}")
        assert "Code: Unauthenticated" in answer.stderr, f"{method}: {answer.stdout}"


def member(stack: Stack, name: str, to: str) -> grpc.Channel:
    """A channel to the mesh port of ``to`` with the certificate of ``name``."""
    files = stack.site.authority.credentials(name)
    credentials = grpc.ssl_channel_credentials(
        files.authority.read_bytes(), files.key.read_bytes(), files.certificate.read_bytes()
    )
    return grpc.secure_channel(stack.site.address(to), credentials)


def code(call: grpc.RpcError) -> str:
    return str(call.code().name)  # type: ignore[attr-defined]


def test_a_member_calls_only_what_it_may(stack: Stack) -> None:
    with member(stack, "tape", "catalog") as channel:
        catalog = catalog_pb2_grpc.CatalogServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            catalog.SetQuota(catalog_pb2.SetQuotaRequest(group="cmip6", quota_bytes=1), timeout=10)
    assert code(refused.value) == "PERMISSION_DENIED"
    with member(stack, "catalog", "monitor") as channel:
        ledger = monitor_pb2_grpc.MonitorServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            ledger.ListWorkers(monitor_pb2.ListWorkersRequest(), timeout=10)
    assert code(refused.value) == "PERMISSION_DENIED"
    with member(stack, "gateway", "monitor") as channel:
        ledger = monitor_pb2_grpc.MonitorServiceStub(channel)
        assert ledger.ListWorkers(monitor_pb2.ListWorkersRequest(), timeout=10).workers


def test_only_the_gateway_says_who_a_caller_is(stack: Stack) -> None:
    with member(stack, "tape", "monitor") as channel:
        ledger = monitor_pb2_grpc.MonitorServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            ledger.GetTransaction(
                monitor_pb2.GetTransactionRequest(id="x"),
                metadata=[("nearline-identity-bin", b"\x0a\x05alice")],
                timeout=10,
            )
    assert code(refused.value) in ("PERMISSION_DENIED", "UNAUTHENTICATED")


def test_the_gateway_takes_no_identity_from_users(store: Store) -> None:
    token = store.alice.client._caller.tokens.access_token()
    answer = grpcurl(
        "-H", f"authorization: Bearer {token}", "-H", "nearline-identity-bin: CgVjYXJvbA==",
        *gateway(store.stack), f"{full_name('gateway')}/GetIdentity",
    )  # fmt: skip
    assert '"carol"' not in answer.stdout
    assert "PermissionDenied" in answer.stderr


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("GetTransaction", {"id": "not a uuid"}, "id"),
        ("FindFiles", {"path": "relative"}, "path"),
        ("FindFiles", {"path": "/a/../b"}, "path"),
        ("FindFiles", {"limit": -1}, "limit"),
        ("ListHoldings", {"filter": {"label": "a\nb"}}, "filter.label"),
        ("UpdateHolding", {"filter": {"holding_id": -3}}, "filter.holding_id"),
        ("Put", {"paths": {"paths": ["/a"]}}, "header"),
        ("Put", {"header": {"transaction_id": "no", "group": "cmip6"}}, "transaction_id"),
        ("Put", {"header": {"transaction_id": "", "group": "cmip6"}}, "transaction_id"),
        (
            "Get",
            {"header": {"transaction_id": "9b2f0a44-7a55-4a49-8d0c-8d4a0b0f5f4e", "target": "x"}},
            "target",
        ),
    ],
)
def test_a_malformed_request_is_told_what_is_wrong(
    store: Store, method: str, request_: dict[str, object], field: str
) -> None:
    token = store.alice.client._caller.tokens.access_token()
    answer = grpcurl(
        "-H", f"authorization: Bearer {token}", "-format-error", "-d", json.dumps(request_),
        *gateway(store.stack), f"{full_name('gateway')}/{method}",
    )  # fmt: skip
    error = json.loads(answer.stderr)
    assert error["code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    (bad,) = [one for one in error["details"] if one["@type"].endswith("BadRequest")]
    assert [one["field"] for one in bad["field_violations"]] == [field]


@pytest.mark.parametrize("path", ["/a/../b", "a", "", "/a\x00b", "/" + "x" * 300])
def test_a_malformed_path_is_refused_by_its_position(store: Store, path: str) -> None:
    token = store.alice.client._caller.tokens.access_token()
    header = {"transaction_id": "0c5f6a44-7a55-4a49-8d0c-8d4a0b0f5f4e", "group": "cmip6"}
    messages = [{"header": header}, {"paths": {"paths": ["/fine", path]}}]
    answer = grpcurl(
        "-H", f"authorization: Bearer {token}", "-format-error",
        "-d", "\n".join(map(json.dumps, messages)),
        *gateway(store.stack), f"{full_name('gateway')}/Put",
    )  # fmt: skip
    error = json.loads(answer.stderr[answer.stderr.index("{") :])
    assert error["code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0], error
    assert "paths.paths[1]" in answer.stderr


def test_bytes_that_are_no_message_are_refused(store: Store) -> None:
    """What another program sends to the port must end that call alone."""
    stack = store.stack
    authority = stack.site.authority.certificate.read_bytes()
    credentials = grpc.ssl_channel_credentials(authority)
    token = store.alice.client._caller.tokens.access_token()
    with grpc.secure_channel(stack.site.address("gateway"), credentials) as channel:
        call = channel.unary_unary(f"/{full_name('gateway')}/GetTransaction")
        with pytest.raises(grpc.RpcError) as refused:
            call(b"\xff\xff\xff", timeout=10, metadata=[("authorization", f"Bearer {token}")])
    assert code(refused.value) in ("INTERNAL", "INVALID_ARGUMENT", "UNKNOWN")
    assert store.alice.client.identity().user == "alice"
