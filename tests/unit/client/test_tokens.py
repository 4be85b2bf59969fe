"""The token file: private, whole or absent, and locked while it is being renewed."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from nearline_client.auth_errors import TokenFileError
from nearline_client.tokens import Tokens, TokenStore

SECRET = "very-secret"


def tokens(seconds: float = 900.0) -> Tokens:
    return Tokens(
        issuer="https://idp.example",
        client_id="nlds",
        access_token=SECRET,
        expires_at=time.time() + seconds,
        lifetime=900.0,
        refresh_token=f"{SECRET}-refresh",
    )


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return TokenStore(tmp_path / "deep" / "tokens.json")


def test_tokens_are_kept_private_and_do_not_show(store: TokenStore) -> None:
    assert store.load() is None
    kept = tokens()
    store.save(kept)
    assert store.load() == kept
    assert store.path.stat().st_mode & 0o777 == 0o600
    assert store.path.parent.stat().st_mode & 0o777 == 0o700
    assert SECRET not in repr(kept)
    store.delete()
    store.delete()
    assert store.load() is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_file_that_others_can_use_is_refused(store: TokenStore, mode: int) -> None:
    store.save(tokens())
    store.path.chmod(mode)
    with pytest.raises(TokenFileError, match="chmod 600"):
        store.load()
    # A new login repairs it.
    store.save(tokens())
    assert store.load() is not None


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "null", '{"issuer": 1}', json.dumps({"access_token": "x"})]
)
def test_a_damaged_file_says_what_to_do(store: TokenStore, content: str) -> None:
    store.save(tokens())
    store.path.write_text(content)
    with pytest.raises(TokenFileError, match="nlds login"):
        store.load()


def test_fresh_ends_before_valid() -> None:
    assert tokens(61).is_fresh()
    assert not tokens(59).is_fresh()
    assert tokens(59).is_valid()
    assert not tokens(-1).is_valid()


def test_the_lock_excludes_others(store: TokenStore) -> None:
    order: list[str] = []
    waiting = threading.Event()

    def other() -> None:
        waiting.set()
        with TokenStore(store.path).lock():
            order.append("other")

    with store.lock():
        thread = threading.Thread(target=other)
        thread.start()
        waiting.wait()
        thread.join(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def test_each_configuration_has_tokens_of_its_own(tmp_path: Path) -> None:
    assert TokenStore.beside(tmp_path / "config.toml").path == tmp_path / "tokens.json"
    assert TokenStore.beside(tmp_path / "b.toml").path == tmp_path / "b.toml.tokens.json"
