"""Who a request is made for, who called, and how both travel between services.

The gateway derives an :class:`Identity` from a validated token and the mesh passes it on in the
metadata key :data:`IDENTITY_KEY`, which only the peer :data:`GATEWAY` may set. The server binds
what came along to the handler's context, where :func:`current_identity` and its like read it.
"""

import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import IntEnum

from google.protobuf.message import DecodeError

from nearline.type.v1 import identity_pb2
from services.kit.errors import InvalidArgument, Unauthenticated

GATEWAY = "gateway"
"""Common name of the only peer that may speak for users."""
IDENTITY_KEY = "nearline-identity-bin"
REQUEST_ID_KEY = "nearline-request-id"

Metadata = tuple[tuple[str, str | bytes], ...]

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Role(IntEnum):
    """What a member may do in a group; a higher role includes the lower ones."""

    USER = identity_pb2.Identity.USER
    DEPUTY = identity_pb2.Identity.DEPUTY
    MANAGER = identity_pb2.Identity.MANAGER


_ROLES = frozenset(role.value for role in Role)


@dataclass(frozen=True, slots=True)
class Identity:
    """A user, the role in each group, and POSIX ids where the token claims them.

    ``uid`` and ``gid`` are both set or both None; ``gids`` (supplementary) counts only with them.
    ``request_id`` is that of the request that brought the identity in, for logs of later work.
    """

    user: str
    groups: Mapping[str, Role] = field(default_factory=dict)
    uid: int | None = None
    gid: int | None = None
    gids: tuple[int, ...] = ()
    request_id: str = ""

    def __post_init__(self) -> None:
        if not self.user:
            raise ValueError("an identity needs a user name")
        if (self.uid is None) != (self.gid is None):
            raise ValueError(f"identity of {self.user!r}: uid and gid come together or not at all")

    def role_in(self, group: str) -> Role | None:
        """The role in ``group``, None for those who are not in it."""
        return self.groups.get(group)


_identity: ContextVar[Identity | None] = ContextVar("identity", default=None)
_peer: ContextVar[str | None] = ContextVar("peer", default=None)
_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


def current_identity() -> Identity | None:
    """The user the running code works for, None for the system itself."""
    return _identity.get()


def require_identity() -> Identity:
    """As :func:`current_identity`, but Unauthenticated when there is none."""
    identity = _identity.get()
    if identity is None:
        raise Unauthenticated(
            "IDENTITY_MISSING", "this call is made for a user; send it through the gateway"
        )
    return identity


def current_peer() -> str | None:
    """Common name of the mesh member that called, None outside of a mesh call."""
    return _peer.get()


def current_request_id() -> str | None:
    """Id that ties the log lines of one request together, None outside of a request."""
    return _request_id.get()


def bind(
    *, identity: Identity | None = None, peer: str | None = None, request_id: str | None = None
) -> None:
    """Set what is given for the rest of the current context (an RPC handler has its own)."""
    if identity is not None:
        _identity.set(identity)
    if peer is not None:
        _peer.set(peer)
    if request_id is not None:
        _request_id.set(request_id)


@contextmanager
def acting_as(identity: Identity | None) -> Iterator[None]:
    """Work for ``identity`` inside the block, under the request id it came with.

    For workers, which get identities out of the ledger; None is the system itself.
    """
    before = _identity.set(identity)
    request = _request_id.set((identity and identity.request_id) or _request_id.get())
    try:
        yield
    finally:
        _request_id.reset(request)
        _identity.reset(before)


def new_request_id() -> str:
    """A request id that nobody has used."""
    return uuid.uuid4().hex


def valid_request_id(text: object) -> bool:
    """Whether a caller's request id may be taken over and logged."""
    return isinstance(text, str) and _REQUEST_ID.fullmatch(text) is not None


def metadata(*, with_identity: bool = True) -> Metadata:
    """Metadata that passes the current request id, and the identity if wanted, to the next service.

    Channels of kit add it by themselves; this is for calls on other channels.
    """
    request_id, identity = _request_id.get(), _identity.get()
    pairs: list[tuple[str, str | bytes]] = []
    if request_id:
        pairs.append((REQUEST_ID_KEY, request_id))
    if identity is not None and with_identity:
        pairs.append((IDENTITY_KEY, encode(identity)))
    return tuple(pairs)


def to_proto(identity: Identity) -> identity_pb2.Identity:
    """``identity`` as the message that ledgers keep and metadata carries."""
    message = identity_pb2.Identity(
        user=identity.user,
        gids=identity.gids,
        uid=identity.uid,
        gid=identity.gid,
        request_id=identity.request_id,
    )
    for group, role in sorted(identity.groups.items()):
        message.groups.add(group=group, role=identity_pb2.Identity.Role.ValueType(role))
    return message


def from_proto(message: identity_pb2.Identity) -> Identity:
    """Read a message of :func:`to_proto`; InvalidArgument when it says no user or half the ids.

    Roles that this version does not know grant nothing: their groups are left out.
    """
    try:
        return Identity(
            user=message.user,
            groups={g.group: Role(g.role) for g in message.groups if g.role in _ROLES},
            uid=message.uid if message.HasField("uid") else None,
            gid=message.gid if message.HasField("gid") else None,
            gids=tuple(message.gids),
            request_id=message.request_id,
        )
    except ValueError as error:
        raise InvalidArgument("IDENTITY_INVALID", f"{error}; correct the sender") from error


def encode(identity: Identity) -> bytes:
    """The value of :data:`IDENTITY_KEY`."""
    return to_proto(identity).SerializeToString()


def decode(data: bytes) -> Identity:
    """Read a value of :data:`IDENTITY_KEY`; InvalidArgument when it is broken."""
    try:
        message = identity_pb2.Identity.FromString(data)
    except DecodeError as error:
        raise InvalidArgument(
            "IDENTITY_INVALID",
            f"{IDENTITY_KEY} does not hold a nearline.type.v1.Identity; correct the sender",
        ) from error
    return from_proto(message)
