"""Authlib's grants and endpoints, bound to this provider's users, keys and stores."""

# mypy: disallow-subclassing-any=False, disable-error-code="no-any-return"
# Authlib ships no types, so its classes are Any here.

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

from authlib.common.security import generate_token
from authlib.oauth2.rfc6749 import ClientMixin, grants
from authlib.oauth2.rfc6749.errors import InvalidGrantError, InvalidRequestError
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oauth2.rfc7662 import IntrospectionEndpoint
from authlib.oauth2.rfc8628 import (
    DeviceAuthorizationEndpoint,
    DeviceCodeGrant,
    DeviceCredentialDict,
)
from authlib.oauth2.rfc9068 import JWTBearerTokenGenerator
from joserfc.jwk import KeySet

from deploy.local import files
from deploy.local.idp.config import ClientConfig
from deploy.local.idp.keys import ALGORITHM
from deploy.local.idp.store import AuthorizationCode, Kind, StoredToken, digest
from deploy.local.idp.users import User
from nearline_client.urls import is_loopback_host

if TYPE_CHECKING:
    from deploy.local.idp.app import Provider

SCOPES = ("nearline", "offline_access")
PUBLIC_OR_SECRET = ["none", "client_secret_basic", "client_secret_post"]
CODE_SECONDS = 60


class Client(ClientMixin):
    """A registered client. A public one may redirect to any port on loopback (RFC 8252, 7.3)."""

    def __init__(self, config: ClientConfig) -> None:
        self.client_id = config.id
        self.config = config
        self._secret = files.secret(config.secret_file) if config.secret_file else None

    def get_client_id(self) -> str:
        return self.client_id

    def get_default_redirect_uri(self) -> None:
        return None

    def get_allowed_scope(self, scope: str | None) -> str:
        asked = scope.split() if scope else SCOPES[:1]
        return " ".join(name for name in asked if name in SCOPES)

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        parts = urlsplit(redirect_uri)
        return parts.scheme == "http" and is_loopback_host(parts.hostname) and not parts.fragment

    def check_client_secret(self, client_secret: str) -> bool:
        return self._secret is not None and secrets.compare_digest(self._secret, client_secret)

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return (method == "none") == (self._secret is None)

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code"

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type in self.config.grants


class AccessTokens(JWTBearerTokenGenerator):
    """RFC 9068 tokens with the user's groups, or random ones for clients of opaque tokens."""

    def __init__(self, provider: Provider) -> None:
        super().__init__(
            provider.config.issuer,
            alg=ALGORITHM,
            refresh_token_generator=lambda **_: secrets.token_urlsafe(32),
            expires_generator=lambda *_: provider.config.access_token_seconds,
        )
        self._provider = provider

    def access_token_generator(
        self, client: Client, grant_type: str, user: User | None, scope: str
    ) -> str:
        if client.config.token_format == "opaque":
            return secrets.token_urlsafe(32)
        return super().access_token_generator(client, grant_type, user, scope)

    def get_jwks(self) -> KeySet:
        # A set, not a bare key: only then does Authlib put `kid` into the header.
        return KeySet([self._provider.keys.signing])

    def get_audiences(self, client: Client, user: User | None, scope: str) -> list[str]:
        return [self._provider.config.audience]

    def get_extra_claims(
        self, client: Client, grant_type: str, user: User | None, scope: str
    ) -> dict[str, Any]:
        return user.claims() if user else {}


class RequiredS256(CodeChallenge):
    """PKCE with S256, refused already at the authorization request when it is missing."""

    SUPPORTED_CODE_CHALLENGE_METHOD: ClassVar = ["S256"]

    def validate_code_challenge(self, grant: Any, redirect_uri: str) -> None:
        data = grant.request.payload.data
        if not data.get("code_challenge") or data.get("code_challenge_method") != "S256":
            raise InvalidRequestError("PKCE is required: send code_challenge with method S256.")
        super().validate_code_challenge(grant, redirect_uri)


class CodeGrant(grants.AuthorizationCodeGrant):
    """Authorization code; a code lives a minute and is used once."""

    TOKEN_ENDPOINT_AUTH_METHODS: ClassVar = PUBLIC_OR_SECRET

    def save_authorization_code(self, code: str, request: Any) -> None:
        data = request.payload.data
        self.server.pending.codes[code] = AuthorizationCode(
            code=code,
            client_id=request.client.client_id,
            redirect_uri=request.payload.redirect_uri,
            scope=request.scope,
            user=request.user,
            code_challenge=data["code_challenge"],
            code_challenge_method=data["code_challenge_method"],
            expires_at=time.time() + CODE_SECONDS,
        )

    def query_authorization_code(self, code: str, client: Client) -> AuthorizationCode | None:
        found = self.server.pending.codes.get(code)
        if found is None or found.client_id != client.client_id or found.expires_at < time.time():
            return None
        return found

    def delete_authorization_code(self, authorization_code: AuthorizationCode) -> None:
        self.server.pending.codes.pop(authorization_code.code, None)

    def authenticate_user(self, authorization_code: AuthorizationCode) -> User:
        return authorization_code.user


class PasswordGrant(grants.ResourceOwnerPasswordCredentialsGrant):
    """User name and password in one request: for scripts and tests of this provider only."""

    TOKEN_ENDPOINT_AUTH_METHODS: ClassVar = PUBLIC_OR_SECRET

    def authenticate_user(self, username: str, password: str) -> User:
        user = self.server.authenticate_user(username, password)
        if user is None:
            raise InvalidGrantError("The user name or the password is wrong.")
        return user


class RefreshGrant(grants.RefreshTokenGrant):
    """Refresh with rotation. A refresh token shown twice was stolen: the whole login ends."""

    TOKEN_ENDPOINT_AUTH_METHODS: ClassVar = PUBLIC_OR_SECRET
    INCLUDE_NEW_REFRESH_TOKEN = True

    def authenticate_refresh_token(self, refresh_token: str) -> StoredToken | None:
        token = self.server.tokens.find(refresh_token)
        if token is None or token.kind != "refresh_token" or token.is_expired():
            return None
        if token.is_revoked():
            self.server.tokens.revoke_family(token.family)
            return None
        return token

    def authenticate_user(self, refresh_token: StoredToken) -> User | None:
        return self.server.users.get(refresh_token.subject)

    def revoke_old_credential(self, refresh_token: StoredToken) -> None:
        self.server.tokens.revoke(refresh_token)


class ServiceGrant(grants.ClientCredentialsGrant):
    TOKEN_ENDPOINT_AUTH_METHODS: ClassVar = ["client_secret_basic", "client_secret_post"]


class DeviceGrant(DeviceCodeGrant):
    """Device flow (RFC 8628): pending until a person answers, slower when polled too fast."""

    TOKEN_ENDPOINT_AUTH_METHODS: ClassVar = PUBLIC_OR_SECRET

    def query_device_credential(self, device_code: str) -> DeviceCredentialDict | None:
        device = self.server.pending.device_by_code(device_code)
        return device.credential if device else None

    def query_user_grant(self, user_code: str) -> tuple[User, bool] | None:
        return self.server.pending.devices[user_code].answer

    def should_slow_down(self, credential: DeviceCredentialDict) -> bool:
        device = self.server.pending.devices[credential["user_code"]]
        previous, device.last_poll = device.last_poll, time.monotonic()
        return device.last_poll - previous < credential["interval"] * 0.9

    def create_token_response(self) -> Any:
        response = super().create_token_response()
        self.server.pending.devices.pop(self.request.credential["user_code"], None)
        return response


class DeviceEndpoint(DeviceAuthorizationEndpoint):
    @property
    def EXPIRES_IN(self) -> int:  # noqa: N802 - the name is Authlib's
        return self.server.config.device_code_seconds

    @property
    def INTERVAL(self) -> int:  # noqa: N802 - the name is Authlib's
        return self.server.config.device_poll_seconds

    def get_verification_uri(self) -> str:
        return f"{self.server.config.issuer}/device"

    def save_device_credential(self, client_id: str, scope: str, data: dict[str, Any]) -> None:
        expires_at = int(time.time()) + data["expires_in"]
        self.server.pending.add_device(
            DeviceCredentialDict(
                data | {"client_id": client_id, "scope": scope, "expires_at": expires_at}
            )
        )


class Introspection(IntrospectionEndpoint):
    """What an access token means, for clients that may ask; others see every token inactive.

    A refresh token is inactive too, so that no resource server takes it for an access token.
    """

    def query_token(self, token: str, token_type_hint: str | None) -> StoredToken | None:
        found = self.server.tokens.find(token)
        return found if found is not None and found.kind == "access_token" else None

    def check_permission(self, token: StoredToken, client: Client, request: Any) -> bool:
        return client.config.may_introspect

    def introspect_token(self, token: StoredToken) -> dict[str, Any]:
        user = self.server.users.get(token.subject)
        return {
            "active": True,
            "iss": self.server.config.issuer,
            "aud": [self.server.config.audience],
            "sub": token.subject,
            "client_id": token.client_id,
            "scope": token.scope,
            "iat": token.issued_at,
            "exp": token.expires_at,
            "token_type": "Bearer",
            **(user.claims() if user else {}),
        }


class Revocation(RevocationEndpoint):
    """Ends a login: revoking one token of it revokes them all."""

    CLIENT_AUTH_METHODS: ClassVar = PUBLIC_OR_SECRET

    def query_token(self, token: str, token_type_hint: str | None) -> StoredToken | None:
        return self.server.tokens.find(token)

    def revoke_token(self, token: StoredToken, request: Any) -> None:
        self.server.tokens.revoke_family(token.family)


def stored_tokens(token: dict[str, Any], request: Any, refresh_seconds: int) -> list[StoredToken]:
    """The rows for one token response; a refresh keeps the family of the token it used."""
    now = int(time.time())
    used = getattr(request, "refresh_token", None)
    family = used.family if isinstance(used, StoredToken) else generate_token(24)
    seconds: dict[Kind, int] = {
        "access_token": token["expires_in"],
        "refresh_token": refresh_seconds,
    }
    return [
        StoredToken(
            digest=digest(token[kind]),
            kind=kind,
            family=family,
            client_id=request.client.client_id,
            subject=request.user.name if request.user else request.client.client_id,
            scope=token.get("scope", ""),
            issued_at=now,
            expires_at=now + lifetime,
        )
        for kind, lifetime in seconds.items()
        if kind in token
    ]
