"""The check of a run notices each invariant that is broken, and nothing where none is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest

from nearline.type.v1.storage_pb2 import Attributes, Blob
from nearline.type.v1.transaction_pb2 import Transaction
from services.catalog.rules import FILE_STORED
from tests.soak.checker import Evidence, check
from tests.soak.observe import Catalog, Ledger, World
from tests.soak.requests import Ending, Request
from tests.soak.sources import Entry

DIGEST = "00" * 32
ROOT, FILE = "/home/put", "/home/put/file"
TREE = {ROOT: Entry("directory"), FILE: Entry("file", 10, DIGEST)}
DONE = Ending("COMPLETE", 2, 2, 0, 10)
PUT, GET, CANCELLED = "put-id", "get-id", "cancelled-id"


def _never() -> Transaction:
    raise AssertionError("nobody asks here")


def _row(
    action: Transaction.Action.ValueType, state: Transaction.State.ValueType, done: int
) -> dict[str, object]:
    return {
        "action": action, "state": state, "files_total": done, "files_done": done,
        "files_failed": 0, "tasks_failed": 0, "cancelled": state == Transaction.CANCELLED,
    }  # fmt: skip


def _blob(id: int, tier: Blob.Tier.ValueType, state: Blob.State.ValueType) -> dict[str, object]:
    return {
        "id": id, "tier": tier, "state": state, "key": f"1/{id}", "size": 100, "holding_id": 1,
        "group_name": "g",
    }  # fmt: skip


def sound() -> Evidence:
    """A put that is in both tiers, a get of it, and a get that was cancelled."""
    put = Request(PUT, "alice", "g", "PUT", _never, dict(TREE), accepted=True, ending=DONE)
    get = Request(GET, "alice", "g", "GET", _never, dict(TREE), accepted=True, ending=DONE)
    get.target = b"/target"
    get.found = {"/home": Entry("directory"), **TREE}
    cancelled = Request(CANCELLED, "alice", "g", "GET", _never, dict(TREE), accepted=True)
    cancelled.ending = Ending("CANCELLED", 0, 0, 0, 0)
    cancelled.found, cancelled.late = {}, {}
    transactions = {
        PUT: _row(Transaction.PUT, Transaction.COMPLETE, 2),
        GET: _row(Transaction.GET, Transaction.COMPLETE, 2),
        CANCELLED: _row(Transaction.GET, Transaction.CANCELLED, 0),
    }
    files = {
        number: {
            "id": number, "path": path, "size": entry.size, "state": FILE_STORED, "put": PUT,
            "digest": entry.content or None, "holding_id": 1,
            "type": Attributes.FILE if entry.kind == "file" else Attributes.DIRECTORY,
        }
        for number, (path, entry) in enumerate(TREE.items(), 1)
    }  # fmt: skip
    blobs = {7: _blob(7, Blob.CACHE, Blob.STORED), 8: _blob(8, Blob.TAPE, Blob.SAFE)}
    locations = [(f, b, blobs[b]["tier"]) for f in files for b in blobs]
    catalog = Catalog(files, blobs, locations)
    world = World(Ledger(transactions), catalog, {"1/7": 100, "health": 2}, [], {"1/8": 100})
    return Evidence([put, get, cancelled], world, {"g": (2, 10, 2, 10, 2, 10)}, [(1.0, [])])


def _ledger(evidence: Evidence, id: str, **changes: object) -> Evidence:
    evidence.world.ledger.transactions[id].update(changes)
    return evidence


def _request(evidence: Evidence, number: int, **changes: object) -> Evidence:
    for name, value in changes.items():
        setattr(evidence.requests[number], name, value)
    return evidence


def _runs_for_ever(evidence: Evidence) -> Evidence:
    return _ledger(evidence, PUT, state=Transaction.TRANSFERRING)


def _counts_do_not_add_up(evidence: Evidence) -> Evidence:
    return _ledger(evidence, PUT, files_done=1)


def _hides_a_failure(evidence: Evidence) -> Evidence:
    return _ledger(evidence, PUT, files_done=1, files_failed=1)


def _forgets_a_transaction(evidence: Evidence) -> Evidence:
    del evidence.world.ledger.transactions[PUT]
    return evidence


def _ends_with_open_tasks(evidence: Evidence) -> Evidence:
    task = {"id": 1, "txn": PUT}
    ledger = replace(evidence.world.ledger, open_tasks=[task])
    return replace(evidence, world=replace(evidence.world, ledger=ledger))


def _fails_without_cause(evidence: Evidence) -> Evidence:
    ending = Ending("COMPLETE_WITH_ERRORS", 2, 1, 1, 0)
    _ledger(evidence, PUT, state=Transaction.COMPLETE_WITH_ERRORS, files_done=1, files_failed=1)
    return _request(evidence, 0, failures=[(FILE, "INTERNAL")], ending=ending)


def _loses_a_file(evidence: Evidence) -> Evidence:
    evidence.world.catalog.locations.clear()
    return replace(evidence, reported={"g": (2, 10, 0, 0, 0, 0)})


def _has_another_digest(evidence: Evidence) -> Evidence:
    evidence.world.catalog.files[2]["digest"] = "11" * 32
    return evidence


def _loses_an_object(evidence: Evidence) -> Evidence:
    del evidence.world.objects["1/7"]
    return evidence


def _truncates_a_tape_file(evidence: Evidence) -> Evidence:
    evidence.world.tape["1/8"] = 50
    return evidence


def _blames_a_good_copy(evidence: Evidence) -> Evidence:
    evidence.world.catalog.faults.append((8, 2, "it seemed bad"))
    return evidence


def _evicts_too_early(evidence: Evidence) -> Evidence:
    return replace(evidence, samples=[(3.0, [2])])


def _delivers_other_bytes(evidence: Evidence) -> Evidence:
    found = {**(evidence.requests[1].found or {}), FILE: Entry("file", 10, "22" * 32)}
    return _request(evidence, 1, found=found)


def _delivers_nothing(evidence: Evidence) -> Evidence:
    return _request(evidence, 1, found={})


def _leaves_a_temporary_file(evidence: Evidence) -> Evidence:
    left = {ROOT: Entry("directory"), f"{ROOT}/.nl-1-0123456789ab": Entry("file", 5, DIGEST)}
    return _request(evidence, 2, found=left, late=left)


def _leaves_one_after_all(evidence: Evidence) -> Evidence:
    return replace(evidence, world=replace(evidence.world, temporary=[b"/home/.nl-1-0123456789ab"]))


def _leaves_a_part_under_the_final_name(evidence: Evidence) -> Evidence:
    left = {FILE: Entry("file", 5, "33" * 32)}
    return _request(evidence, 2, found=left, late=left)


def _becomes_another_by_a_repeat(evidence: Evidence) -> Evidence:
    return _request(evidence, 0, repeats=[DONE, replace(DONE, files_done=4)])


def _goes_on_after_cancel(evidence: Evidence) -> Evidence:
    return _request(evidence, 2, late=dict(TREE))


def _stores_after_cancel(evidence: Evidence) -> Evidence:
    _request(evidence, 2, stored=frozenset())
    return replace(evidence, stored_late={CANCELLED: frozenset({FILE})})


def _leaves_an_object(evidence: Evidence) -> Evidence:
    evidence.world.objects["1/99"] = 5
    return evidence


def _keeps_a_removed_tape_file(evidence: Evidence) -> Evidence:
    evidence.world.catalog.blobs[9] = _blob(9, Blob.TAPE, Blob.REMOVED)
    evidence.world.tape["1/9"] = 100
    return evidence


def _counts_usage_twice(evidence: Evidence) -> Evidence:
    return replace(evidence, reported={"g": (4, 20, 2, 10, 2, 10)})


def test_nothing_is_wrong_where_nothing_is() -> None:
    assert check(sound()) == []


@pytest.mark.parametrize(
    ("letter", "damage"),
    [
        ("a", _runs_for_ever),
        ("a", _counts_do_not_add_up),
        ("a", _hides_a_failure),
        ("a", _forgets_a_transaction),
        ("a", _ends_with_open_tasks),
        ("a", _fails_without_cause),
        ("b", _loses_a_file),
        ("b", _has_another_digest),
        ("b", _loses_an_object),
        ("b", _truncates_a_tape_file),
        ("b", _blames_a_good_copy),
        ("c", _evicts_too_early),
        ("d", _delivers_other_bytes),
        ("d", _delivers_nothing),
        ("d", _leaves_a_temporary_file),
        ("h", _leaves_one_after_all),
        ("d", _leaves_a_part_under_the_final_name),
        ("e", _becomes_another_by_a_repeat),
        ("g", _goes_on_after_cancel),
        ("g", _stores_after_cancel),
        ("h", _leaves_an_object),
        ("h", _keeps_a_removed_tape_file),
        ("i", _counts_usage_twice),
    ],
)
def test_each_broken_invariant_is_seen(letter: str, damage: Callable[[Evidence], Evidence]) -> None:
    violations = check(damage(copy.deepcopy(sound())))
    assert letter in {violation.invariant for violation in violations}
