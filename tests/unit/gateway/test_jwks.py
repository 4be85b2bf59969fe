"""When the key cache asks the issuer, by a clock that the test moves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from joserfc.jwk import ECKey, OctKey, RSAKey

from services.gateway.jwks import KeyCache, import_keys
from services.kit.errors import Unauthenticated, Unavailable


class Issuer:
    """Publishes the key ids in `published`; counts the questions; `down` refuses them."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.published = ["one"]
        self.asked = 0
        self.down = False
        self._key = ECKey.generate_key("P-256").as_dict(private=False)

    async def keys(self) -> list[dict[str, Any]]:
        self.asked += 1
        if self.down:
            raise Unavailable("ISSUER_UNREACHABLE", "down", retry_after=5)
        return [self._key | {"kid": kid} for kid in self.published]

    def cache(self) -> KeyCache:
        return KeyCache(self.keys, ttl=600, stale=3600, pause=10, clock=lambda: self.now)


def test_keys_are_fetched_when_old_and_for_unknown_ids_with_a_pause() -> None:
    async def scenario() -> None:
        issuer = Issuer()
        cache = issuer.cache()
        await cache.get("one")
        await cache.get("one")
        assert issuer.asked == 1
        issuer.published.append("two")
        with pytest.raises(Unauthenticated, match="TOKEN_UNKNOWN_KEY"):
            await cache.get("two")
        issuer.now += 11
        await cache.get("two")
        assert issuer.asked == 2
        issuer.now += 601
        issuer.published.remove("one")
        with pytest.raises(Unauthenticated, match="TOKEN_UNKNOWN_KEY"):
            await cache.get("one")
        assert issuer.asked == 3

    asyncio.run(scenario())


def test_stale_keys_are_used_while_the_issuer_is_down_but_not_for_ever() -> None:
    async def scenario() -> None:
        issuer = Issuer()
        cache = issuer.cache()
        await cache.get("one")
        issuer.down = True
        issuer.now += 601
        for _ in range(5):
            await cache.get("one")
        assert issuer.asked == 2
        with pytest.raises(Unavailable) as caught:
            await cache.get("two")
        assert caught.value.retry_after == 5
        issuer.now += 3600
        with pytest.raises(Unavailable):
            await cache.get("one")
        issuer.down = False
        issuer.now += 11
        await cache.get("one")

    asyncio.run(scenario())


def test_one_bad_key_does_not_cost_the_others() -> None:
    good = ECKey.generate_key("P-256").as_dict(private=False) | {"kid": "good"}
    rsa = RSAKey.generate_key(2048).as_dict(private=False) | {"kid": "rsa"}
    jwks: list[dict[str, Any]] = [
        {},
        {"kid": "x", "kty": "PQC"},
        {"kid": "y", "kty": "EC", "crv": "P-256", "x": "!", "y": None},
        good | {"kid": "enc", "use": "enc"},
        {name: value for name, value in good.items() if name != "kid"},
        dict(OctKey.generate_key(256).as_dict()) | {"kid": "shared"},
        good,
        rsa,
    ]
    assert set(import_keys(jwks)) == {"good", "rsa"}
