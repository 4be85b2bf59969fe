"""What the gateway needs to know about the issuer of the tokens it accepts."""

from __future__ import annotations

from pathlib import Path

from nearline_client.urls import is_secure_url
from services.kit.config import Count, Seconds, SecretFile, Section

# Only asymmetric ones: with a shared secret, whoever verifies could also sign.
ASYMMETRIC = frozenset(
    {"ES256", "ES384", "ES512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
    | {"EdDSA", "Ed25519"}
)


class IntrospectionConfig(Section, frozen=True):
    """How to ask the issuer about opaque tokens (RFC 7662)."""

    client_id: str
    client_secret: SecretFile
    url: str | None = None
    """Default: `introspection_endpoint` of the discovery document."""


class TokenConfig(Section, frozen=True):
    """Which tokens are accepted and what their claims mean. Durations are in seconds."""

    issuer: str
    audience: str
    algorithms: tuple[str, ...] = ("ES256", "RS256", "PS256", "EdDSA", "Ed25519")
    types: tuple[str, ...] = ("at+jwt", "application/at+jwt")
    """Accepted `typ` headers, lower case. Empty accepts any, for issuers older than RFC 9068."""
    leeway_seconds: int = 30

    user_claim: str = "sub"
    groups_claim: str = "groups"
    roles_claim: str = "nearline_roles"
    """Object of group name and USER, DEPUTY or MANAGER; a group without a role is USER."""
    posix_claims: bool = False
    """Take `uid`, `gid`, `gids` from the token; otherwise the workers' hosts look the name up."""
    min_uid: int = 1000
    """Ids of a user below this are ignored, and the host's name service decides."""
    allow_clients: bool = False
    """Accept client credentials, whose subject is a client's id. Only where no user can have it."""

    discovery_url: str | None = None
    """Default: `{issuer}/.well-known/openid-configuration`."""
    jwks_url: str | None = None
    """Default: `jwks_uri` of the discovery document."""
    ca_file: Path | None = None
    """PEM bundle for the issuer's TLS certificate; default: the public authorities."""
    introspection: IntrospectionConfig | None = None

    timeout_seconds: Seconds = 5.0
    jwks_ttl_seconds: Seconds = 600.0
    jwks_stale_seconds: Seconds = 86_400.0
    """How long keys stay in use while the issuer cannot be reached."""
    jwks_pause_seconds: Seconds = 10.0
    """Pause between fetches of keys, however many unknown key ids arrive."""
    cache_seconds: Seconds = 60.0
    """How long a verified token is not looked at again (never beyond its expiry)."""
    cache_entries: Count = 10_000
    max_token_bytes: Count = 8_000
    """Longer tokens are refused unread: gRPC metadata ends at 8 KiB anyway."""

    def __post_init__(self) -> None:
        """Raises ValueError (msgspec names the field's path) for settings that would be unsafe."""
        if not self.audience:
            raise ValueError("audience must be set: it is what makes a token one for this service")
        if refused := set(self.algorithms) - ASYMMETRIC:
            raise ValueError(
                f"algorithms {sorted(refused)} are not accepted: take some of {sorted(ASYMMETRIC)}"
            )
        introspection_url = self.introspection.url if self.introspection else None
        for url in (self.issuer, self.discovery_url, self.jwks_url, introspection_url):
            if url is not None and not is_secure_url(url):
                raise ValueError(f"{url!r} must be an https URL (http only on loopback)")
