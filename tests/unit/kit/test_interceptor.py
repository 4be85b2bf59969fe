"""Which mesh member may call what."""

import pytest

from services.kit.errors import PermissionDenied, Unauthenticated
from services.kit.interceptor import AllowList, is_open

PEERS = AllowList({"gateway": ["/a.v1.Service/*"], "tape": ["/a.v1.Service/Get", "/b.Other/Put"]})


@pytest.mark.parametrize(
    ("peer", "method"),
    [
        ("gateway", "/a.v1.Service/Get"),
        ("gateway", "/a.v1.Service/Put"),
        ("tape", "/a.v1.Service/Get"),
        ("tape", "/b.Other/Put"),
    ],
)
def test_listed_rpcs_are_allowed(peer: str, method: str) -> None:
    PEERS.check(peer, method)


@pytest.mark.parametrize(
    ("peer", "method"),
    [
        ("gateway", "/a.v1.ServiceTwo/Get"),
        ("gateway", "/a.v1/Service/Get"),
        ("gateway", "/b.Other/Put"),
        ("tape", "/a.v1.Service/GetMore"),
        ("tape", "/a.v1.Service/*"),
        ("monitor", "/a.v1.Service/Get"),
        ("", "/a.v1.Service/Get"),
    ],
)
def test_others_are_refused_by_name(peer: str, method: str) -> None:
    with pytest.raises(PermissionDenied, match="PEER_NOT_ALLOWED") as caught:
        PEERS.check(peer, method)
    assert caught.value.metadata == {"peer": peer, "method": method}


def test_without_a_certificate_nobody_is_known() -> None:
    with pytest.raises(Unauthenticated):
        PEERS.check(None, "/a.v1.Service/Get")


@pytest.mark.parametrize(
    ("method", "is_it"),
    [
        ("/grpc.health.v1.Health/Check", True),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", True),
        ("/grpc.health.v1.HealthEvil/Check", False),
        ("/a.v1.Service/Get", False),
    ],
)
def test_health_and_reflection_are_open(method: str, is_it: bool) -> None:
    assert is_open(method) is is_it
