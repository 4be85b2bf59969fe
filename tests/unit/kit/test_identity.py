"""Identities survive the wire and stay inside the context they were bound in."""

import contextvars

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearline.type.v1 import identity_pb2
from services.kit import identity
from services.kit.errors import InvalidArgument, Unauthenticated
from services.kit.identity import Identity, Role

ids = st.integers(min_value=0, max_value=2**32 - 1)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@st.composite
def identities(draw: st.DrawFn) -> Identity:
    posix = draw(st.none() | st.tuples(ids, ids))
    return Identity(
        user=draw(names),
        groups=draw(st.dictionaries(names, st.sampled_from(Role))),
        uid=posix[0] if posix else None,
        gid=posix[1] if posix else None,
        gids=tuple(draw(st.lists(ids))),
        request_id=draw(st.text("abc123", max_size=8)),
    )


@given(identities())
def test_an_identity_survives_the_wire(sent: Identity) -> None:
    assert identity.decode(identity.encode(sent)) == sent


def test_uid_zero_is_not_absent() -> None:
    got = identity.decode(identity.encode(Identity("root", uid=0, gid=0)))
    assert (got.uid, got.gid) == (0, 0)


def test_unknown_roles_grant_nothing() -> None:
    message = identity_pb2.Identity(user="ann")
    message.groups.add(group="none")
    message.groups.add(group="future", role=99)
    assert identity.from_proto(message).groups == {}


@pytest.mark.parametrize(
    "data",
    [b"\xff\xff", b"", identity_pb2.Identity(user="ann", uid=7).SerializeToString()],
    ids=["garbage", "no user", "uid without gid"],
)
def test_broken_identities_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument, match="IDENTITY_INVALID"):
        identity.decode(data)


def test_a_role_includes_the_lower_ones() -> None:
    assert Role.MANAGER > Role.DEPUTY > Role.USER


def test_no_identity_is_unauthenticated() -> None:
    with pytest.raises(Unauthenticated, match="IDENTITY_MISSING"):
        contextvars.Context().run(identity.require_identity)


def test_acting_as_is_undone() -> None:
    ann = Identity("ann", request_id="r1")
    identity_before, request_before = identity.current_identity(), identity.current_request_id()
    with identity.acting_as(ann):
        assert identity.require_identity() is ann
        assert identity.current_request_id() == "r1"
        assert dict(identity.metadata()) == {
            identity.REQUEST_ID_KEY: "r1",
            identity.IDENTITY_KEY: identity.encode(ann),
        }
        assert identity.metadata(with_identity=False) == ((identity.REQUEST_ID_KEY, "r1"),)
    assert identity.current_identity() is identity_before
    assert identity.current_request_id() == request_before


def test_binding_stays_in_its_context() -> None:
    def inside() -> tuple[str | None, str | None]:
        identity.bind(peer="tape", request_id="r2")
        return identity.current_peer(), identity.current_request_id()

    assert contextvars.copy_context().run(inside) == ("tape", "r2")
    assert identity.current_peer() is None


@pytest.mark.parametrize(
    ("text", "valid"),
    [("a-b.C_9", True), ("", False), ("a" * 65, False), ("a\nb", False), (b"a", False)],
)
def test_request_ids_of_strangers(text: object, valid: bool) -> None:
    assert identity.valid_request_id(text) is valid
    assert identity.valid_request_id(identity.new_request_id())
