"""How holdings, files and transactions look to people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from nearline_client.cli.render import human_size, local_time, print_fields, print_table

if TYPE_CHECKING:
    from nearline.catalog.v1.catalog_pb2 import GetUsageResponse
    from nearline.gateway.v1.gateway_pb2 import GetSystemResponse
    from nearline.monitor.v1.monitor_pb2 import ParkedTask, Worker
    from nearline.type.v1.storage_pb2 import File, Holding, Location
    from nearline.type.v1.task_pb2 import Task
    from nearline.type.v1.transaction_pb2 import Failure, Transaction

# Numbers of the contract: `Attributes.Type`, `Blob.Tier` and `Blob.State`.
_TYPES = {1: "-", 2: "d", 3: "l"}
_CACHE = 1
_SAFE, _LOST = 4, 7


def show_holdings(holdings: Iterable[Holding]) -> None:
    """A table with a line for each."""
    print_table(
        (">ID", "LABEL", "USER", "GROUP", ">FILES", ">SIZE", "CREATED", "TAGS"),
        (
            (
                str(holding.id),
                holding.label,
                holding.user,
                holding.group,
                str(holding.files),
                human_size(holding.bytes),
                local_time(holding.created_at),
                ", ".join(f"{key}:{value}" for key, value in sorted(holding.tags.items())),
            )
            for holding in holdings
        ),
        "no holding matches",
    )


def show_files(files: Iterable[File]) -> None:
    """A table with a line for each."""
    print_table(
        ("MODE", ">SIZE", "MODIFIED", ">HOLDING", "LABEL", "WHERE", "PATH"),
        (
            (
                f"{_TYPES.get(file.type, '?')}{file.mode:04o}",
                human_size(file.size),
                local_time(file.mtime),
                str(file.holding_id),
                file.label,
                ", ".join(map(_location, file.locations)),
                f"{file.path} -> {file.link_target}" if file.link_target else file.path,
            )
            for file in files
        ),
        "no file matches",
    )


def show_transactions(transactions: Iterable[Transaction]) -> None:
    """A table with a line for each."""
    print_table(
        ("ID", "ACTION", "STATE", "LABEL", "JOB", ">FILES", ">FAILED", ">SIZE", "CREATED"),
        (
            (
                each.id,
                action_name(each),
                state_name(each),
                each.label,
                each.job_label,
                f"{each.files_done}/{each.files_total}",
                str(each.files_failed),
                human_size(each.bytes_total),
                local_time(each.created_at),
            )
            for each in transactions
        ),
        "no transaction matches",
    )


def show_transaction(each: Transaction) -> None:
    """Everything about one transaction."""
    print_fields(_transaction_fields(each))
    if each.failures:
        show_failures(each.failures)
    if each.files_failed > len(each.failures) > 0:
        print_fields([("and more:", f"`nlds stat -E {each.id}` shows all {each.files_failed}")])


def show_failures(failures: Iterable[Failure]) -> None:
    """A table of failed files."""
    print_table(
        ("FAILED", "PATH", "REASON"),
        ((each.code, each.path, each.reason) for each in failures),
        "no file failed",
    )


def show_tasks(tasks: Iterable[Task]) -> None:
    """A table of the pieces of work of a transaction."""
    print_table(
        (">ID", "KIND", "STATE", ">ATTEMPT", ">FILES", ">FAILED", ">SIZE", "WORKER", "NOTE"),
        (
            (
                str(task.id),
                _name(task.Kind, task.kind),
                _name(task.State, task.state),
                str(task.attempt),
                str(task.files_done),
                str(task.files_failed),
                human_size(task.bytes_done),
                task.worker,
                task.note,
            )
            for task in tasks
        ),
        "the transaction has no tasks",
    )


def show_parked(parked: Iterable[ParkedTask]) -> None:
    """A table of tasks that were given up."""
    print_table(
        (">ID", "KIND", "ENDED", "USER", "GROUP", "TRANSACTION", ">FILES", "CODE", "WORKER", "WHY"),
        (
            (
                str(each.task.id),
                _name(each.task.Kind, each.task.kind),
                local_time(each.ended_at),
                each.user,
                each.group,
                each.task.transaction_id,
                str(each.task.files_failed),
                each.code,
                each.task.worker,
                each.task.note,
            )
            for each in parked
        ),
        "no task was given up within the last week",
    )


def show_usage(usages: Iterable[GetUsageResponse]) -> None:
    """A table with a line for each group."""
    print_table(
        (
            "GROUP",
            ">FILES",
            ">QUOTA",
            ">SIZE",
            ">QUOTA",
            ">IN CACHE",
            ">FILES",
            ">ON TAPE",
            ">FILES",
        ),
        (
            (
                usage.group,
                str(usage.files),
                _of(usage.files, usage.quota_files, str),
                human_size(usage.bytes),
                _of(usage.bytes, usage.quota_bytes, human_size),
                human_size(usage.cache_bytes),
                str(usage.cache_files),
                human_size(usage.tape_bytes),
                str(usage.tape_files),
            )
            for usage in usages
        ),
        "nothing is stored in your groups",
    )


def show_system(system: GetSystemResponse) -> None:
    """The services and their workers."""
    print_table(
        ("SERVICE", "HEALTH", ">WORKERS", ">BUSY", "TROUBLE"),
        (
            (
                service.name,
                _name(system.Health, service.health),
                str(sum(worker.connected for worker in service.workers) or ""),
                _busy(service.workers),
                service.trouble,
            )
            for service in system.services
        ),
        "the service names no parts",
    )
    print_fields(
        [
            ("all", _name(system.Health, system.health)),
            (
                "tasks",
                f"{system.tasks_ready} ready, {system.tasks_leased} running,"
                f" {system.tasks_delayed} waiting"
                + (f", {system.tasks_parked} given up" if system.tasks_parked else ""),
            ),
            *(
                (f"worker {worker.id}", worker.trouble or "connection lost")
                for service in system.services
                for worker in service.workers
                # What a service says of itself is often what its workers say.
                if not worker.connected or worker.trouble not in service.trouble
            ),
        ]
    )


def action_name(each: Transaction) -> str:
    """PUT, GET, …"""
    return _name(each.Action, each.action)


def state_name(each: Transaction) -> str:
    """QUEUED, COMPLETE, …"""
    return _name(each.State, each.state)


def progress_line(each: Transaction) -> str:
    """State and counts in one line."""
    parts = [f"{state_name(each)} {each.files_done}/{each.files_total} files"]
    if each.bytes_total:
        parts.append(f"{human_size(each.bytes_done)}/{human_size(each.bytes_total)}")
    if each.files_failed:
        parts.append(f"{each.files_failed} failed")
    if each.waiting_for:
        parts.append(f"waiting: {each.waiting_for}")
    return ", ".join(parts)


def _transaction_fields(each: Transaction) -> Iterator[tuple[str, str]]:
    yield "transaction", each.id
    yield "action", action_name(each)
    yield "state", state_name(each)
    yield "user", f"{each.user or 'system'}, group {each.group}"
    yield "retry of", each.retry_of
    yield "job label", each.job_label
    yield "label", each.label
    yield "holding", str(each.holding_id or "")
    yield "files", f"{each.files_done} of {each.files_total} done, {each.files_failed} failed"
    yield "bytes", f"{human_size(each.bytes_done)} of {human_size(each.bytes_total)}"
    yield "created", local_time(each.created_at)
    yield "updated", local_time(each.updated_at)
    if each.HasField("finished_at"):
        yield "finished", local_time(each.finished_at)
    yield "waiting for", each.waiting_for
    for warning in each.warnings:
        yield "warning", warning


def _location(location: Location) -> str:
    tier = "cache" if location.tier == _CACHE else "tape"
    if location.state == _LOST:
        return f"{tier} (lost)"
    if location.tier == _CACHE:
        return tier
    return tier if location.state == _SAFE else f"{tier} (not yet safe)"


def _of(used: int, most: int, shown: Callable[[int], str]) -> str:
    return f"{shown(most)} ({used * 100 // most} %)" if most else ""


def _name(enum: Any, value: int) -> str:
    """The name of an enum's value, its number when the service is newer than this client."""
    try:
        return str(enum.Name(value))
    except ValueError:
        return str(value)


def _busy(workers: Iterable[Worker]) -> str:
    slots = [(worker.busy, worker.slots) for worker in workers if worker.connected]
    if not slots:
        return ""
    return f"{sum(busy for busy, _ in slots)}/{sum(most for _, most in slots)}"
