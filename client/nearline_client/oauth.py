"""The OAuth requests a command-line client makes: discovery, token, device, revocation."""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from nearline_client.auth_errors import ConfigError, IssuerUnavailable, LoginFailed
from nearline_client.tokens import Tokens
from nearline_client.urls import is_loopback_url, is_secure_url

DEVICE_CODE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
DEFAULT_LIFETIME = 300.0


class OAuthRefused(LoginFailed):
    """The provider answered with an OAuth error; `error` is its code (RFC 6749, 5.2)."""

    def __init__(self, error: str, description: str) -> None:
        super().__init__(description or error)
        self.error = error


@dataclass(frozen=True)
class Endpoints:
    """What the provider offers; None where it does not."""

    token: str
    authorization: str | None = None
    device_authorization: str | None = None
    revocation: str | None = None


class OAuthClient:
    """A public OAuth client of one provider.

    Methods raise IssuerUnavailable when the provider cannot be reached or makes no sense, and
    OAuthRefused when it refuses. Nothing is sent before the first call.
    """

    def __init__(
        self,
        issuer: str,
        client_id: str,
        *,
        scopes: tuple[str, ...] = (),
        audience: str | None = None,
        ca_file: Path | None = None,
        timeout: float = 10.0,
    ) -> None:
        """`ca_file` (PEM) adds authorities to the public ones; `timeout` is in seconds.

        Raises ConfigError when the file cannot be used.
        """
        self.issuer = issuer
        self.client_id = client_id
        self._wishes = {"scope": " ".join(scopes), "audience": audience or ""}
        # A proxy from the environment would not reach a provider on this machine.
        self._http = httpx.Client(
            verify=_tls(ca_file), timeout=timeout, trust_env=not is_loopback_url(issuer)
        )
        self._endpoints: Endpoints | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def wishes(self) -> dict[str, str]:
        """The scope and audience parameters of a new login, without empty ones."""
        return {name: value for name, value in self._wishes.items() if value}

    def endpoints(self) -> Endpoints:
        """The provider's discovery document, fetched once (RFC 8414, OpenID Discovery)."""
        if self._endpoints is None:
            self._endpoints = self._discover()
        return self._endpoints

    def _discover(self) -> Endpoints:
        url = f"{self.issuer.rstrip('/')}/.well-known/openid-configuration"
        response = self._send(self._http.build_request("GET", url))
        metadata = self._json(response)
        if not response.is_success:
            raise self._unavailable(f"answered {url} with HTTP {response.status_code}")
        # RFC 8414, 3.3: another issuer's document could name endpoints that collect passwords.
        if metadata.get("issuer") != self.issuer:
            raise self._unavailable("calls itself by another name; correct `issuer`")
        found = {name: self._endpoint(metadata, name) for name in Endpoints.__annotations__}
        if found["token"] is None:
            raise self._unavailable("has no token endpoint")
        return Endpoints(**found)  # type: ignore[arg-type]

    def _endpoint(self, metadata: Mapping[str, Any], name: str) -> str | None:
        url = metadata.get(f"{name}_endpoint")
        if url is not None and not (isinstance(url, str) and is_secure_url(url)):
            raise self._unavailable(f"names a {name} endpoint that is not https")
        return url

    def request_token(self, grant_type: str, **parameters: str) -> Tokens:
        """Exchange a grant for tokens."""
        answer = self.post(self.endpoints().token, grant_type=grant_type, **parameters)
        try:
            return self._tokens(answer)
        except (KeyError, TypeError, ValueError) as error:
            raise self._unavailable("answered without a bearer token") from error

    def _tokens(self, answer: Mapping[str, Any]) -> Tokens:
        if answer["token_type"].lower() != "bearer":
            raise ValueError("another type of token")
        lifetime = float(answer.get("expires_in", DEFAULT_LIFETIME))
        refresh_token = answer.get("refresh_token")
        return Tokens(
            issuer=self.issuer,
            client_id=self.client_id,
            access_token=str(answer["access_token"]),
            expires_at=time.time() + lifetime,
            lifetime=lifetime,
            refresh_token=None if refresh_token is None else str(refresh_token),
            scope=str(answer.get("scope", "")),
        )

    def revoke(self, token: str) -> bool:
        """Tell the provider to forget a token (RFC 7009); False where it offers no way to."""
        url = self.endpoints().revocation
        if url is not None:
            self.post(url, token=token)
        return url is not None

    def post(self, url: str, **parameters: str) -> dict[str, Any]:
        """POST a form as this client and return the JSON answer."""
        form = parameters | {"client_id": self.client_id}
        response = self._send(self._http.build_request("POST", url, data=form))
        if response.is_success:
            return self._json(response) if response.content else {}
        if response.status_code >= 500:
            raise self._unavailable(f"answered with HTTP {response.status_code}")
        answer = self._json(response)
        error, description = answer.get("error"), answer.get("error_description", "")
        raise OAuthRefused(str(error or f"HTTP {response.status_code}"), str(description))

    def _send(self, request: httpx.Request) -> httpx.Response:
        request.headers["Accept"] = "application/json"
        try:
            return self._http.send(request)
        except httpx.HTTPError as error:
            raise self._unavailable(f"cannot be reached: {error}") from error

    def _json(self, response: httpx.Response) -> dict[str, Any]:
        try:
            answer = response.json()
        except ValueError as error:
            raise self._unavailable(f"answered HTTP {response.status_code} without JSON") from error
        if not isinstance(answer, dict):
            raise self._unavailable("answered with JSON that is not an object")
        return answer

    def _unavailable(self, problem: str) -> IssuerUnavailable:
        return IssuerUnavailable(f"the identity provider {self.issuer} {problem}")


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    context = httpx.create_ssl_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:
            raise ConfigError(f"ca_file {ca_file} cannot be used: {error}") from error
    return context
