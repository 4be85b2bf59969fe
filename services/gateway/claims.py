"""Which claims make a token good, and who its bearer is. Pure: values in, identity or error out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from joserfc.errors import ExpiredTokenError, InvalidClaimError, JoseError, MissingClaimError
from joserfc.jwt import JWTClaimsRegistry

from services.gateway.token_config import TokenConfig
from services.kit.errors import Unauthenticated
from services.kit.identity import Identity, Role

LOG_IN = "Run `nlds login`, then try again."

Claims = Mapping[str, Any]

# Names travel in gRPC metadata, log lines and to the host's name service.
_NAME = re.compile(r"[^\s\x00-\x1f\x7f]{1,128}")
_MAX_ID = 2**32 - 2


def check_claims(claims: Claims, config: TokenConfig, *, introspected: bool = False) -> None:
    """Check issuer, audience and times; raises Unauthenticated with the reason.

    RFC 9068 makes `iss`, `aud`, `sub`, `exp` and `iat` obligatory in a JWT. An introspection answer
    (RFC 7662) may leave out all but the audience: without that one, a token that the same
    issuer made for another service would be taken.
    """
    needed = ("aud",) if introspected else ("iss", "aud", "sub", "exp", "iat")
    registry = JWTClaimsRegistry(
        leeway=config.leeway_seconds,
        iss={"essential": "iss" in needed, "value": config.issuer},
        aud={"essential": True, "value": config.audience},
        sub={"essential": "sub" in needed},
        exp={"essential": "exp" in needed},
        iat={"essential": "iat" in needed},
    )
    try:
        registry.validate(dict(claims))
    except JoseError as error:
        raise _refusal(error, config) from error


def wrong_issuer(config: TokenConfig) -> Unauthenticated:
    return Unauthenticated(
        "TOKEN_WRONG_ISSUER",
        f"The token comes from another issuer; this service accepts {config.issuer} only. {LOG_IN}",
        issuer=config.issuer,
    )


def _refusal(error: JoseError, config: TokenConfig) -> Unauthenticated:
    if isinstance(error, ExpiredTokenError):
        return Unauthenticated("TOKEN_EXPIRED", f"The token has expired. {LOG_IN}")
    if isinstance(error, MissingClaimError):
        return missing_claim(error.claim)
    claim = error.claim if isinstance(error, InvalidClaimError) else ""
    if claim == "iss":
        return wrong_issuer(config)
    if claim == "aud":
        return Unauthenticated(
            "TOKEN_WRONG_AUDIENCE",
            f"The token is for another service; it must be for {config.audience!r}."
            " Set `audience` in the client's configuration and run `nlds login`.",
            audience=config.audience,
        )
    if claim in ("nbf", "iat"):
        return Unauthenticated(
            "TOKEN_NOT_YET_VALID",
            "The token is not valid yet: the clocks of this service and of the issuer differ by"
            f" more than {config.leeway_seconds} s. Try again soon; if it stays, report it.",
        )
    return bad_claim(claim, "has the wrong type")


def missing_claim(claim: str) -> Unauthenticated:
    return Unauthenticated(
        "TOKEN_MISSING_CLAIM",
        f"The token lacks the claim {claim!r}. It may be an ID token, or the issuer's"
        " configuration for this client is incomplete: ask its operators.",
        claim=claim,
    )


def bad_claim(claim: str, problem: str) -> Unauthenticated:
    return Unauthenticated(
        "TOKEN_BAD_CLAIM",
        f"The claim {claim!r} of the token {problem}: ask the operators of the issuer.",
        claim=claim,
    )


def identity_of(claims: Claims, config: TokenConfig) -> Identity:
    """The user, groups, roles and (where configured) POSIX ids that checked claims stand for.

    A role only raises what a group of `groups_claim` grants: it never adds a group. Raises
    Unauthenticated for claims of a wrong shape, for uid or gid 0, and for a client's own token.
    """
    _refuse_client(claims, config)
    user = claims.get(config.user_claim)
    if user is None:
        raise missing_claim(config.user_claim)
    uid, gid, gids = _posix_ids(claims, config)
    return Identity(
        user=_name(user, config.user_claim),
        groups=_groups(claims, config),
        uid=uid,
        gid=gid,
        gids=gids,
    )


def _refuse_client(claims: Claims, config: TokenConfig) -> None:
    """In the client credentials grant `sub` is the client's id, which may equal a user's name."""
    client = claims.get("client_id", claims.get("azp"))
    if client is not None and claims.get("sub") == client and not config.allow_clients:
        raise Unauthenticated(
            "TOKEN_NOT_OF_A_USER",
            f"The token belongs to a client, not to a user. {LOG_IN}",
        )


def _name(value: object, claim: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value) or not value.isprintable():
        raise bad_claim(claim, "is not a name of 1 to 128 printable characters without blanks")
    return value


def _groups(claims: Claims, config: TokenConfig) -> dict[str, Role]:
    names = claims.get(config.groups_claim, [])
    roles = claims.get(config.roles_claim, {})
    if not isinstance(names, list):
        raise bad_claim(config.groups_claim, "is not a list of names")
    if not isinstance(roles, dict):
        raise bad_claim(config.roles_claim, "is not an object of group and role")
    return {_name(n, config.groups_claim): _role(roles.get(n), config) for n in names}


def _role(value: object, config: TokenConfig) -> Role:
    if value is None:
        return Role.USER
    if not isinstance(value, str) or value not in Role.__members__:
        raise bad_claim(config.roles_claim, f"holds a role that is none of {_ROLE_NAMES}")
    return Role[value]


_ROLE_NAMES = ", ".join(Role.__members__)


def _posix_ids(
    claims: Claims, config: TokenConfig
) -> tuple[int | None, int | None, tuple[int, ...]]:
    """Uid, gid and supplementary gids; none where the host's name service decides."""
    none: tuple[None, None, tuple[int, ...]] = (None, None, ())
    if not config.posix_claims or claims.get("uid") is None:
        return none
    if claims.get("gid") is None:
        raise missing_claim("gid")
    supplementary = claims.get("gids", [])
    if not isinstance(supplementary, Sequence) or isinstance(supplementary, str):
        raise bad_claim("gids", "is not a list of numbers")
    uid, gid = _posix_id(claims["uid"], "uid"), _posix_id(claims["gid"], "gid")
    gids = tuple(_posix_id(value, "gids") for value in supplementary)
    return (uid, gid, gids) if uid >= config.min_uid else none


def _posix_id(value: object, claim: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_ID:
        raise bad_claim(claim, "is not a POSIX id")
    if value == 0:
        raise Unauthenticated(
            "TOKEN_PRIVILEGED_IDS",
            f"The claim {claim!r} of the token is 0; root and its group are never served."
            " Log in as an ordinary user.",
            claim=claim,
        )
    return value
