"""Turns users' requests into what the ledger and the catalog are asked: pure translation."""

from typing import Any

from nearline.catalog.v1 import catalog_pb2 as catalog
from nearline.gateway.v1 import gateway_pb2 as api
from nearline.monitor.v1 import monitor_pb2 as ledger
from nearline.type.v1 import storage_pb2, task_pb2, transaction_pb2
from services.gateway import access, validate
from services.kit import identity as identities
from services.kit.errors import InvalidArgument, ResourceExhausted
from services.kit.identity import Identity, Role


def header_of(request: Any) -> Any:
    """The header of the first message of a list request; InvalidArgument when it is none."""
    if request is None or request.WhichOneof("message") != "header":
        raise InvalidArgument(
            "HEADER_EXPECTED",
            "the first message must be the header",
            violations=[("header", "must be the first message")],
        )
    return request.header


def put_spec(identity: Identity, header: api.PutRequest.Header) -> ledger.TransactionSpec:
    """The transaction of a PUT, its holding still open."""
    access.own_name(identity, header.user)
    validate.label(header.label)
    validate.number(header.holding_id, "holding_id")
    validate.tags(header.tags)
    return _spec(
        identity,
        transaction_pb2.Transaction.PUT,
        header.transaction_id,
        access.own_group(identity, header.group),
        header.job_label,
        task_pb2.PutOptions(),
    )


def open_holding(
    spec: ledger.TransactionSpec, header: api.PutRequest.Header
) -> catalog.OpenHoldingRequest:
    """What a PUT asks of the catalog before it is accepted."""
    return catalog.OpenHoldingRequest(
        transaction_id=spec.id,
        user=spec.identity.user,
        group=spec.group,
        label=header.label,
        holding_id=header.holding_id,
        tags=header.tags,
    )


def put_commit(opened: catalog.OpenHoldingResponse) -> ledger.SubmitRequest.Commit:
    """Accepts a PUT into the opened holding."""
    return ledger.SubmitRequest.Commit(
        chunk_kind=task_pb2.Task.SCAN,
        holding_id=opened.holding.id,
        label=opened.holding.label,
        warnings=opened.warnings,
    )


def get_spec(identity: Identity, header: api.GetRequest.Header) -> ledger.TransactionSpec:
    """The transaction of a GET."""
    target = validate.path(header.target, "target") if header.target else ""
    return _read_spec(
        identity, transaction_pb2.Transaction.GET, header, task_pb2.GetOptions(target=target)
    )


def stage_spec(identity: Identity, header: api.StageRequest.Header) -> ledger.TransactionSpec:
    """The transaction of a STAGE."""
    days = validate.number(header.pin_days, "pin_days", most=validate.MOST_PIN_DAYS)
    return _read_spec(
        identity, transaction_pb2.Transaction.STAGE, header, task_pb2.GetOptions(pin_days=days)
    )


def resolve_commit() -> ledger.SubmitRequest.Commit:
    """Accepts a GET or STAGE."""
    return ledger.SubmitRequest.Commit(chunk_kind=task_pb2.Task.RESOLVE)


def retry(identity: Identity, old: transaction_pb2.Transaction) -> ledger.RetryTransactionRequest:
    """Has what failed in a PUT, GET or STAGE run again, as the caller is now."""
    if old.action == transaction_pb2.Transaction.PUT:
        asked = task_pb2.Task.SCAN
        met = ledger.NewTask(kind=task_pb2.Task.SCAN)
    else:
        asked = task_pb2.Task.RESOLVE
        exact = task_pb2.FilesTask(exact=True)
        met = ledger.NewTask(kind=task_pb2.Task.RESOLVE, payload=exact.SerializeToString())
    return ledger.RetryTransactionRequest(
        id=old.id,
        visibility=access.visibility(identity),
        identity=identities.to_proto(identity),
        asked_kind=asked,
        met_task=met,
    )


def evict_spec(
    identity: Identity, request: api.EvictHoldingRequest, holding: storage_pb2.Holding
) -> ledger.TransactionSpec:
    """The transaction of an eviction of ``holding``."""
    spec = _spec(
        identity,
        transaction_pb2.Transaction.EVICT,
        request.transaction_id,
        holding.group,
        "",
        None,
    )
    spec.holding_id, spec.label = holding.id, holding.label
    return spec


def evict_commit(holding_id: int) -> ledger.SubmitRequest.Commit:
    """Accepts an eviction."""
    task = ledger.NewTask(
        kind=task_pb2.Task.EVICT,
        payload=task_pb2.EvictTask(holding_id=holding_id).SerializeToString(),
    )
    return ledger.SubmitRequest.Commit(tasks=[task])


def list_holdings(
    identity: Identity, request: api.ListHoldingsRequest
) -> catalog.ListHoldingsRequest:
    """Holdings of the caller's groups."""
    return catalog.ListHoldingsRequest(
        selector=_checked_holdings(identity, request.filter),
        descending=request.descending,
        limit=validate.number(request.limit, "limit"),
        cursor=request.cursor,
    )


def list_faults(identity: Identity, request: api.ListFaultsRequest) -> catalog.ListFaultsRequest:
    """Faults among the files of a group, for its MANAGER."""
    group = access.own_group(identity, request.group)
    access.require_role(identity, group, Role.MANAGER, "listing faults")
    return catalog.ListFaultsRequest(
        groups=[group],
        open=request.open,
        limit=validate.number(request.limit, "limit"),
        cursor=request.cursor,
    )


def find_files(identity: Identity, request: api.FindFilesRequest) -> catalog.FindFilesRequest:
    """Files of the caller's groups; a pattern is searched in the whole path."""
    check = validate.pattern if request.regex else validate.path
    return catalog.FindFilesRequest(
        selector=storage_pb2.FileSelector(
            holdings=_checked_holdings(identity, request.filter),
            path=check(request.path, "path") if request.path else "",
            regex=request.regex,
            # A pattern is searched in the whole path, so it matches what is below by itself.
            recursive=not (request.exact or request.regex),
        ),
        descending=request.descending,
        limit=validate.number(request.limit, "limit"),
        cursor=request.cursor,
    )


def update_holding(
    identity: Identity, request: api.UpdateHoldingRequest
) -> catalog.UpdateHoldingRequest:
    """A change of one of the caller's holdings."""
    validate.tags(request.set_tags, "set_tags")
    selector = access.own_holdings(identity, _checked_filter(request.filter))
    return catalog.UpdateHoldingRequest(
        selector=selector,
        new_label=validate.label(request.new_label, "new_label"),
        set_tags=request.set_tags,
        delete_tags=[validate.label(key, "delete_tags") for key in request.delete_tags],
    )


def list_transactions(
    identity: Identity, request: api.ListTransactionsRequest
) -> ledger.ListTransactionsRequest:
    """Transactions of the caller, or of everyone in the groups."""
    user = request.user or ("" if request.all_users else identity.user)
    check = validate.pattern if request.regex else validate.label
    return ledger.ListTransactionsRequest(
        visibility=access.visibility(identity, group=request.group, user=user),
        actions=request.actions,
        states=request.states,
        job_label=check(request.job_label, "job_label"),
        holding_id=validate.number(request.holding_id, "holding_id"),
        label=check(request.label, "label"),
        descending=request.descending,
        limit=validate.number(request.limit, "limit"),
        cursor=request.cursor,
        with_failures=request.with_failures,
        regex=request.regex,
    )


def check_quota(usage: catalog.GetUsageResponse) -> None:
    """ResourceExhausted when the group has no room left; the catalog refuses single files later."""
    full = []
    if usage.quota_bytes and usage.bytes >= usage.quota_bytes:
        full.append(f"{usage.bytes} of {usage.quota_bytes} bytes")
    if usage.quota_files and usage.files >= usage.quota_files:
        full.append(f"{usage.files} of {usage.quota_files} files")
    if full:
        raise ResourceExhausted(
            "OVER_QUOTA",
            f"group {usage.group} has used its quota ({', '.join(full)}); "
            "delete data or ask a manager of the group for a larger quota",
            group=usage.group,
        )


def _read_spec(
    identity: Identity,
    action: transaction_pb2.Transaction.Action.ValueType,
    header: Any,
    options: task_pb2.GetOptions,
) -> ledger.TransactionSpec:
    selector = _checked_holdings(identity, header.filter)
    # A read looks at everything the caller may read unless a user is named: data belongs to groups.
    selector.user = header.filter.user
    options.holdings.CopyFrom(selector)
    options.regex = header.regex
    group = header.filter.group or next(iter(sorted(identity.groups)), "")
    spec = _spec(identity, action, header.transaction_id, group, header.job_label, options)
    spec.holding_id, spec.label = selector.holding_id, selector.label
    return spec


def _spec(
    identity: Identity,
    action: transaction_pb2.Transaction.Action.ValueType,
    transaction_id: str,
    group: str,
    job_label: str,
    options: task_pb2.PutOptions | task_pb2.GetOptions | None,
) -> ledger.TransactionSpec:
    return ledger.TransactionSpec(
        id=validate.transaction_id(transaction_id),
        action=action,
        identity=identities.to_proto(identity),
        group=access.own_group(identity, group),
        job_label=validate.label(job_label, "job_label"),
        options=options.SerializeToString() if options is not None else b"",
    )


def _checked_filter(wanted: api.HoldingFilter) -> api.HoldingFilter:
    check = validate.pattern if wanted.label_regex else validate.label
    check(wanted.label, "filter.label")
    validate.number(wanted.holding_id, "filter.holding_id")
    validate.tags(wanted.tags, "filter.tags")
    if wanted.transaction_id:
        wanted.transaction_id = validate.transaction_id(
            wanted.transaction_id, "filter.transaction_id"
        )
    return wanted


def _checked_holdings(identity: Identity, wanted: api.HoldingFilter) -> storage_pb2.HoldingSelector:
    return access.holdings(identity, _checked_filter(wanted))
