"""The synchronous Python API: one `Client` per gateway, safe to share between threads."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack

from nearline.catalog.v1 import catalog_pb2 as catalog
from nearline.gateway.v1 import gateway_pb2 as api
from nearline.gateway.v1.gateway_pb2_grpc import GatewayServiceStub
from nearline.monitor.v1.monitor_pb2 import ParkedTask
from nearline.type.v1.identity_pb2 import Identity
from nearline.type.v1.storage_pb2 import File, Holding
from nearline.type.v1.task_pb2 import Task
from nearline.type.v1.transaction_pb2 import Failure, Transaction
from nearline_client import paths as naming
from nearline_client.calls import Busy, Caller, FixedToken, Notice, Timing, TokenSource
from nearline_client.channel import open_channel
from nearline_client.config import ClientConfig, load_config
from nearline_client.errors import ServiceError
from nearline_client.paths import AnyPath
from nearline_client.states import is_final
from nearline_client.submit import Submission


class Where(TypedDict, total=False):
    """Which holdings to look in; all that is given must match.

    `user` defaults to the caller, and with `all_users` to everybody in the caller's groups.
    `group` defaults to that of the configuration, else any of the caller's. `transaction_id` is
    that of the PUT that stored the files.
    """

    user: str
    group: str
    all_users: bool
    label: str
    label_regex: bool
    holding_id: int
    tags: Mapping[str, str]
    transaction_id: str


class Client:
    """Requests to the store. Every method raises `ServiceError` when it is refused or fails."""

    def __init__(
        self,
        config: ClientConfig,
        tokens: TokenSource,
        *,
        timing: Timing | None = None,
        on_busy: Busy | None = None,
    ) -> None:
        """Does not connect. Raises ConfigError for a URL or CA file that cannot be used.

        `on_busy` is told when the service has no room for a request, which is made again when the
        service says.
        """
        self.config = config
        self._timing = timing or Timing()
        self._channel = open_channel(config.url, config.ca_file)
        self._stub = GatewayServiceStub(self._channel)
        self._caller = Caller(config.url, tokens, self._timing, on_busy)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; iterators that are still in use end with an error."""
        self._channel.close()

    def put(
        self,
        paths: Iterable[AnyPath],
        *,
        label: str = "",
        holding_id: int = 0,
        tags: Mapping[str, str] | None = None,
        group: str = "",
        user: str = "",
        job_label: str = "",
        transaction_id: str | None = None,
    ) -> Transaction:
        """Store files and directories; returns the accepted transaction, see `wait`.

        Without `label` and `holding_id` a new holding is made. A repeat with the same
        `transaction_id` (a UUID) is the same request. Paths may be any iterable: memory holds a
        few thousand of them. Raises PathError for a path that cannot exist.
        """
        header = api.PutRequest.Header(
            transaction_id=_request_id(transaction_id),
            group=group or self.config.group or "",
            user=user or self.config.user or "",
            label=label,
            holding_id=holding_id,
            tags=tags,
            job_label=job_label,
        )
        return self._submit(self._stub.Put, api.PutRequest(header=header), paths)

    def get(
        self,
        paths: Iterable[AnyPath],
        target: AnyPath | None = None,
        *,
        regex: bool = False,
        job_label: str = "",
        request_id: str | None = None,
        **where: Unpack[Where],
    ) -> Transaction:
        """Bring files back: to their original paths, or all of these below `target`.

        Without a holding the newest version of each path is meant. With `regex` the paths are
        regular expressions. `request_id` is the new transaction's own id (a UUID).
        """
        header = api.GetRequest.Header(
            transaction_id=_request_id(request_id),
            filter=self._filter(where),
            target="" if target is None else naming.absolute(target),
            regex=regex,
            job_label=job_label,
        )
        return self._submit(self._stub.Get, api.GetRequest(header=header), paths, regex=regex)

    def stage(
        self,
        paths: Iterable[AnyPath],
        *,
        pin_days: int = 0,
        regex: bool = False,
        job_label: str = "",
        request_id: str | None = None,
        **where: Unpack[Where],
    ) -> Transaction:
        """Recall files from tape to the cache, and keep them there for `pin_days`."""
        header = api.StageRequest.Header(
            transaction_id=_request_id(request_id),
            filter=self._filter(where),
            pin_days=pin_days,
            regex=regex,
            job_label=job_label,
        )
        return self._submit(self._stub.Stage, api.StageRequest(header=header), paths, regex=regex)

    def delete(
        self,
        paths: Iterable[AnyPath],
        *,
        regex: bool = False,
        job_label: str = "",
        request_id: str | None = None,
        **where: Unpack[Where],
    ) -> Transaction:
        """Delete stored files."""
        header = api.DeleteRequest.Header(
            transaction_id=_request_id(request_id),
            filter=self._filter(where),
            regex=regex,
            job_label=job_label,
        )
        request = api.DeleteRequest(header=header)
        return self._submit(self._stub.Delete, request, paths, regex=regex)

    def undelete(
        self,
        paths: Iterable[AnyPath],
        *,
        deleted_by: str = "",
        job_label: str = "",
        request_id: str | None = None,
        **where: Unpack[Where],
    ) -> Transaction:
        """Take back a deletion within its grace period, of any or of one DELETE transaction."""
        header = api.UndeleteRequest.Header(
            transaction_id=_request_id(request_id),
            filter=self._filter(where),
            deleted_by=deleted_by,
            job_label=job_label,
        )
        return self._submit(self._stub.Undelete, api.UndeleteRequest(header=header), paths)

    def evict(self, holding_id: int, *, request_id: str | None = None) -> Transaction:
        """Drop the cache copies of a holding that are safe on tape; for a MANAGER of its group."""
        request = api.EvictHoldingRequest(
            transaction_id=_request_id(request_id), holding_id=holding_id
        )
        return self._caller.unary(self._stub.EvictHolding, request).transaction

    def find(
        self,
        path: AnyPath | None = None,
        *,
        regex: bool = False,
        exact: bool = False,
        descending: bool = False,
        limit: int = 0,
        **where: Unpack[Where],
    ) -> Iterator[File]:
        """Stored files, oldest first: those at and below `path`, or all.

        With `exact` only `path` itself, with `regex` those whose path matches it anywhere.
        `File.path` is in wire form, which every method here takes; `names.to_os` gives the name.
        """
        request = api.FindFilesRequest(
            filter=self._filter(where),
            path="" if path is None else _path_or_pattern(path, regex),
            regex=regex,
            exact=exact,
            descending=descending,
            limit=limit,
        )
        for answer in self._caller.stream(
            self._stub.FindFiles, request, lambda q, a: _page(q, a.cursor, len(a.files))
        ):
            yield from answer.files

    def list(
        self, *, descending: bool = False, limit: int = 0, **where: Unpack[Where]
    ) -> Iterator[Holding]:
        """Holdings, oldest first."""
        request = api.ListHoldingsRequest(
            filter=self._filter(where), descending=descending, limit=limit
        )
        for answer in self._caller.stream(
            self._stub.ListHoldings, request, lambda q, a: _page(q, a.cursor, len(a.holdings))
        ):
            yield from answer.holdings

    def stat(
        self,
        *,
        user: str = "",
        group: str = "",
        all_users: bool = False,
        actions: Iterable[Transaction.Action.ValueType] = (),
        states: Iterable[Transaction.State.ValueType] = (),
        job_label: str = "",
        holding_id: int = 0,
        label: str = "",
        regex: bool = False,
        descending: bool = False,
        limit: int = 0,
        failures: bool = False,
    ) -> Iterator[Transaction]:
        """Transactions, oldest first; with `failures` also the first 100 failed files of each."""
        request = api.ListTransactionsRequest(
            user=user,
            group=group or self.config.group or "",
            all_users=all_users,
            actions=actions,
            states=states,
            job_label=job_label,
            holding_id=holding_id,
            label=label,
            regex=regex,
            descending=descending,
            limit=limit,
            with_failures=failures,
        )
        for answer in self._caller.stream(
            self._stub.ListTransactions,
            request,
            lambda q, a: _page(q, a.cursor, len(a.transactions)),
        ):
            yield from answer.transactions

    def transaction(self, id: str, *, failures: bool = True) -> Transaction:
        """One transaction, with its first 100 failed files."""
        request = api.GetTransactionRequest(id=id, with_failures=failures)
        return self._caller.unary(self._stub.GetTransaction, request).transaction

    def failures(self, id: str) -> Iterator[Failure]:
        """All failed files of a transaction."""
        for answer in self._caller.stream(
            self._stub.ListFailures,
            api.ListFailuresRequest(id=id),
            lambda q, a: _page(q, a.cursor),
        ):
            yield from answer.failures

    def tasks(self, id: str) -> Iterator[Task]:
        """The pieces of work of a transaction."""
        for answer in self._caller.stream(
            self._stub.ListTasks, api.ListTasksRequest(id=id), _after_last_task
        ):
            yield from answer.tasks

    def watch(self, id: str, *, on_trouble: Notice | None = None) -> Iterator[Transaction]:
        """The transaction now and at every change; the last one has a final state.

        `on_trouble` is told why the connection is lost; it is made again by itself.
        """
        return self._watch(id, on_trouble, lambda: self._timing.stream_deadline)

    def wait(self, id: str, timeout: float | None = None) -> Transaction:
        """The transaction in its final state. Raises TimeoutError after `timeout` seconds."""
        clock = _Countdown(id, timeout, self._timing.stream_deadline)
        try:
            *_, last = self._watch(id, None, clock)
        except ServiceError as error:
            if error.code == "DEADLINE_EXCEEDED":
                clock()
            raise
        return last

    def update_holding(
        self,
        *,
        new_label: str = "",
        set_tags: Mapping[str, str] | None = None,
        delete_tags: Iterable[str] = (),
        **where: Unpack[Where],
    ) -> Holding:
        """Change label and tags of the one holding that matches; returns it as it is now."""
        request = api.UpdateHoldingRequest(
            filter=self._filter(where),
            new_label=new_label,
            set_tags=set_tags,
            delete_tags=delete_tags,
        )
        return self._caller.unary(self._stub.UpdateHolding, request).holding

    def cancel(self, id: str) -> Transaction:
        """Stop a transaction; one that has ended is left as it is."""
        request = api.CancelTransactionRequest(id=id)
        return self._caller.unary(self._stub.CancelTransaction, request).transaction

    def retry(self, id: str) -> Transaction:
        """The transaction that runs again what failed in transaction `id`; the same at a repeat."""
        request = api.RetryTransactionRequest(id=id)
        return self._caller.unary(self._stub.RetryTransaction, request).transaction

    def usage(self, group: str = "") -> Iterator[catalog.GetUsageResponse]:
        """Files and bytes against the quota, of one or of all of the caller's groups."""
        answers = self._caller.collect(self._stub.GetUsage, api.GetUsageRequest(group=group))
        return (answer.usage for answer in answers)

    def set_quota(self, group: str, *, quota_bytes: int = 0, quota_files: int = 0) -> None:
        """Set the quota of a group, 0 for no bound; for its MANAGER."""
        request = api.SetQuotaRequest(group=group, quota_bytes=quota_bytes, quota_files=quota_files)
        self._caller.unary(self._stub.SetQuota, request)

    def system(self) -> api.GetSystemResponse:
        """Health of the services and their workers."""
        return self._caller.unary(self._stub.GetSystem, api.GetSystemRequest())

    def parked(self, group: str = "") -> Iterator[ParkedTask]:
        """Tasks that were given up within the last week, newest first; for a MANAGER."""
        for answer in self._caller.stream(
            self._stub.ListParkedTasks, api.ListParkedTasksRequest(group=group), _before_last_task
        ):
            yield from answer.tasks

    def faults(self, group: str = "", *, open: bool = False) -> Iterator[catalog.Fault]:
        """Copies of a group's files that were found bad; only unrepaired ones if ``open``.

        For a MANAGER of the group, which may be left out by a user of one group.
        """
        request = api.ListFaultsRequest(group=group, open=open)
        for answer in self._caller.stream(self._stub.ListFaults, request, _behind_last_fault):
            yield from answer.faults

    def identity(self) -> Identity:
        """User, groups and roles of the caller, as the service reads the token."""
        return self._caller.unary(self._stub.GetIdentity, api.GetIdentityRequest()).identity

    def _submit(
        self, method: Any, header: Any, paths: Iterable[AnyPath], *, regex: bool = False
    ) -> Transaction:
        if isinstance(paths, (str, bytes, os.PathLike)):
            paths = [paths]
        wire = map(naming.pattern, paths) if regex else naming.absolutes(paths)
        return Submission(self._caller, method, header, wire).run()

    def _watch(
        self, id: str, notice: Notice | None, timeout: Callable[[], float]
    ) -> Iterator[Transaction]:
        attempts = self._caller.attempts(self._timing.watching, notice)
        last: Transaction | None = None
        while last is None or not is_final(last.state):
            for answer in self._caller.stream(
                self._stub.WatchTransaction,
                api.WatchTransactionRequest(id=id),
                lambda _, answer: not is_final(answer.transaction.state),
                attempts=attempts,
                timeout=timeout,
            ):
                if answer.transaction != last:
                    last = answer.transaction
                    yield last
            if last is None or not is_final(last.state):
                # The service shuts down in order.
                attempts.recover(
                    ServiceError("UNAVAILABLE", "WATCH_ENDED", "the service ended the watch")
                )

    def _filter(self, where: Where) -> api.HoldingFilter:
        group = where.get("group") or self.config.group or ""
        return api.HoldingFilter(**where | {"group": group})


class _Countdown:
    """The deadline of the next attempt of a wait."""

    def __init__(self, id: str, timeout: float | None, most: float) -> None:
        self._id = id
        self._most = most
        self._end = None if timeout is None else time.monotonic() + timeout

    def __call__(self) -> float:
        """Seconds for the next attempt. Raises TimeoutError when the time is over."""
        if self._end is None:
            return self._most
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"transaction {self._id} did not end in time; it goes on")
        return min(left, self._most)


def connect(
    url: str | None = None,
    token: str | None = None,
    ca: str | os.PathLike[str] | None = None,
    config: ClientConfig | str | os.PathLike[str] | None = None,
    *,
    timing: Timing | None = None,
    on_busy: Busy | None = None,
) -> Client:
    """A client of the configured gateway; use it in a `with` statement.

    `config` is a configuration or its file, by default `$NEARLINE_CONFIG` or
    `~/.config/nearline/config.toml`; `url` and `ca` replace what it says. Without `token` that of
    the environment (`NEARLINE_TOKEN`) or of the login is used, and renewed by itself.
    `on_busy` is as in `Client`. Does not connect yet. Raises ConfigError.
    """
    file = Path(config) if isinstance(config, (str, os.PathLike)) else None
    if not isinstance(config, ClientConfig):
        environ = os.environ if url is None else {**os.environ, "NEARLINE_URL": url}
        config = load_config(file, environ)
    if url is not None:
        config = replace(config, url=url)
    if ca is not None:
        config = replace(config, ca_file=Path(ca))
    tokens = _token_source(config, token, file)
    return Client(config, tokens, timing=timing, on_busy=on_busy)


def _token_source(config: ClientConfig, token: str | None, file: Path | None) -> TokenSource:
    if token is not None:
        return FixedToken(token)
    # Logging in needs an HTTP client; a given token does not.
    from nearline_client.auth import Credentials

    return Credentials(config, config_file=file)


def _request_id(id: str | None) -> str:
    """The id of a request; checked here because a wrong one is the caller's to mend."""
    try:
        return str(uuid.UUID(id) if id else uuid.uuid4())
    except ValueError:
        raise ServiceError(
            "INVALID_ARGUMENT", "NOT_A_UUID", f"{id!r} is not a UUID; make one for each request"
        ) from None


def _path_or_pattern(path: AnyPath, regex: bool) -> str:
    return naming.pattern(path) if regex else naming.absolute(path)


def _page(request: Any, cursor: str, count: int = 0) -> bool:
    """Make the request go on behind a page of `count` items; False when the limit is reached."""
    request.cursor = cursor
    if count and request.limit:
        if count >= request.limit:
            return False
        request.limit -= count
    return True


def _behind_last_fault(request: api.ListFaultsRequest, answer: api.ListFaultsResponse) -> bool:
    request.cursor = answer.cursor
    return True


def _before_last_task(
    request: api.ListParkedTasksRequest, answer: api.ListParkedTasksResponse
) -> bool:
    if answer.tasks:
        request.before = answer.tasks[-1].task.id
    return True


def _after_last_task(request: api.ListTasksRequest, answer: api.ListTasksResponse) -> bool:
    if answer.tasks:
        request.after = answer.tasks[-1].id
    return True
