"""Every way to log in against the real provider; renewal within and across processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from nearline_client.auth import Credentials, LoginPrompt
from nearline_client.auth_errors import (
    ConfigError,
    IssuerUnavailable,
    LoginFailed,
    NotLoggedIn,
)
from nearline_client.config import ClientConfig, save_config
from nearline_client.tokens import TokenStore
from tests.fixtures.idp import IdpFactory, RunningIdp


def credentials(idp: RunningIdp, directory: Path, **changes: object) -> Credentials:
    config = ClientConfig(url="https://127.0.0.1:7000", issuer=idp.issuer)
    config = replace(config, **changes)  # type: ignore[arg-type]
    return Credentials(config, TokenStore(directory / "tokens.json"), environ={})


def subject(idp: RunningIdp, token: str) -> str:
    """Whose token it is, if the provider says that it is active."""
    secret = idp.part.gateway_secret_path.read_text()
    answer = httpx.post(
        f"{idp.issuer}/introspect",
        data={"token": token},
        auth=("gateway", secret),
        trust_env=False,
    ).json()
    return str(answer["sub"]) if answer["active"] else ""


def approve(idp: RunningIdp, prompt: LoginPrompt, user: str, answer: str = "approve") -> int:
    """What a person does with the device prompt; the HTTP status of the page."""
    assert prompt.user_code is not None
    form = {"user_code": prompt.user_code.lower(), "username": user, "password": user, answer: "1"}
    return idp.post(urlsplit(prompt.url).path, **form).status_code


def test_device_flow(idp: RunningIdp, tmp_path: Path) -> None:
    prompts: list[LoginPrompt] = []
    pauses: list[float] = []

    def person(seconds: float) -> None:
        """Looks at the page while the client waits, and approves at the third look."""
        pauses.append(seconds)
        if len(pauses) == 3:
            assert approve(idp, prompts[0], "bob") == 200

    login = credentials(idp, tmp_path)
    tokens = login.login(prompts.append, sleep=person)
    assert subject(idp, login.access_token()) == "bob"
    assert tokens.refresh_token is not None
    assert prompts[0].url == f"{idp.issuer}/device"
    assert prompts[0].complete_url == f"{idp.issuer}/device?user_code={prompts[0].user_code}"
    # The first pause is the provider's; it was then told to slow down, having not really waited.
    assert pauses == [1.0, 1.0, 6.0]


def test_device_flow_denied_or_expired(make_idp: IdpFactory, tmp_path: Path) -> None:
    idp = make_idp(device_code_seconds=2)
    login = credentials(idp, tmp_path)
    prompts: list[LoginPrompt] = []
    with pytest.raises(LoginFailed, match="denied"):
        login.login(prompts.append, sleep=lambda _: deny(idp, prompts))
    with pytest.raises(LoginFailed, match="expired"):
        login.login(prompts.append)
    with pytest.raises(NotLoggedIn, match="nlds login"):
        login.access_token()


def deny(idp: RunningIdp, prompts: list[LoginPrompt]) -> None:
    assert approve(idp, prompts[-1], "bob", "deny") == 200


def test_device_page_refuses_wrong_passwords_and_codes(idp: RunningIdp) -> None:
    wrong = {"user_code": "BBBB-BBBB", "username": "alice", "approve": "1"}
    assert idp.post("/device", **wrong, password="wrong").status_code == 401
    assert idp.post("/device", **wrong, password="alice").status_code == 404


def browser(idp: RunningIdp, user: str, answer: str = "approve") -> Callable[[str], bool]:
    """A browser with a person: signs in and follows the redirect, in the background."""

    def visit(url: str) -> None:
        page = httpx.get(url, trust_env=False)
        assert page.status_code == 200
        assert "DEVELOPMENT ONLY" in page.text
        form = {"username": user, "password": user, answer: "1"}
        back = httpx.post(url, data=form, follow_redirects=False, trust_env=False)
        location = back.headers["location"]
        # Somebody who guesses the port cannot plant a code of his own.
        planted = location.split("?")[0] + "?code=stolen&state=guess"
        assert httpx.get(planted, trust_env=False).status_code == 400
        assert httpx.get(location, trust_env=False).status_code == 200

    def open_browser(url: str) -> bool:
        threading.Thread(target=visit, args=(url,), daemon=True).start()
        return True

    return open_browser


def test_browser_flow_with_pkce(idp: RunningIdp, tmp_path: Path) -> None:
    login = credentials(idp, tmp_path)
    prompts: list[LoginPrompt] = []
    login.login(prompts.append, browser=True, open_browser=browser(idp, "carol"))
    assert subject(idp, login.access_token()) == "carol"
    query = parse_qs(urlsplit(prompts[0].url).query)
    assert query["code_challenge_method"] == ["S256"]
    assert query["redirect_uri"][0].startswith("http://127.0.0.1:")
    assert prompts[0].opened

    with pytest.raises(LoginFailed, match="denied"):
        login.login(prompts.append, browser=True, open_browser=browser(idp, "carol", "deny"))


def test_password_flow(idp: RunningIdp, tmp_path: Path) -> None:
    login = credentials(idp, tmp_path)
    with pytest.raises(LoginFailed, match="wrong"):
        login.login_with_password("alice", "wrong")
    login.login_with_password("alice", "alice")
    assert subject(idp, login.access_token()) == "alice"
    assert (tmp_path / "tokens.json").stat().st_mode & 0o777 == 0o600
    # Another process of the same user finds the same login.
    assert credentials(idp, tmp_path).access_token() == login.access_token()


def test_refused_client_and_wrong_issuer(idp: RunningIdp, tmp_path: Path) -> None:
    with pytest.raises(LoginFailed, match="does not exist"):
        credentials(idp, tmp_path, client_id="nobody").login_with_password("alice", "alice")
    with pytest.raises(IssuerUnavailable, match="another name"):
        credentials(idp, tmp_path, issuer=f"{idp.issuer}/").login_with_password("alice", "alice")
    with pytest.raises(IssuerUnavailable, match="cannot be reached"):
        credentials(idp, tmp_path, issuer="http://127.0.0.1:1").login(print)
    with pytest.raises(ConfigError, match="nlds init"):
        credentials(idp, tmp_path, issuer=None).login(print)


def test_logout_revokes_and_forgets(idp: RunningIdp, make_idp: IdpFactory, tmp_path: Path) -> None:
    login = credentials(idp, tmp_path)
    login.login_with_password("alice", "alice")
    token = login.access_token()
    assert login.logout()
    assert subject(idp, token) == ""
    assert not (tmp_path / "tokens.json").exists()
    with pytest.raises(NotLoggedIn):
        login.access_token()
    assert not login.logout()

    own = make_idp()
    other = credentials(own, tmp_path)
    other.login_with_password("alice", "alice")
    own.stop()
    assert not other.logout()
    assert not (tmp_path / "tokens.json").exists()


def expire(store: TokenStore, *, left: float = -1.0) -> str:
    """Let the stored access token have `left` seconds; returns it."""
    tokens = store.load()
    assert tokens is not None
    store.save(replace(tokens, expires_at=time.time() + left))
    return tokens.access_token


def test_tokens_renew_by_themselves(idp: RunningIdp, tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "tokens.json")
    credentials(idp, tmp_path).login_with_password("alice", "alice")
    for left in (-1.0, 30.0):
        old = expire(store, left=left)
        new = credentials(idp, tmp_path).access_token()
        assert new != old
        assert subject(idp, new) == "alice"
    login = credentials(idp, tmp_path)
    first = login.access_token()
    second = login.renew()
    assert second != first
    # The service refused a token that has been replaced already: no need to renew once more.
    assert login.renew(rejected=first) == second


def test_a_provider_that_is_down_costs_the_login_only_at_expiry(
    make_idp: IdpFactory, tmp_path: Path
) -> None:
    idp = make_idp()
    store = TokenStore(tmp_path / "tokens.json")
    credentials(idp, tmp_path).login_with_password("alice", "alice")
    idp.stop()
    still_good = expire(store, left=30.0)
    assert credentials(idp, tmp_path).access_token() == still_good
    expire(store)
    with pytest.raises(IssuerUnavailable):
        credentials(idp, tmp_path).access_token()
    # Refresh tokens and keys outlive the provider's restart.
    idp.start()
    assert subject(idp, credentials(idp, tmp_path).access_token()) == "alice"


def test_a_login_that_ended_says_so_and_is_forgotten(idp: RunningIdp, tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "tokens.json")
    login = credentials(idp, tmp_path)
    tokens = login.login_with_password("alice", "alice")
    idp.post("/revoke", token=str(tokens.refresh_token), client_id="nlds")
    expire(store)
    with pytest.raises(NotLoggedIn, match="ended"):
        credentials(idp, tmp_path).access_token()
    assert store.load() is None


def test_threads_renew_once(idp: RunningIdp, tmp_path: Path) -> None:
    login = credentials(idp, tmp_path)
    login.login_with_password("alice", "alice")
    expire(TokenStore(tmp_path / "tokens.json"))
    others = [credentials(idp, tmp_path) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(Credentials.access_token, others))
    assert len(found) == 1
    assert subject(idp, found.pop()) == "alice"


PROCESS = """
import sys
from nearline_client.auth import Credentials
from nearline_client.config import load_config
credentials = Credentials(load_config())
print("ready", flush=True)
sys.stdin.readline()
print(credentials.access_token(), flush=True)
"""


def test_two_processes_renew_once(idp: RunningIdp, tmp_path: Path) -> None:
    """A refresh token works once: without the lock, the second use would end the login."""
    config_file = tmp_path / "config.toml"
    save_config(ClientConfig(url="https://127.0.0.1:7000", issuer=idp.issuer), config_file)
    credentials(idp, tmp_path).login_with_password("alice", "alice")
    for _ in range(3):
        expire(TokenStore(tmp_path / "tokens.json"))
        environ = {**os.environ, "NEARLINE_CONFIG": str(config_file)}
        environ.pop("NEARLINE_TOKEN", None)
        processes = [_asking_process(environ) for _ in range(2)]
        try:
            answers = [process.stdout.readline() for process in processes if process.stdout]
            assert answers == ["ready\n", "ready\n"]
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
            found = {process.stdout.readline().strip() for process in processes if process.stdout}
        finally:
            for process in processes:
                process.kill()
                process.communicate()
        assert len(found) == 1
        assert subject(idp, found.pop()) == "alice"


def _asking_process(environ: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
    )


def test_nearline_token_is_used_as_it_is(idp: RunningIdp, tmp_path: Path) -> None:
    config = ClientConfig(url="https://127.0.0.1:7000")
    login = Credentials(
        config, TokenStore(tmp_path / "t.json"), environ={"NEARLINE_TOKEN": "robot"}
    )
    assert login.access_token() == "robot"
    with pytest.raises(NotLoggedIn, match="NEARLINE_TOKEN"):
        login.renew("robot")
