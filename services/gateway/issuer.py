"""Talks to the token issuer over HTTP: discovery, keys, introspection."""

from __future__ import annotations

import ssl
from typing import Any

import httpx
import msgspec

from nearline_client.urls import is_loopback_url, is_secure_url
from services.gateway.token_config import IntrospectionConfig, TokenConfig
from services.kit.errors import Unavailable

RETRY_AFTER = 5.0


def unreachable(issuer: str, problem: str) -> Unavailable:
    return Unavailable(
        "ISSUER_UNREACHABLE",
        f"The token issuer {issuer} {problem}, so the token cannot be checked now. Try again soon.",
        retry_after=RETRY_AFTER,
        issuer=issuer,
    )


class IssuerClient:
    """The issuer's endpoints. Raises Unavailable when it does not answer as the RFCs say."""

    def __init__(self, config: TokenConfig) -> None:
        """Connects at the first request, not here. Raises OSError when the CA file is missing."""
        verify = ssl.create_default_context(cafile=config.ca_file) if config.ca_file else True
        self._config = config
        self._http = httpx.AsyncClient(
            verify=verify,
            timeout=config.timeout_seconds,
            headers={"Accept": "application/json"},
            # A proxy from the environment would not reach an issuer on this machine.
            trust_env=not is_loopback_url(config.issuer),
        )
        self._metadata: dict[str, Any] | None = None

    async def close(self) -> None:
        await self._http.aclose()

    async def keys(self) -> list[dict[str, Any]]:
        """The issuer's public keys, as JWKs."""
        url = self._config.jwks_url or await self._endpoint("jwks_uri")
        keys = (await self._get(url)).get("keys")
        if not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
            raise unreachable(self._config.issuer, "answered without a key set")
        return keys

    async def introspect(self, token: str, config: IntrospectionConfig) -> dict[str, Any]:
        """What the issuer says about an opaque token (RFC 7662)."""
        url = config.url or await self._endpoint("introspection_endpoint")
        return await self._answer(
            self._http.build_request("POST", url, data={"token": token}),
            auth=httpx.BasicAuth(config.client_id, config.client_secret.read()),
        )

    async def _endpoint(self, name: str) -> str:
        if self._metadata is None:
            self._metadata = await self._discover()
        url = self._metadata.get(name)
        if not isinstance(url, str) or not is_secure_url(url):
            raise unreachable(self._config.issuer, f"offers no {name} over https")
        return url

    async def _discover(self) -> dict[str, Any]:
        issuer = self._config.issuer
        default = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
        metadata = await self._get(self._config.discovery_url or default)
        # RFC 8414, 3.3: otherwise the keys of one issuer could vouch for the name of another.
        if metadata.get("issuer") != issuer:
            raise unreachable(issuer, "calls itself by another name in its discovery document")
        return metadata

    async def _get(self, url: str) -> dict[str, Any]:
        return await self._answer(self._http.build_request("GET", url))

    async def _answer(
        self, request: httpx.Request, auth: httpx.Auth | None = None
    ) -> dict[str, Any]:
        issuer = self._config.issuer
        try:
            response = await self._http.send(request, auth=auth)
        except httpx.HTTPError as error:
            raise unreachable(issuer, "cannot be reached") from error
        if not response.is_success:
            raise unreachable(issuer, f"answered with HTTP {response.status_code}")
        try:
            return msgspec.json.decode(response.content, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise unreachable(issuer, "answered something that is not JSON") from error
