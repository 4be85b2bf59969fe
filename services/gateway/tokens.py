"""Verifies access tokens: JWTs (RFC 9068) by the issuer's keys, opaque ones by introspection."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec
from joserfc import jws, jwt
from joserfc.errors import JoseError

from services.gateway.claims import (
    LOG_IN,
    Claims,
    check_claims,
    identity_of,
    wrong_issuer,
)
from services.gateway.issuer import IssuerClient
from services.gateway.jwks import KeyCache
from services.gateway.token_config import IntrospectionConfig, TokenConfig
from services.kit.errors import Unauthenticated
from services.kit.identity import Identity

__all__ = ["IntrospectionConfig", "TokenConfig", "TokenVerifier", "bearer_token"]


def bearer_token(authorization: str | None) -> str:
    """The token in an `authorization` value; raises Unauthenticated(TOKEN_MISSING) without one."""
    scheme, _, token = (authorization or "").strip().partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated(
            "TOKEN_MISSING",
            "The request carries no bearer token. Run `nlds login`, or send the metadata"
            " `authorization: Bearer TOKEN`.",
        )
    return token.strip()


def _malformed(problem: str) -> Unauthenticated:
    return Unauthenticated("TOKEN_MALFORMED", f"The token {problem}. {LOG_IN}")


class TokenVerifier:
    """Turns tokens into identities, and remembers for a while which ones it has verified.

    It keeps a SHA-256 of each token, never the token. Its errors never quote a token.
    """

    def __init__(self, config: TokenConfig, *, clock: Callable[[], float] = time.time) -> None:
        """Contacts the issuer at the first token, not here. `clock` gives Unix seconds."""
        self._config = config
        self._clock = clock
        self._issuer = IssuerClient(config)
        self._keys = KeyCache(
            self._issuer.keys,
            ttl=config.jwks_ttl_seconds,
            stale=config.jwks_stale_seconds,
            pause=config.jwks_pause_seconds,
        )
        self._cache: OrderedDict[bytes, tuple[float, Identity]] = OrderedDict()
        self._flights: dict[bytes, asyncio.Task[Identity]] = {}

    async def close(self) -> None:
        """Close the connections to the issuer."""
        await self._issuer.close()

    async def verify(self, token: str) -> Identity:
        """Who bears this token.

        Raises Unauthenticated with a reason TOKEN_…, or Unavailable(ISSUER_UNREACHABLE) when the
        issuer has to be asked and does not answer.
        """
        if len(token) > self._config.max_token_bytes or not token.isascii():
            raise _malformed("is longer than a token can be, or not ASCII")
        digest = hashlib.sha256(token.encode()).digest()
        hit = self._cache.get(digest)
        if hit is not None and hit[0] > self._clock():
            return hit[1]
        return await self._join(digest, token)

    async def _join(self, digest: bytes, token: str) -> Identity:
        """Verify once, however many calls bring the same token at the same time."""
        flight = self._flights.get(digest)
        if flight is None:
            flight = self._flights[digest] = asyncio.create_task(self._verify(digest, token))
            flight.add_done_callback(lambda done: self._land(digest, done))
        # Shielded: a caller that goes away must not fail the others.
        return await asyncio.shield(flight)

    def _land(self, digest: bytes, flight: asyncio.Task[Identity]) -> None:
        del self._flights[digest]
        if not flight.cancelled():
            flight.exception()  # Marks it as seen, should every caller have gone away.

    async def _verify(self, digest: bytes, token: str) -> Identity:
        is_jwt = token.count(".") == 2
        claims = await (self._jwt_claims(token) if is_jwt else self._opaque_claims(token))
        identity = identity_of(claims, self._config)
        self._remember(digest, identity, claims.get("exp"))
        return identity

    def _remember(self, digest: bytes, identity: Identity, expires_at: float | None) -> None:
        until = self._clock() + self._config.cache_seconds
        self._cache[digest] = (min(until, expires_at or until), identity)
        self._cache.move_to_end(digest)
        while len(self._cache) > self._config.cache_entries:
            self._cache.popitem(last=False)

    async def _jwt_claims(self, token: str) -> Claims:
        header, unverified = _peek(token)
        self._check_header(header)
        # A foreign token is refused before its key id can make us ask our issuer.
        if unverified.get("iss") != self._config.issuer:
            raise wrong_issuer(self._config)
        key = await self._keys.get(header["kid"])
        try:
            claims = jwt.decode(token, key, algorithms=self._config.algorithms).claims
        # Not only a signature that does not match: also a key that does not fit the algorithm, a
        # critical header that nobody knows, and the like.
        except (JoseError, ValueError) as error:
            raise _bad_signature() from error
        check_claims(claims, self._config)
        return claims

    def _check_header(self, header: dict[str, Any]) -> None:
        if header.get("alg") not in self._config.algorithms:
            raise Unauthenticated(
                "TOKEN_BAD_ALGORITHM",
                f"The token is not signed with an accepted algorithm"
                f" ({', '.join(self._config.algorithms)}). {LOG_IN}",
            )
        types = self._config.types
        if types and str(header.get("typ", "")).lower() not in types:
            raise Unauthenticated(
                "TOKEN_WRONG_TYPE",
                f"The token is not an access token (RFC 9068, typ at+jwt). {LOG_IN}",
            )
        if not isinstance(header.get("kid"), str):
            raise _malformed("does not name the key that signed it (kid)")

    async def _opaque_claims(self, token: str) -> Claims:
        introspection = self._config.introspection
        if introspection is None:
            raise _malformed("is not a JWT, and this service accepts no other kind")
        claims = await self._issuer.introspect(token, introspection)
        if claims.get("active") is not True:
            raise Unauthenticated("TOKEN_INACTIVE", f"The token expired or was revoked. {LOG_IN}")
        check_claims(claims, self._config, introspected=True)
        return claims


def _bad_signature() -> Unauthenticated:
    return Unauthenticated(
        "TOKEN_BAD_SIGNATURE", f"The signature of the token does not match. {LOG_IN}"
    )


def _peek(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims before anything is verified; raises Unauthenticated(TOKEN_MALFORMED)."""
    try:
        parts = jws.extract_compact(token.encode())
        header = msgspec.convert(parts.headers(), dict[str, Any])
        return header, msgspec.json.decode(parts.payload or b"", type=dict[str, Any])
    # Hostile headers that are JSON but no object make the library fail in its own ways.
    except (JoseError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _malformed("is not a JWT") from error
