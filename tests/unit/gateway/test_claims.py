"""The rules from claims to identity, on values no real provider would send."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.claims import check_claims, identity_of
from services.gateway.tokens import TokenConfig, TokenVerifier, bearer_token
from services.kit.errors import Unauthenticated
from services.kit.identity import Identity, Role

CONFIG = TokenConfig(issuer="https://idp.example", audience="nearline", posix_claims=True)
CLAIM = st.sampled_from(["sub", "groups", "nearline_roles", "uid", "gid", "gids", "client_id"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(st.dictionaries(CLAIM, JSON))
def test_any_claims_give_an_identity_or_a_reason(claims: dict[str, Any]) -> None:
    found = outcome(claims)
    if isinstance(found, str):
        assert found.startswith("TOKEN_")
    else:
        assert found.user == claims["sub"]
        assert set(found.groups) == set(claims.get("groups", []))
        assert found.uid is None or found.uid >= CONFIG.min_uid
        assert 0 not in (found.uid, found.gid, *found.gids)


def outcome(claims: dict[str, Any]) -> Identity | str:
    """The identity, or the reason why there is none."""
    try:
        return identity_of(claims, CONFIG)
    except Unauthenticated as error:
        return error.reason


@given(st.dictionaries(st.sampled_from(["iss", "aud", "sub", "exp", "iat", "nbf"]), JSON))
def test_arbitrary_standard_claims_are_refused(claims: dict[str, Any]) -> None:
    with pytest.raises(Unauthenticated, match="TOKEN_"):
        check_claims(claims, CONFIG)


def identity(**claims: object) -> Identity:
    return identity_of({"sub": "alice", **claims}, CONFIG)


def test_roles_raise_what_groups_grant_and_add_no_group() -> None:
    roles = {"cmip6": "MANAGER", "elsewhere": "MANAGER"}
    assert identity(groups=["cmip6", "sentinel"], nearline_roles=roles).groups == {
        "cmip6": Role.MANAGER,
        "sentinel": Role.USER,
    }


def test_system_uids_are_left_to_the_hosts_name_service() -> None:
    assert identity(uid=999, gid=5000).uid is None
    ids = identity(uid=1000, gid=100, gids=[100, 101])
    assert (ids.uid, ids.gid, ids.gids) == (1000, 100, (100, 101))
    with pytest.raises(Unauthenticated, match="TOKEN_MISSING_CLAIM"):
        identity(uid=1000)


def test_claim_names_are_configurable() -> None:
    config = msgspec.structs.replace(
        CONFIG, user_claim="preferred_username", groups_claim="ws", roles_claim="ws_roles"
    )
    claims = {"sub": "b7-4", "preferred_username": "bob", "ws": ["x"], "ws_roles": {"x": "DEPUTY"}}
    bob = identity_of(claims, config)
    assert (bob.user, bob.groups) == ("bob", {"x": Role.DEPUTY})


def test_clients_are_users_only_where_configured() -> None:
    claims = {"sub": "robot", "client_id": "robot"}
    with pytest.raises(Unauthenticated, match="TOKEN_NOT_OF_A_USER"):
        identity_of(claims, CONFIG)
    allowing = msgspec.structs.replace(CONFIG, allow_clients=True)
    assert identity_of(claims, allowing).user == "robot"


@pytest.mark.parametrize("leeway", [0, 30])
def test_times_are_checked_with_the_leeway(leeway: int) -> None:
    config = msgspec.structs.replace(CONFIG, leeway_seconds=leeway)
    now = int(time.time())
    good = {"iss": CONFIG.issuer, "aud": "nearline", "sub": "a", "iat": now - 600}
    check_claims({**good, "exp": now - leeway + 10}, config)
    with pytest.raises(Unauthenticated, match="TOKEN_EXPIRED"):
        check_claims({**good, "exp": now - leeway - 1}, config)
    with pytest.raises(Unauthenticated, match="TOKEN_NOT_YET_VALID"):
        check_claims({**good, "exp": now + 60, "nbf": now + leeway + 10}, config)


def test_an_introspection_answer_needs_the_audience_only() -> None:
    check_claims({"aud": ["nearline"]}, CONFIG, introspected=True)
    for answer in ({}, {"aud": []}, {"aud": "x"}, {"aud": "nearline", "exp": 1}):
        with pytest.raises(Unauthenticated):
            check_claims(answer, CONFIG, introspected=True)


@pytest.mark.parametrize("value", [None, "", "Bearer", "Bearer ", "Basic YTpi", "token"])
def test_without_a_bearer_token_there_is_advice(value: str | None) -> None:
    with pytest.raises(Unauthenticated, match="nlds login") as caught:
        bearer_token(value)
    assert caught.value.reason == "TOKEN_MISSING"
    assert bearer_token("bearer abc") == "abc"


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithms": ["HS256"]},
        {"algorithms": ["none"]},
        {"issuer": "http://idp.example"},
        {"jwks_url": "http://idp.example/keys"},
        {"audience": ""},
        {"min_uidd": 1},
    ],
)
def test_unsafe_configuration_is_refused(changes: dict[str, Any]) -> None:
    good = {"issuer": "https://idp.example", "audience": "nearline"}
    assert msgspec.convert(good, TokenConfig).audience == "nearline"
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(good | changes, TokenConfig)


def test_making_a_verifier_contacts_nobody() -> None:
    TokenVerifier(TokenConfig(issuer="http://127.0.0.1:1", audience="nearline"))
