"""The token verifier against real providers: what it accepts, and why it refuses the rest."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey

from services.gateway.tokens import IntrospectionConfig, TokenConfig, TokenVerifier
from services.kit.config import SecretFile
from services.kit.errors import NearlineError, Unauthenticated, Unavailable
from services.kit.identity import Role
from tests.fixtures.idp import IdpFactory, RunningIdp

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]
Make = Callable[..., TokenVerifier]


@pytest.fixture
def run() -> Iterator[Run[Any]]:
    """Runs coroutines on one event loop: a verifier's connections belong to a loop."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture
def make(run: Run[Any]) -> Iterator[Make]:
    made: list[TokenVerifier] = []

    def verifier(idp: RunningIdp, **changes: Any) -> TokenVerifier:
        config = TokenConfig(issuer=idp.issuer, audience="nearline", **changes)
        made.append(TokenVerifier(config))
        return made[-1]

    yield verifier
    for one in made:
        run(one.close())


@pytest.fixture
def verifier(make: Make, idp: RunningIdp) -> TokenVerifier:
    return make(idp)


def refusal(run: Run[Any], verifier: TokenVerifier, token: str) -> NearlineError:
    """The error for a token that must be refused; it never quotes the token."""
    with pytest.raises(NearlineError) as caught:
        run(verifier.verify(token))
    secret_part = token.rpartition(".")[2] or token
    shown = f"{caught.value.message} {caught.value.metadata}"
    assert len(secret_part) < 16 or secret_part not in shown
    return caught.value


def reason(run: Run[Any], verifier: TokenVerifier, token: str) -> str:
    error = refusal(run, verifier, token)
    assert isinstance(error, Unauthenticated)
    return error.reason


def test_groups_and_roles_come_from_the_token(
    run: Run[Any], verifier: TokenVerifier, idp: RunningIdp
) -> None:
    alice = run(verifier.verify(idp.token("alice")))
    assert (alice.user, alice.groups) == ("alice", {"cmip6": Role.USER, "sentinel": Role.MANAGER})
    assert (alice.uid, alice.gid, alice.gids) == (None, None, ())
    assert run(verifier.verify(idp.token("bob"))).groups == {"cmip6": Role.DEPUTY}
    assert run(verifier.verify(idp.token("carol"))).groups == {"cmip6": Role.MANAGER}


def test_posix_ids_come_from_the_token_only_where_configured(
    run: Run[Any], make: Make, idp: RunningIdp
) -> None:
    verifier = make(idp, posix_claims=True)
    alice = run(verifier.verify(idp.token("alice")))
    assert (alice.uid, alice.gid, alice.gids) == (5001, 6001, (6001, 6002))
    assert run(verifier.verify(idp.token("carol"))).uid is None


@pytest.mark.parametrize("claim", ["uid", "gid", "gids"])
def test_root_is_never_served(run: Run[Any], make: Make, idp: RunningIdp, claim: str) -> None:
    ids: dict[str, Any] = {"uid": 5001, "gid": 6001, "gids": [6001]}
    ids[claim] = [6001, 0] if claim == "gids" else 0
    verifier = make(idp, posix_claims=True)
    assert reason(run, verifier, idp.forge(**ids)) == "TOKEN_PRIVILEGED_IDS"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"exp": int(time.time()) - 3600}, "TOKEN_EXPIRED"),
        ({"nbf": int(time.time()) + 3600}, "TOKEN_NOT_YET_VALID"),
        ({"iat": int(time.time()) + 3600}, "TOKEN_NOT_YET_VALID"),
        ({"aud": ["other"]}, "TOKEN_WRONG_AUDIENCE"),
        ({"aud": "nearline2"}, "TOKEN_WRONG_AUDIENCE"),
        ({"aud": None}, "TOKEN_MISSING_CLAIM"),
        ({"exp": None}, "TOKEN_MISSING_CLAIM"),
        ({"sub": None}, "TOKEN_MISSING_CLAIM"),
        ({"exp": "tomorrow"}, "TOKEN_BAD_CLAIM"),
        ({"iss": "https://elsewhere.example"}, "TOKEN_WRONG_ISSUER"),
        ({"iss": None}, "TOKEN_WRONG_ISSUER"),
        ({"client_id": "alice"}, "TOKEN_NOT_OF_A_USER"),
        ({"groups": "cmip6"}, "TOKEN_BAD_CLAIM"),
        ({"sub": "al ice"}, "TOKEN_BAD_CLAIM"),
        ({"sub": "alice\n"}, "TOKEN_BAD_CLAIM"),
        ({"nearline_roles": {"cmip6": "ROOT"}}, "TOKEN_BAD_CLAIM"),
    ],
)
def test_bad_claims_are_refused_though_the_signature_is_good(
    run: Run[Any],
    verifier: TokenVerifier,
    idp: RunningIdp,
    changes: dict[str, Any],
    expected: str,
) -> None:
    run(verifier.verify(idp.forge()))
    assert reason(run, verifier, idp.forge(**changes)) == expected


def test_a_foreign_issuer_is_refused(
    run: Run[Any], verifier: TokenVerifier, idp: RunningIdp, foreign_idp: RunningIdp
) -> None:
    assert reason(run, verifier, foreign_idp.token("alice")) == "TOKEN_WRONG_ISSUER"
    # Also when it claims to be ours: its key is not among our issuer's.
    posing = foreign_idp.forge(iss=idp.issuer)
    assert reason(run, verifier, posing) == "TOKEN_UNKNOWN_KEY"


def test_a_stranger_cannot_sign(run: Run[Any], verifier: TokenVerifier, idp: RunningIdp) -> None:
    stranger = ECKey.generate_key("P-256")
    header = {"alg": "ES256", "typ": "at+jwt", "kid": idp.signing_key().kid}
    assert reason(run, verifier, jwt.encode(header, idp.claims(), stranger)) == (
        "TOKEN_BAD_SIGNATURE"
    )
    good = idp.token("alice")
    head, body, signature = good.split(".")
    promoted = _part(json.loads(_bytes(body)) | {"nearline_roles": {"cmip6": "MANAGER"}})
    assert reason(run, verifier, f"{head}.{promoted}.{signature}") == "TOKEN_BAD_SIGNATURE"


def test_unsigned_tokens_and_symmetric_signatures_are_refused(
    run: Run[Any], verifier: TokenVerifier, idp: RunningIdp
) -> None:
    key = idp.signing_key()
    header = {"alg": "none", "typ": "at+jwt", "kid": key.kid}
    unsigned = f"{_part(header)}.{_part(idp.claims())}."
    assert reason(run, verifier, unsigned) == "TOKEN_BAD_ALGORITHM"
    # The classic confusion: the public key, which anybody has, used as an HMAC secret.
    pem = key.public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for algorithm in ("HS256", "none", "ES256K"):
        confused = jwt.encode(
            {"alg": "HS256", "typ": "at+jwt", "kid": key.kid},
            idp.claims(),
            OctKey.import_key(base64.b64encode(pem)),
            algorithms=["HS256"],
        )
        head = _part({"alg": algorithm, "typ": "at+jwt", "kid": key.kid})
        token = f"{head}.{confused.split('.', 1)[1]}"
        assert reason(run, verifier, token) == "TOKEN_BAD_ALGORITHM"


def test_a_token_of_another_type_is_refused(
    run: Run[Any], verifier: TokenVerifier, make: Make, idp: RunningIdp
) -> None:
    id_token = idp.forge(header={"typ": "JWT"})
    assert reason(run, verifier, id_token) == "TOKEN_WRONG_TYPE"
    assert run(make(idp, types=()).verify(id_token)).user == "alice"


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "..",
        "a.b.c",
        "e30.e30.",
        "ImFsZyI.e30.x",
        "W10.e30.x",
        "é" * 10,
        "a" * 9000,
        base64.urlsafe_b64encode(b'{"alg":"ES256"}').decode()
        + "."
        + base64.urlsafe_b64encode(b"[" * 4000).decode().rstrip("=")
        + ".x",
    ],
    ids=range(9),
)
def test_garbage_is_malformed(run: Run[Any], verifier: TokenVerifier, token: str) -> None:
    assert reason(run, verifier, token) == "TOKEN_MALFORMED"


def test_an_unknown_key_id_is_asked_for_once(
    run: Run[Any], make: Make, idp: RunningIdp, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = make(idp)
    fetches = _count_key_fetches(verifier, monkeypatch)
    run(verifier.verify(idp.token("alice")))
    for number in range(20):
        token = idp.forge(header={"kid": f"made-up-{number}"})
        assert reason(run, verifier, token) == "TOKEN_UNKNOWN_KEY"
    assert len(fetches) == 1
    assert reason(run, verifier, idp.forge(header={"kid": None})) == "TOKEN_MALFORMED"


def test_many_calls_at_once_fetch_the_keys_once(
    run: Run[Any], make: Make, idp: RunningIdp, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = make(idp)
    fetches = _count_key_fetches(verifier, monkeypatch)
    tokens = [idp.token(user) for user in ("alice", "bob", "carol", "dave")] * 5

    async def all_at_once() -> list[str]:
        impatient = asyncio.create_task(verifier.verify(tokens[0]))
        await asyncio.sleep(0)
        waiting = [asyncio.create_task(verifier.verify(token)) for token in tokens]
        await asyncio.sleep(0)
        impatient.cancel()
        return [identity.user for identity in await asyncio.gather(*waiting)]

    assert run(all_at_once()) == ["alice", "bob", "carol", "dave"] * 5
    assert len(fetches) == 1


def test_keys_rotate(run: Run[Any], make: Make, make_idp: IdpFactory) -> None:
    idp = make_idp()
    verifier = make(idp, jwks_pause_seconds=0.001, cache_seconds=0.001)
    old = idp.token("alice")
    assert run(verifier.verify(old)).user == "alice"
    idp.part.rotate_keys()
    new = idp.token("bob")
    assert run(verifier.verify(new)).user == "bob"
    # The key before is still published: tokens in use stay good.
    assert run(verifier.verify(old)).user == "alice"

    idp.part.rotate_keys(retire_old=True)
    fresh = make(idp)
    assert run(fresh.verify(idp.token("carol"))).user == "carol"
    assert reason(run, fresh, new) == "TOKEN_UNKNOWN_KEY"


def test_known_keys_stay_in_use_while_the_issuer_is_down(
    run: Run[Any], make: Make, make_idp: IdpFactory
) -> None:
    idp = make_idp()
    settings = {"jwks_ttl_seconds": 0.001, "jwks_pause_seconds": 0.001, "cache_seconds": 0.001}
    verifier, cold = make(idp, **settings), make(idp, **settings)
    impatient = make(idp, jwks_stale_seconds=0.001, **settings)
    token = idp.token("alice")
    other = idp.forge(header={"kid": "made-up"})
    for one in (verifier, impatient):
        assert run(one.verify(token)).user == "alice"
    idp.stop()
    assert run(verifier.verify(token)).user == "alice"
    for one, what in ((verifier, other), (cold, token), (impatient, token)):
        error = refusal(run, one, what)
        assert isinstance(error, Unavailable)
        assert (error.reason, error.transient) == ("ISSUER_UNREACHABLE", True)
    idp.start()
    assert run(cold.verify(token)).user == "alice"
    assert reason(run, verifier, other) == "TOKEN_UNKNOWN_KEY"


def test_a_verified_token_is_not_looked_at_again_until_it_expires(
    run: Run[Any], idp: RunningIdp
) -> None:
    now = [time.time()]
    config = TokenConfig(issuer=idp.issuer, audience="nearline", cache_seconds=3600)
    verifier = TokenVerifier(config, clock=lambda: now[0])
    token = idp.forge(exp=int(now[0]) + 100)
    first = run(verifier.verify(token))
    assert run(verifier.verify(token)) is first
    now[0] += 101
    assert run(verifier.verify(token)) is not first
    run(verifier.close())


def test_an_issuer_that_names_itself_otherwise_is_not_believed(
    run: Run[Any], make: Make, idp: RunningIdp, foreign_idp: RunningIdp
) -> None:
    discovery = f"{foreign_idp.issuer}/.well-known/openid-configuration"
    verifier = make(idp, discovery_url=discovery)
    assert refusal(run, verifier, idp.token("alice")).reason == "ISSUER_UNREACHABLE"


def test_opaque_tokens_are_introspected_where_configured(
    run: Run[Any], verifier: TokenVerifier, make: Make, idp: RunningIdp
) -> None:
    login = idp.login("alice", "nlds-opaque")
    token = login["access_token"]
    assert "." not in token
    assert reason(run, verifier, token) == "TOKEN_MALFORMED"

    secret = SecretFile(idp.part.gateway_secret_path)
    introspection = IntrospectionConfig(client_id="gateway", client_secret=secret)
    asking = make(idp, introspection=introspection, cache_seconds=0.001)
    alice = run(asking.verify(token))
    assert (alice.user, alice.groups["sentinel"]) == ("alice", Role.MANAGER)
    # A JWT needs no question.
    assert run(asking.verify(idp.token("bob"))).user == "bob"
    # A refresh token is no access token, and a revoked one is none any more.
    assert reason(run, asking, login["refresh_token"]) == "TOKEN_INACTIVE"
    assert reason(run, make(idp, introspection=introspection), "x" * 40) == "TOKEN_INACTIVE"
    idp.post("/revoke", token=token, client_id="nlds-opaque")
    assert reason(run, asking, token) == "TOKEN_INACTIVE"


def test_opaque_tokens_for_another_service_are_refused(
    run: Run[Any], make: Make, make_idp: IdpFactory
) -> None:
    idp = make_idp(audience="elsewhere")
    secret = SecretFile(idp.part.gateway_secret_path)
    verifier = make(
        idp, introspection=IntrospectionConfig(client_id="gateway", client_secret=secret)
    )
    token = idp.token("alice", "nlds-opaque")
    assert reason(run, verifier, token) == "TOKEN_WRONG_AUDIENCE"


def _bytes(segment: str) -> bytes:
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


def _part(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def _count_key_fetches(verifier: TokenVerifier, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows by one with each fetch of the keys; the fetch itself is the real one."""
    fetches: list[None] = []
    fetch = verifier._keys._fetch

    async def counted() -> list[dict[str, Any]]:
        fetches.append(None)
        return await fetch()

    monkeypatch.setattr(verifier._keys, "_fetch", counted)
    return fetches
