"""The development provider keeps the rules that real ones keep, and says what it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from deploy.local.errors import StackError
from nearline_client.flows import s256
from tests.fixtures.idp import IdpFactory, RunningIdp

VERIFIER = "v" * 43
REDIRECT = "http://127.0.0.1:40404/callback"


def authorize(idp: RunningIdp, **changes: str) -> httpx.Response:
    """The answer to a signed-in authorization request; a change to "" leaves the value out."""
    query = {
        "response_type": "code",
        "client_id": "nlds",
        "redirect_uri": REDIRECT,
        "state": "s",
        "code_challenge": s256(VERIFIER),
        "code_challenge_method": "S256",
    } | changes
    return httpx.post(
        f"{idp.issuer}/authorize",
        params={name: value for name, value in query.items() if value},
        data={"username": "alice", "password": "alice"},
        trust_env=False,
    )


def redeem(idp: RunningIdp, code: str, verifier: str = VERIFIER) -> httpx.Response:
    return idp.post(
        "/token",
        grant_type="authorization_code",
        client_id="nlds",
        code=code,
        redirect_uri=REDIRECT,
        code_verifier=verifier,
    )


def code_of(answer: httpx.Response) -> str:
    assert answer.status_code == 302
    return httpx.URL(answer.headers["location"]).params["code"]


@pytest.mark.parametrize(
    "changes",
    [{"code_challenge": ""}, {"code_challenge_method": "plain"}, {"code_challenge_method": ""}],
)
def test_pkce_with_s256_is_required(idp: RunningIdp, changes: dict[str, str]) -> None:
    location = authorize(idp, **changes).headers["location"]
    assert httpx.URL(location).params["error"] == "invalid_request"


def test_a_code_is_bound_to_its_verifier_and_works_once(idp: RunningIdp) -> None:
    code = code_of(authorize(idp))
    assert redeem(idp, code, verifier="w" * 43).json()["error"] == "invalid_grant"
    assert redeem(idp, code).status_code == 200
    assert redeem(idp, code).json()["error"] == "invalid_grant"


@pytest.mark.parametrize(
    "uri",
    ["https://evil.example/cb", "http://evil.example/cb", "http://127.0.0.1.evil.example/", "x:y"],
)
def test_codes_go_to_loopback_only(idp: RunningIdp, uri: str) -> None:
    answer = authorize(idp, redirect_uri=uri)
    assert answer.status_code == 400
    assert "location" not in answer.headers
    # While any port on loopback will do.
    assert code_of(authorize(idp, redirect_uri="http://[::1]:1/x"))


def test_a_wrong_password_shows_the_page_again(idp: RunningIdp) -> None:
    answer = httpx.post(
        f"{idp.issuer}/authorize",
        params={
            "response_type": "code",
            "client_id": "nlds",
            "redirect_uri": REDIRECT,
            "code_challenge": s256(VERIFIER),
            "code_challenge_method": "S256",
        },
        data={"username": "<script>", "password": "x"},
        trust_env=False,
    )
    assert answer.status_code == 401
    assert "<script>" not in answer.text


def refresh(idp: RunningIdp, token: str) -> httpx.Response:
    return idp.post("/token", grant_type="refresh_token", client_id="nlds", refresh_token=token)


def test_a_refresh_token_used_twice_ends_the_login(idp: RunningIdp) -> None:
    first = idp.login("alice")["refresh_token"]
    second = refresh(idp, first).json()["refresh_token"]
    assert second != first
    assert refresh(idp, first).json()["error"] == "invalid_grant"
    assert refresh(idp, second).json()["error"] == "invalid_grant"


def test_refresh_tokens_survive_kill_and_restart(make_idp: IdpFactory) -> None:
    idp = make_idp()
    login = idp.login("alice")
    idp.supervisor.kill("idp")
    idp.supervisor.wait_gone("idp")
    idp.start()
    assert refresh(idp, login["refresh_token"]).status_code == 200


def test_a_service_logs_in_with_its_secret(idp: RunningIdp) -> None:
    secret = idp.part.gateway_secret_path.read_text()
    form = {"grant_type": "client_credentials"}
    url = f"{idp.issuer}/token"
    good = httpx.post(url, data=form, auth=("gateway", secret), trust_env=False)
    assert good.status_code == 200
    assert "refresh_token" not in good.json()
    bad = httpx.post(url, data=form, auth=("gateway", "wrong"), trust_env=False)
    assert bad.json()["error"] == "invalid_client"
    assert idp.post("/token", client_id="nlds", **form).status_code >= 400
    assert idp.post("/introspect", token="x", client_id="nlds").status_code == 401


def test_rotation_needs_the_admin_secret(idp: RunningIdp) -> None:
    before = httpx.get(f"{idp.issuer}/jwks.json", trust_env=False).json()
    for header in ({}, {"Authorization": "Bearer wrong"}):
        answer = httpx.post(f"{idp.issuer}/admin/rotate", headers=header, trust_env=False)
        assert answer.status_code == 401
    assert httpx.get(f"{idp.issuer}/jwks.json", trust_env=False).json() == before
    assert "d" not in before["keys"][0]


def test_rotation_says_when_the_provider_is_down(make_idp: IdpFactory) -> None:
    idp = make_idp()
    idp.stop()
    with pytest.raises(StackError, match="cannot rotate"):
        idp.part.rotate_keys()


def test_it_says_everywhere_that_it_is_for_development(idp: RunningIdp) -> None:
    for page in ("/", "/device", "/healthz"):
        assert "DEVELOPMENT ONLY" in httpx.get(f"{idp.issuer}{page}", trust_env=False).text
    assert "DEVELOPMENT ONLY" in idp.log()
    token = idp.token("alice")
    assert token not in idp.log()


def test_secrets_on_disk_are_private(idp: RunningIdp) -> None:
    idp.token("alice")
    files = [path for path in idp.part.key_directory.iterdir() if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert {"admin-secret", "gateway-secret", "tokens.sqlite"} <= {path.name for path in files}


@pytest.mark.parametrize(
    ("config", "users", "expected"),
    [
        ('issuer = "https://idp.example"', '{"users": []}', "development on one machine only"),
        ('issuer = "http://127.0.0.1:1"\nx = 1', '{"users": []}', "unknown field `x`"),
        ('issuer = "http://127.0.0.1:1"', '{"users": 1}', "users.json"),
        (
            'issuer = "http://127.0.0.1:1"',
            '{"users": [{"name": "a", "password": "a", "uid": 5}]}',
            "both uid and gid",
        ),
    ],
)
def test_bad_configuration_says_what_to_change(
    tmp_path: Path, config: str, users: str, expected: str
) -> None:
    (tmp_path / "users.json").write_text(users)
    text = f'{config}\nusers_file = "users.json"\nkey_directory = "keys"\n'
    (tmp_path / "idp.toml").write_text(text)
    command = [sys.executable, "-m", "deploy.local.idp", "--config", str(tmp_path / "idp.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
