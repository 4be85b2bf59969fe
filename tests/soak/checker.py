"""The invariants, over what was asked for and what is there once everything is quiet. Pure.

The letters are those of ``docs/guarantees.md``. Every function yields one text per violation.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nearline.type.v1.storage_pb2 import Attributes, Blob
from nearline.type.v1.transaction_pb2 import Transaction
from nearline_client import names
from nearline_client.states import is_final
from services.catalog.rules import FILE_REGISTERED, FILE_STORED, READABLE
from tests.soak import observe
from tests.soak.observe import Catalog, World, readable
from tests.soak.requests import Ending, Request
from tests.soak.sources import Entry

Usage = Mapping[str, tuple[int, ...]]
"""Files, bytes, files and bytes in the cache, files and bytes on tape; by group."""

_KINDS = {Attributes.FILE: "file", Attributes.DIRECTORY: "directory", Attributes.SYMLINK: "symlink"}
# Written by probes of health, owned by nobody.
_PROBES = frozenset({"health", "nearline-ready"})
_MOST_SHOWN = 5
# Codes with which a file of an intact store may fail: the disk of its target was full.
_FULL = frozenset({"NO_SPACE", "QUOTA_EXCEEDED"})


class Violation(NamedTuple):
    """A broken invariant: its letter, and what is wrong where."""

    invariant: str
    text: str


@dataclass(frozen=True)
class Evidence:
    """All that the check is about.

    ``reported``: usage as users are told. ``samples``: files that were seen without a cache copy
    and without a confirmed tape copy, with the time. ``spoilt``: blobs in which a bit was turned
    over on purpose. ``stored_late``: what find shows of cancelled puts at the end.
    """

    requests: Sequence[Request]
    world: World
    reported: Usage
    samples: Sequence[tuple[float, list[int]]] = ()
    spoilt: Collection[int] = ()
    stored_late: Mapping[str, frozenset[str]] = field(default_factory=dict)


def check(evidence: Evidence) -> list[Violation]:
    """All violations; none when every invariant holds."""
    rules: Sequence[tuple[str, Callable[[Evidence], Iterator[str]]]] = (
        ("a", _endings),
        ("a", _answers),
        ("b", _stored),
        ("b", _copies),
        ("c", _safety),
        ("d", _targets),
        ("e", _repeats),
        ("g", _cancelled),
        ("h", _orphans),
        ("i", _usage),
    )
    return [Violation(letter, text) for letter, rule in rules for text in rule(evidence)]


# -- (a) every accepted transaction ends once, with the truth about its files


def _endings(evidence: Evidence) -> Iterator[str]:
    ledger = evidence.world.ledger
    for id, row in ledger.transactions.items():
        yield from (f"{_name(id, row)}: {text}" for text in _row(row, ledger.failures.get(id, 0)))
    for task in ledger.open_tasks:
        of = ledger.transactions.get(task["txn"] or "")
        if of is not None and is_final(of["state"]):
            yield f"task {task['id']} is open although {_name(task['txn'], of)} has ended"


def _row(row: Mapping[str, Any], failures: int) -> Iterator[str]:
    """What is wrong with the row of one transaction."""
    total, done, failed = row["files_total"], row["files_done"], row["files_failed"]
    state = Transaction.State.Name(row["state"])
    if not is_final(row["state"]):
        yield f"has not ended: it is {state}"
        return
    if done + failed > total or (state != "CANCELLED" and done + failed != total):
        yield f"{state} with {done} done and {failed} failed of {total} files"
    # A task without files that is given up says why too.
    if failures > failed + row["tasks_failed"]:
        yield f"{failures} failures are on record, but {failed} files count as failed"
    has_failed = bool(failed or row["tasks_failed"])
    if state in ("COMPLETE", "COMPLETE_WITH_WARNINGS") and has_failed:
        yield f"{state} although {failed} files failed"
    if state == "COMPLETE_WITH_ERRORS" and not (has_failed and done):
        yield f"{state} with {done} done and {failed} failed"
    if state == "FAILED" and done:
        yield f"FAILED although {done} files are done"
    if row["cancelled"] and state != "CANCELLED":
        yield f"was cancelled while it ran and ended as {state}"


def _answers(evidence: Evidence) -> Iterator[str]:
    """What users were told agrees with the ledger, and with what they asked for."""
    transactions = evidence.world.ledger.transactions
    for request in evidence.requests:
        row = transactions.get(request.id)
        if request.refused and not request.origin:
            yield f"{_asked(request)}: was refused: {request.refused}"
        if request.accepted and row is None:
            yield f"{_asked(request)}: accepted, and nothing is on record"
        if request.accepted and request.ending is None:
            yield f"{_asked(request)}: its end was never seen"
        if request.ending is not None and row is not None:
            yield from _agrees(request, request.ending, row)


def _agrees(request: Request, ending: Ending, row: Mapping[str, Any]) -> Iterator[str]:
    told = (ending.files_total, ending.files_done, ending.files_failed)
    kept = (row["files_total"], row["files_done"], row["files_failed"])
    if told != kept or ending.state != Transaction.State.Name(row["state"]):
        yield f"{_asked(request)}: changed after its end from {ending} to {dict(row)}"
    if ending.state == "CANCELLED" or request.action == "EVICT":
        return
    if ending.files_total != len(request.expected) and not request.uncertain:
        wanted = len(request.expected)
        yield f"{_asked(request)}: speaks of {ending.files_total} files, asked for {wanted}"
    if missing := request.doomed - request.failed:
        yield f"{_asked(request)}: does not tell that it could not store {_some(missing)}"
    allowed = request.doomed | request.uncertain
    wrong = [f for f in request.failures if f[0] not in allowed and not _may_fail(request, f[1])]
    if wrong:
        yield f"{_asked(request)}: failed without a cause: {_some(wrong)}"


def _may_fail(request: Request, code: str) -> bool:
    return request.may_be_full and code in _FULL


# -- (b) what is reported stored is there, with the right digest


def _stored(evidence: Evidence) -> Iterator[str]:
    catalog = evidence.world.catalog
    by_put: defaultdict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for row in catalog.files.values():
        by_put[row["put"]][row["path"]] = row
    have_copy = readable(catalog)
    for put in evidence.requests:
        if put.action in ("PUT", "RETRY PUT"):
            yield from _stored_by(put, by_put[put.origin or put.id], have_copy)
    for request in evidence.requests:
        if request.action == "READ BACK" and request.failures:
            yield f"{_asked(request)}: cannot be read back: {_some(request.failures)}"


def _stored_by(
    put: Request, rows: Mapping[str, Mapping[str, Any]], have_copy: set[int]
) -> Iterator[str]:
    wrong = []
    for path, entry in put.done.items():
        row = rows.get(path)
        if row is None or row["state"] != FILE_STORED or row["id"] not in have_copy:
            wrong.append((path, "is not stored" if row is None else f"is lost: {dict(row)}"))
        elif _entry(row) != _without_target(entry):
            wrong.append((path, f"is {_entry(row)} in the catalog, was {entry}"))
    if wrong:
        yield f"{_asked(put)}: {len(wrong)} files that it reported stored: {_some(wrong)}"


def _entry(row: Mapping[str, Any]) -> Entry:
    return Entry(_KINDS[row["type"]], row["size"], row["digest"] or "")


def _without_target(entry: Entry) -> Entry:
    """As the catalog tells it: what a link points to is not a digest."""
    return entry if entry.kind == "file" else Entry(entry.kind)


def _copies(evidence: Evidence) -> Iterator[str]:
    """Every readable blob has its bytes; no copy was declared bad that nobody had harmed."""
    world = evidence.world
    for blob in world.catalog.blobs.values():
        if blob["state"] not in READABLE:
            continue
        there = world.objects if blob["tier"] == Blob.CACHE else world.tape
        if there.get(blob["key"]) != blob["size"]:
            found = there.get(blob["key"], "nothing")
            yield f"blob {blob['id']} of {blob['size']} bytes: there is {found}: {blob['key']}"
    blamed: defaultdict[int, list[tuple[int, str]]] = defaultdict(list)
    for blob_id, file, reason in world.catalog.faults:
        blamed[blob_id].append((file, reason))
    for blob_id, files in blamed.items():
        if blob_id not in evidence.spoilt:
            yield f"blob {blob_id} was declared bad and nobody had harmed it: {_some(files)}"


# -- (c) a cache copy goes only when tape has confirmed its own


def _safety(evidence: Evidence) -> Iterator[str]:
    for at, files in evidence.samples:
        if files:
            yield f"at {at:.1f} s files had no confirmed copy: {_some(files)}"
    if files := evidence.world.catalog.unsafe:
        yield f"at the end files have no confirmed copy: {_some(files)}"


# -- (d) a get writes a complete, verified file under its name or nothing


def _targets(evidence: Evidence) -> Iterator[str]:
    for request in evidence.requests:
        for when, found in (("when it ended", request.found), ("later", request.late)):
            if found is not None:
                wrong = list(_in_target(request, found))
                if wrong:
                    yield f"{_asked(request)}: {when}: {_some(wrong)}"


def _in_target(request: Request, found: Mapping[str, Entry]) -> Iterator[str]:
    for path, entry in request.done.items():
        if found.get(path) != entry:
            yield f"{path!r} is {found.get(path)}, not {entry}"
    parents = {parent for path in request.expected for parent in _parents(path)}
    for path, entry in found.items():
        if observe.is_temporary(names.decode(path)):
            # Of one that is complete a worker that was taken for dead may still remove its own.
            if not is_complete(request):
                yield f"a temporary file is left: {path!r}"
        elif path not in request.expected and path not in parents:
            yield f"{path!r} was not asked for"
        elif entry.kind == "file" and entry != request.expected.get(path):
            yield f"{path!r} is {entry}, not {request.expected.get(path)}"


def is_complete(request: Request) -> bool:
    """Whether it has ended with every file."""
    return request.ending is not None and request.ending.state == "COMPLETE"


def _parents(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path


# -- (e) repeating a request changes nothing


def _repeats(evidence: Evidence) -> Iterator[str]:
    for request in evidence.requests:
        for answer in request.repeats:
            if answer != request.ending:
                yield f"{_asked(request)}: repeated after {request.ending} it became {answer}"


# -- (g) cancelled means no further effects


def _cancelled(evidence: Evidence) -> Iterator[str]:
    for request in evidence.requests:
        if request.ending is None or request.ending.state != "CANCELLED":
            continue
        if request.late is not None and request.late != request.found:
            changed = set(request.late.items()) ^ set((request.found or {}).items())
            yield f"{_asked(request)}: files changed after it was cancelled: {_some(changed)}"
        later = evidence.stored_late.get(request.id)
        if later is not None and later != request.stored:
            changed_paths = later ^ (request.stored or frozenset())
            yield f"{_asked(request)}: files changed after the end: {_some(changed_paths)}"


# -- (h) nothing is left without an owner


def _orphans(evidence: Evidence) -> Iterator[str]:
    world = evidence.world
    blobs = {blob["key"]: blob for blob in world.catalog.blobs.values()}
    for where, keys in (("cache", world.objects), ("tape", world.tape)):
        for key in keys:
            blob = blobs.get(key)
            if key not in _PROBES and (blob is None or not is_allowed(blob)):
                state = "unknown" if blob is None else Blob.State.Name(blob["state"])
                yield f"{where}: {key} belongs to nothing (blob: {state})"
    for key in world.uploads:
        yield f"cache: an upload of {key} is left unfinished"
    for path in world.temporary:
        yield f"users' directories: {path!r} is left"


def is_allowed(blob: Mapping[str, Any]) -> bool:
    """Whether bytes of this blob may lie somewhere once nothing is left to reconcile.

    Besides readable ones: what was declared bad and not replaced yet is kept for the operators.
    """
    return blob["state"] in (*READABLE, Blob.LOST)


def leftovers(world: World) -> Counter[str]:
    """What is allowed to lie about, by kind: for the report."""
    counts: Counter[str] = Counter()
    for blob in world.catalog.blobs.values():
        there = world.objects if blob["tier"] == Blob.CACHE else world.tape
        if blob["key"] in there and blob["state"] not in READABLE:
            tier, state = Blob.Tier.Name(blob["tier"]), Blob.State.Name(blob["state"])
            counts[f"{tier} {state}".lower()] += 1
    counts["objects that the store does not list"] = len(world.unlisted)
    return counts


# -- (i) usage is the sum of the files


def _usage(evidence: Evidence) -> Iterator[str]:
    summed = sums(evidence.world.catalog)
    for group in sorted(summed.keys() | evidence.reported.keys()):
        told, true = evidence.reported.get(group, (0,) * 6), summed.get(group, (0,) * 6)
        if told != true:
            yield f"group {group}: reported {told}, its files add up to {true}"


def sums(catalog: Catalog) -> dict[str, tuple[int, ...]]:
    """The usage by group as the rows add up; files that are lost are still files."""
    totals: defaultdict[str, Counter[str]] = defaultdict(Counter)
    groups = {blob["holding_id"]: blob["group_name"] for blob in catalog.blobs.values()}
    for row in catalog.files.values():
        if row["state"] != FILE_REGISTERED:
            totals[groups[row["holding_id"]]].update(files=1, bytes=row["size"])
    for file, _, tier in catalog.locations:
        row = catalog.files[file]
        name = "cache" if tier == Blob.CACHE else "tape"
        totals[groups[row["holding_id"]]].update({f"{name}_files": 1, f"{name}_bytes": row["size"]})
    columns = ("files", "bytes", "cache_files", "cache_bytes", "tape_files", "tape_bytes")
    return {group: tuple(total[name] for name in columns) for group, total in totals.items()}


# -- words


def _asked(request: Request) -> str:
    return f"{request.action} {request.id} of {request.user}"


def _name(id: str, row: Mapping[str, Any]) -> str:
    return f"{Transaction.Action.Name(row['action'])} {id}"


def _some(things: Iterable[object]) -> str:
    listed = list(things)
    shown = ", ".join(map(str, listed[:_MOST_SHOWN]))
    return shown if len(listed) <= _MOST_SHOWN else f"{shown} and {len(listed) - _MOST_SHOWN} more"
