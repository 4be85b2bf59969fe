"""The three ways to log in: device, browser with PKCE, and password."""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from nearline_client.auth_errors import IssuerUnavailable, LoginFailed
from nearline_client.loopback import LoopbackReceiver
from nearline_client.oauth import DEVICE_CODE_GRANT, OAuthClient, OAuthRefused
from nearline_client.tokens import Tokens

BROWSER_SECONDS = 300.0
DEFAULT_INTERVAL = 5.0
SLOW_DOWN_SECONDS = 5.0


@dataclass(frozen=True)
class LoginPrompt:
    """What to show a person: open `url` and, in the device flow, type `user_code` there.

    `complete_url`, where the provider gives one, already holds the code. `opened`: a browser was
    started with it. The login has to end within `seconds`.
    """

    url: str
    seconds: float
    user_code: str | None = None
    complete_url: str | None = None
    opened: bool = False


Show = Callable[[LoginPrompt], None]
Sleep = Callable[[float], None]
OpenBrowser = Callable[[str], bool]


def device_login(client: OAuthClient, show: Show, sleep: Sleep = time.sleep) -> Tokens:
    """Log in with a code that the person types in a browser anywhere (RFC 8628).

    Raises LoginFailed when the person denies it or the code expires first.
    """
    url = client.endpoints().device_authorization
    if url is None:
        raise LoginFailed(f"{client.issuer} does not offer the device flow")
    answer = client.post(url, **client.wishes())
    try:
        prompt = LoginPrompt(
            url=str(answer["verification_uri"]),
            seconds=float(answer["expires_in"]),
            user_code=str(answer["user_code"]),
            complete_url=answer.get("verification_uri_complete"),
        )
        device_code = str(answer["device_code"])
        interval = float(answer.get("interval", DEFAULT_INTERVAL))
    except (KeyError, TypeError, ValueError) as error:
        raise IssuerUnavailable(f"{client.issuer} answered an incomplete device code") from error
    show(prompt)
    return _poll(client, device_code, interval, prompt.seconds, sleep)


def _poll(
    client: OAuthClient, device_code: str, interval: float, seconds: float, sleep: Sleep
) -> Tokens:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        sleep(interval)
        try:
            return client.request_token(DEVICE_CODE_GRANT, device_code=device_code)
        except IssuerUnavailable:
            # RFC 8628, 3.5: after a timeout ask less often; the person may be typing the code.
            interval *= 2
        except OAuthRefused as refused:
            interval += _patience(refused)
    raise LoginFailed("the code expired before it was approved; run `nlds login` again")


def _patience(refused: OAuthRefused) -> float:
    """Seconds to add to the interval; raises LoginFailed when polling is over."""
    match refused.error:
        case "authorization_pending":
            return 0.0
        case "slow_down":
            return SLOW_DOWN_SECONDS
        case "access_denied":
            raise LoginFailed("the login was denied") from refused
        case "expired_token":
            raise LoginFailed(
                "the code expired before it was approved; run `nlds login` again"
            ) from refused
        case _:
            raise refused


def browser_login(
    client: OAuthClient,
    show: Show,
    open_browser: OpenBrowser = webbrowser.open,
    seconds: float = BROWSER_SECONDS,
) -> Tokens:
    """Log in by a browser on this machine: authorization code with PKCE (S256).

    Raises LoginFailed when the person denies it or nobody answers within `seconds`.
    """
    state, verifier = secrets.token_urlsafe(24), secrets.token_urlsafe(64)
    with LoopbackReceiver(state) as receiver:
        url = _authorization_url(client, receiver.redirect_uri, state, verifier)
        show(LoginPrompt(url=url, seconds=seconds, opened=open_browser(url)))
        answer = receiver.wait(seconds)
    _refuse_failure(client, answer)
    return client.request_token(
        "authorization_code",
        code=answer["code"],
        redirect_uri=receiver.redirect_uri,
        code_verifier=verifier,
    )


def _authorization_url(client: OAuthClient, redirect_uri: str, state: str, verifier: str) -> str:
    endpoint = client.endpoints().authorization
    if endpoint is None:
        raise LoginFailed(f"{client.issuer} does not offer login by a browser")
    query = client.wishes() | {
        "response_type": "code",
        "client_id": client.client_id,
        "redirect_uri": redirect_uri,
        "state": state,
        "code_challenge": s256(verifier),
        "code_challenge_method": "S256",
    }
    return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query)}"


def s256(verifier: str) -> str:
    """The PKCE challenge of a verifier (RFC 7636, 4.2)."""
    digest = hashlib.sha256(verifier.encode("ascii")).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _refuse_failure(client: OAuthClient, answer: dict[str, Any]) -> None:
    # RFC 9207: a code of another issuer must not be sent to ours.
    if answer.get("iss", client.issuer) != client.issuer:
        raise LoginFailed("the answer came from another identity provider; try again")
    if answer.get("error") == "access_denied":
        raise LoginFailed("the login was denied")
    if "code" not in answer:
        raise OAuthRefused(answer.get("error", "no code"), answer.get("error_description", ""))


def password_login(client: OAuthClient, user: str, password: str) -> Tokens:
    """Log in by user name and password, where the provider allows it (scripts, tests).

    Raises LoginFailed when they are wrong or the provider does not offer this.
    """
    try:
        return client.request_token("password", username=user, password=password, **client.wishes())
    except OAuthRefused as refused:
        if refused.error in ("unsupported_grant_type", "unauthorized_client"):
            raise LoginFailed(
                f"{client.issuer} does not allow login by password; run `nlds login` without it"
            ) from refused
        raise
