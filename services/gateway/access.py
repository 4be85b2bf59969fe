"""Who may do what: pure rules over an identity and a request. Fields of a request only narrow."""

from nearline.gateway.v1 import gateway_pb2 as api
from nearline.monitor.v1 import monitor_pb2 as monitor
from nearline.type.v1 import storage_pb2, transaction_pb2
from services.kit.errors import InvalidArgument, PermissionDenied
from services.kit.identity import Identity, Role


def own_name(identity: Identity, wanted: str) -> str:
    """The caller's name; PermissionDenied when ``wanted`` is somebody else's."""
    if wanted and wanted != identity.user:
        raise PermissionDenied(
            "NOT_YOU",
            f"you are {identity.user}, not {wanted}; leave the user out, or log in as {wanted}",
            user=wanted,
        )
    return identity.user


def own_group(identity: Identity, wanted: str) -> str:
    """The group to write into: ``wanted``, or the only one the caller has.

    PermissionDenied when the caller is not in it, InvalidArgument when it has to be named.
    """
    if wanted:
        return _member(identity, wanted)
    if not identity.groups:
        raise _no_group(identity)
    if len(identity.groups) > 1:
        names = ", ".join(sorted(identity.groups))
        raise InvalidArgument(
            "GROUP_NEEDED",
            f"you are in several groups ({names}); name one with --group",
            violations=[("group", f"must be one of: {names}")],
        )
    return next(iter(identity.groups))


def readable_groups(identity: Identity, wanted: str) -> list[str]:
    """Groups to read from: ``wanted`` alone, or all of the caller's."""
    return [_member(identity, wanted)] if wanted else sorted(identity.groups)


def require_role(identity: Identity, group: str, role: Role, what: str) -> None:
    """PermissionDenied unless the caller has at least ``role`` in ``group``."""
    if (identity.role_in(group) or 0) < role:
        raise PermissionDenied(
            "ROLE_NEEDED",
            f"{what} needs the role {role.name} in group {group}; ask a manager of the group",
            group=group,
            role=role.name,
        )


def holdings(identity: Identity, wanted: api.HoldingFilter) -> storage_pb2.HoldingSelector:
    """What the catalog may look at for this caller. All that is set must match."""
    return storage_pb2.HoldingSelector(
        groups=readable_groups(identity, wanted.group),
        user=wanted.user or ("" if wanted.all_users else identity.user),
        label=wanted.label,
        label_regex=wanted.label_regex,
        holding_id=wanted.holding_id,
        tags=wanted.tags,
        transaction_id=wanted.transaction_id,
    )


def own_holdings(identity: Identity, wanted: api.HoldingFilter) -> storage_pb2.HoldingSelector:
    """As :func:`holdings` for a change: own ones, others' only for a MANAGER of the named group."""
    if wanted.all_users or wanted.user not in ("", identity.user):
        group = own_group(identity, wanted.group)
        require_role(identity, group, Role.MANAGER, "changing holdings of others")
    return holdings(identity, wanted)


def visibility(identity: Identity, *, group: str = "", user: str = "") -> monitor.Visibility:
    """Which transactions the caller may see: those of the groups.

    PermissionDenied for a caller without any: to the ledger no group means every group.
    """
    groups = readable_groups(identity, group)
    if not groups:
        raise _no_group(identity)
    return monitor.Visibility(groups=groups, user=user)


def may_change(identity: Identity, transaction: transaction_pb2.Transaction) -> None:
    """PermissionDenied unless the caller may stop or repeat this transaction."""
    if transaction.user != identity.user:
        require_role(identity, transaction.group, Role.DEPUTY, "changing requests of others")


def own_transaction(identity: Identity, transaction: transaction_pb2.Transaction) -> None:
    """PermissionDenied for another's: workers would act as that user, whose rights may be less."""
    if transaction.user != identity.user:
        raise PermissionDenied(
            "NOT_YOURS",
            f"only {transaction.user or 'the store'} can have this request run again; "
            "make a request of your own",
        )


def managed(identity: Identity, wanted: str) -> monitor.Visibility:
    """What an operator sees: the groups, or ``wanted`` alone, of which the caller is MANAGER."""
    groups = [g for g in readable_groups(identity, wanted) if identity.role_in(g) == Role.MANAGER]
    if not groups:
        raise PermissionDenied(
            "ROLE_NEEDED",
            "listing parked tasks needs the role MANAGER in a group; ask a manager of yours",
            role=Role.MANAGER.name,
        )
    return monitor.Visibility(groups=groups)


def _member(identity: Identity, group: str) -> str:
    if group not in identity.groups:
        raise PermissionDenied(
            "NOT_A_MEMBER",
            f"{identity.user} is not in group {group}; your token names: "
            f"{', '.join(sorted(identity.groups)) or 'none'}",
            group=group,
        )
    return group


def _no_group(identity: Identity) -> PermissionDenied:
    return PermissionDenied(
        "NO_GROUP", f"{identity.user} is in no group; ask for membership of a group workspace"
    )
