"""Nobody gets in without a good token, and nobody gets more than the token allows."""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Callable

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

import nearline_client
from nearline_client import Client, NotAllowed, NotLoggedIn, ServiceError
from tests.fixtures.idp import RunningIdp
from tests.fixtures.store import GROUP, Store

Forge = Callable[..., str]


@pytest.fixture
def provider(store: Store) -> RunningIdp:
    """The stack's own provider, whose key the tests can sign with."""
    return RunningIdp(store.stack.site.idp, store.stack.supervisor)


def bearing(store: Store, token: str) -> Client:
    where = store.stack.environment()
    return nearline_client.connect(where["NEARLINE_URL"], token, where["NEARLINE_CA"])


def refusal(store: Store, token: str) -> ServiceError:
    with bearing(store, token) as client, pytest.raises(NotLoggedIn) as refused:
        client.identity()
    return refused.value


def test_a_forged_copy_of_a_good_token_gets_in(store: Store, provider: RunningIdp) -> None:
    """So the refusals below are for what each of them changes."""
    with bearing(store, provider.forge()) as client:
        assert client.identity().user == "alice"


def unsigned(provider: RunningIdp) -> str:
    claims = provider.forge().split(".")[1]
    header = base64.urlsafe_b64encode(b'{"alg":"none","typ":"at+jwt"}').decode().rstrip("=")
    return f"{header}.{claims}."


BAD_TOKENS: dict[str, Callable[[RunningIdp], str]] = {
    "empty": lambda provider: "",
    "garbage": lambda provider: "garbage",
    "cut": lambda provider: provider.forge()[:-10],
    "alg none": unsigned,
    "expired": lambda provider: provider.forge(exp=int(time.time()) - 3600),
    "not yet valid": lambda provider: provider.forge(nbf=int(time.time()) + 3600),
    "foreign issuer": lambda provider: provider.forge(iss="https://elsewhere.example"),
    "other audience": lambda provider: provider.forge(aud=["another-service"]),
    "no subject": lambda provider: provider.forge(sub=None),
    "root": lambda provider: provider.forge(uid=0, gid=0),
    "foreign key": lambda provider: jwt.encode(
        {"alg": "ES256", "typ": "at+jwt", "kid": provider.signing_key().kid},
        provider.claims(),
        ECKey.generate_key("P-256"),
    ),
}


@pytest.mark.parametrize("make", BAD_TOKENS.values(), ids=BAD_TOKENS)
def test_a_bad_token_is_refused(
    store: Store, provider: RunningIdp, make: Callable[[RunningIdp], str]
) -> None:
    assert refusal(store, make(provider)).code == "UNAUTHENTICATED"


def test_a_token_of_another_provider_is_refused(store: Store, foreign_idp: RunningIdp) -> None:
    assert refusal(store, foreign_idp.token("alice")).code == "UNAUTHENTICATED"


def test_the_command_ends_with_3_when_it_may_not(store: Store) -> None:
    done = store.alice.nlds("list", "-g", "sentinel-2")
    assert done.returncode == 3
    assert b"is not in group" in done.stderr


def test_a_group_one_is_not_in(store: Store) -> None:
    dave, path = store.dave, store.dave.file(store.dave.directory() + b"/file")
    with pytest.raises(NotAllowed) as refused:
        dave.client.put([path], group=GROUP)
    assert refused.value.reason == "NOT_A_MEMBER"
    with pytest.raises(NotAllowed):
        list(dave.client.find(group=GROUP))
    with pytest.raises(NotAllowed):
        dave.client.put([path], user="alice", group="sentinel")


def test_what_others_store_is_not_seen_from_outside_the_group(store: Store) -> None:
    alice, dave = store.alice, store.dave
    path = alice.file(alice.directory() + b"/file")
    put = alice.put(path)
    assert not dave.files(path)
    assert not list(dave.client.list(holding_id=put.holding_id, all_users=True))
    get = dave.get(path, target=dave.directory(), expect="FAILED")
    assert set(dave.failures(get).values()) == {"NOT_FOUND"}
    get = dave.get(path, target=dave.directory(), holding_id=put.holding_id, expect="FAILED")
    assert set(dave.failures(get).values()) == {"NOT_FOUND"}


def test_requests_of_others(store: Store) -> None:
    """Dave is in none of the groups of the request, bob a DEPUTY of its group, alice a USER."""
    path = store.carol.file(store.carol.directory() + b"/file")
    put = store.carol.put(path)
    asks = (Client.transaction, Client.cancel, lambda client, id: list(client.watch(id)))
    for ask in asks:
        with pytest.raises(ServiceError) as refused:
            ask(store.dave.client, put.id)
        assert refused.value.code == "NOT_FOUND"
    assert store.alice.client.transaction(put.id).id == put.id
    with pytest.raises(NotAllowed) as denied:
        store.alice.client.cancel(put.id)
    assert denied.value.reason == "ROLE_NEEDED"
    assert store.bob.client.cancel(put.id).id == put.id


def test_the_id_of_another_user_cannot_be_used_again(store: Store) -> None:
    path, id = store.carol.file(store.carol.directory() + b"/file"), str(uuid.uuid4())
    store.carol.put(path, transaction_id=id)
    with pytest.raises(ServiceError) as refused:
        store.alice.client.put([path], group=GROUP, transaction_id=id)
    assert refused.value.code in ("PERMISSION_DENIED", "ALREADY_EXISTS")


def test_a_token_that_the_service_does_not_take_is_renewed(store: Store) -> None:
    carol = store.carol
    (kept,) = carol.config.parent.glob("tokens*.json")
    tokens = json.loads(kept.read_bytes())
    rejected = tokens["access_token"][:-10] + "A" * 10
    kept.write_text(json.dumps({**tokens, "access_token": rejected}))
    assert carol.nlds("list").returncode == 0
    assert json.loads(kept.read_bytes())["access_token"] not in (rejected, tokens["access_token"])
