"""Being logged in: log in, hand out access tokens that are still good, renew them, log out."""

from __future__ import annotations

import os
import time
import webbrowser
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from nearline_client.auth_errors import AuthError, ConfigError, NotLoggedIn
from nearline_client.config import ClientConfig, config_path
from nearline_client.flows import (
    LoginPrompt,
    OpenBrowser,
    Show,
    Sleep,
    browser_login,
    device_login,
    password_login,
)
from nearline_client.oauth import OAuthClient, OAuthRefused
from nearline_client.tokens import Tokens, TokenStore

__all__ = ["Credentials", "LoginPrompt"]


class Credentials:
    """The login of one configuration. Safe to share between threads, and between processes.

    `NEARLINE_TOKEN` in the environment is used as it is, instead of any login.
    """

    def __init__(
        self,
        config: ClientConfig,
        store: TokenStore | None = None,
        *,
        config_file: Path | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """Touches neither network nor files. The store stands beside `config_file` by default."""
        self._config = config
        self._store = store or TokenStore.beside(config_file or config_path(environ))
        self._fixed = environ.get("NEARLINE_TOKEN")
        self._tokens: Tokens | None = None

    def access_token(self) -> str:
        """An access token that is good for a request now, renewed when it is about to expire.

        Raises NotLoggedIn, and IssuerUnavailable when it has to be renewed and cannot be.
        """
        if self._fixed:
            return self._fixed
        if self._tokens is None or not self._tokens.is_fresh():
            self._tokens = self._load_or_renew()
        return self._tokens.access_token

    def renew(self, rejected: str | None = None) -> str:
        """A new access token now, as after the service refused `rejected`.

        When another process has replaced `rejected` meanwhile, its token is returned instead.
        Raises NotLoggedIn when the login has ended, and IssuerUnavailable.
        """
        if self._fixed:
            raise NotLoggedIn("the token in NEARLINE_TOKEN was refused; set a new one or unset it")
        with self._store.lock():
            tokens = self._stored()
            if rejected is None or tokens.access_token == rejected:
                tokens = self._refresh(tokens)
        self._tokens = tokens
        return tokens.access_token

    def login(
        self,
        show: Show,
        *,
        browser: bool = False,
        open_browser: OpenBrowser = webbrowser.open,
        sleep: Sleep = time.sleep,
    ) -> Tokens:
        """Log in by the device flow where the provider has it and `browser` is not asked for.

        `show` is called once with what the person has to do. Raises LoginFailed,
        IssuerUnavailable, and ConfigError without an issuer.
        """
        with self._client() as client:
            if browser or client.endpoints().device_authorization is None:
                return self._keep(browser_login(client, show, open_browser))
            return self._keep(device_login(client, show, sleep))

    def login_with_password(self, user: str, password: str) -> Tokens:
        """Log in by password, where the provider allows it. Raises as `login`."""
        with self._client() as client:
            return self._keep(password_login(client, user, password))

    def logout(self) -> bool:
        """Forget the tokens, and revoke them where the provider can; whether it was told.

        The file is gone in any case: a provider that is down cannot keep anybody logged in.
        """
        with self._store.lock():
            tokens = self._store.load()
            self._store.delete()
        self._tokens = None
        return tokens is not None and self._revoke(tokens)

    def _keep(self, tokens: Tokens) -> Tokens:
        with self._store.lock():
            self._store.save(tokens)
        self._tokens = tokens
        return tokens

    def _load_or_renew(self) -> Tokens:
        tokens = self._stored()
        if tokens.is_fresh():
            return tokens
        with self._store.lock():
            # Whoever held the lock before may have renewed them.
            tokens = self._stored()
            if tokens.is_fresh():
                return tokens
            return self._refresh_in_time(tokens)

    def _refresh_in_time(self, tokens: Tokens) -> Tokens:
        """Renew; but a token with some seconds left is better than none."""
        try:
            return self._refresh(tokens)
        except AuthError:
            if tokens.is_valid():
                return tokens
            raise

    def _refresh(self, tokens: Tokens) -> Tokens:
        """Use up the refresh token. The caller holds the lock."""
        if tokens.refresh_token is None:
            raise NotLoggedIn("the login has expired: run `nlds login`")
        try:
            with self._client() as client:
                fresh = client.request_token("refresh_token", refresh_token=tokens.refresh_token)
        except OAuthRefused as refused:
            if refused.error != "invalid_grant":
                raise
            self._store.delete()
            raise NotLoggedIn("the login has ended: run `nlds login`") from refused
        if fresh.refresh_token is None:
            # A provider that does not rotate refresh tokens sends none: the old one stays.
            fresh = replace(fresh, refresh_token=tokens.refresh_token)
        self._store.save(fresh)
        return fresh

    def _stored(self) -> Tokens:
        tokens = self._store.load()
        if tokens is None:
            raise NotLoggedIn("not logged in: run `nlds login`")
        if self._config.issuer is not None and tokens.issuer != self._config.issuer:
            raise NotLoggedIn(
                f"logged in at {tokens.issuer}, but the configuration says"
                f" {self._config.issuer}: run `nlds login`"
            )
        return tokens

    def _client(self) -> OAuthClient:
        config = self._config
        if config.issuer is None:
            raise ConfigError(
                "no identity provider is configured: set `issuer`, or run `nlds init`"
            )
        return OAuthClient(
            config.issuer,
            config.client_id,
            scopes=config.scopes,
            audience=config.audience,
            ca_file=config.ca_file,
        )

    def _revoke(self, tokens: Tokens) -> bool:
        try:
            with self._client() as client:
                return client.revoke(tokens.refresh_token or tokens.access_token)
        except AuthError:
            return False
