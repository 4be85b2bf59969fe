"""The issuer's signing keys by key id, kept fresh without asking the issuer too often."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey, import_key

from services.kit.errors import NearlineError, Unauthenticated

PublicKey = ECKey | OKPKey | RSAKey
FetchKeys = Callable[[], Awaitable[list[dict[str, Any]]]]

log = structlog.get_logger(__name__)


def import_keys(jwks: list[dict[str, Any]]) -> dict[str, PublicKey]:
    """The usable signing keys by `kid`.

    Keys for encryption, symmetric keys, keys without id and kinds unknown here are left out: one
    of them must not cost the others.
    """
    found: dict[str, PublicKey] = {}
    for data in jwks:
        if data.get("use", "sig") != "sig" or not isinstance(data.get("kid"), str):
            continue
        try:
            key = import_key(data)
        except (JoseError, ValueError, TypeError, KeyError):
            continue
        if isinstance(key, (ECKey, OKPKey, RSAKey)):
            found[data["kid"]] = key
    return found


class KeyCache:
    """Keys by id: fetched again when old, and early for an unknown id, one fetch at a time.

    `ttl`: seconds after which keys are fetched again; `stale`: seconds they stay in use while that
    fails; `pause`: least seconds between two fetches, so that made-up ids cannot flood the issuer.
    """

    def __init__(
        self,
        fetch: FetchKeys,
        *,
        ttl: float,
        stale: float,
        pause: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch = fetch
        self._ttl, self._stale, self._pause, self._clock = ttl, stale, pause, clock
        self._keys: dict[str, PublicKey] = {}
        self._fetched_at = self._tried_at = -math.inf
        self._failure: NearlineError | None = None
        self._flight: asyncio.Task[None] | None = None

    async def get(self, kid: str) -> PublicKey:
        """The key with this id.

        Raises Unauthenticated(TOKEN_UNKNOWN_KEY) when the issuer has no such key, and the
        issuer's error when it cannot be asked and no key young enough is at hand.
        """
        if kid not in self._keys or self._age() >= self._ttl:
            await self._refresh()
        key = self._keys.get(kid)
        if key is not None and self._age() < max(self._ttl, self._stale):
            return key
        if self._failure is not None:
            # A copy: an exception object that is raised again and again grows its traceback.
            raise type(self._failure)(
                self._failure.reason,
                self._failure.message,
                retry_after=self._failure.retry_after,
            )
        raise Unauthenticated(
            "TOKEN_UNKNOWN_KEY",
            "The token is signed with a key that its issuer does not publish (any more)."
            " Run `nlds login`, then try again.",
        )

    def _age(self) -> float:
        return self._clock() - self._fetched_at

    async def _refresh(self) -> None:
        """Fetch, or join the fetch under way; nothing when the last one is too recent."""
        if self._flight is None:
            if self._clock() - self._tried_at < self._pause:
                return
            self._tried_at = self._clock()
            self._flight = asyncio.create_task(self._load())
        # Shielded: a caller that goes away must not end the fetch the others wait for.
        await asyncio.shield(self._flight)

    async def _load(self) -> None:
        try:
            self._keys = import_keys(await self._fetch())
            self._fetched_at, self._failure = self._clock(), None
        except NearlineError as error:
            self._failure = error
            log.warning("jwks_fetch_failed", problem=error.message, known_keys=len(self._keys))
        finally:
            self._flight = None
