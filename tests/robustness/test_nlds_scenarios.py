"""The eight ways in which the store before this one lost work or hung; here each ends right.

1. the message broker dies in a put: here the ledger and its database
2. the tape reader dies while it waits for a recall
3. a failed upload, a deleted source, a get of what is still on its way, a name that is not UTF-8
4. the indexer dies in the middle of a scan
5. an object is missing when it is to be archived
6. the archive writer dies in the middle of a tar
7. zeroed and cut objects and damaged tars are not delivered
8. one file of many fails

And one of its own: a get dies in the middle and is cancelled then.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from deploy.local.wait import wait_until
from nearline.type.v1.task_pb2 import Task
from nearline.type.v1.transaction_pb2 import Transaction
from nearline_client import names
from tests.fixtures.store import (
    GROUP,
    Person,
    Store,
    cache_objects,
    people_of,
    quick_tape,
    same,
    tiers,
    watch_until,
)
from tests.robustness.conftest import wait_leased
from tests.soak import observe
from tests.soak.rig import Rig

MIB = 1 << 20
BROKEN = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def people(shared_rig: Rig) -> Iterator[Store]:
    with people_of(shared_rig.stack) as store:
        yield store


@pytest.fixture
def alice(rig: Rig, people: Store) -> Person:
    """A user of the rig, which is well."""
    quick_tape(rig.stack)
    return people.alice


def _tree(person: Person, files: int, size: int = 4000) -> bytes:
    root = person.directory()
    for number in range(files):
        person.file(root + b"/%d" % number, os.urandom(size))
    return root


def _start(person: Person, root: bytes) -> Transaction:
    return person.client.put([root], group=GROUP)


def _stored_once(person: Person, put: Transaction, root: bytes) -> Transaction:
    """The put ended with every file, and all come back as they were."""
    put = person.ended(put)
    entries = 1 + len(os.listdir(root))
    assert (put.files_total, put.files_done, put.files_failed) == (entries, entries, 0)
    target = person.directory()
    person.get(root, target=target, holding_id=put.holding_id)
    same(root, target + root)
    return put


def _die_at(rig: Rig, service: str, point: str) -> None:
    """Have a service die when it comes to a point of its work next."""
    rig.arm(service, point)
    rig.stack.up([service])


def _stay_dead(rig: Rig, service: str, point: str) -> None:
    """Wait until it has died there, and see to it that it stays so until it is started again."""

    def probe() -> str | None:
        log = rig.stack.log_path(service).read_text(errors="replace")
        return None if f'"point": "{point}"' in log else "nobody has died"

    wait_until(probe, point, 60.0)
    rig.arm(service, "")
    if rig.stack.pid(service):
        rig.stack.kill(service)


def _come_back(rig: Rig, service: str, point: str) -> None:
    """Wait until it has died there, and start it again."""
    _stay_dead(rig, service, point)
    rig.stack.up([service])


def test_1_the_ledger_and_its_database_die_in_a_put(rig: Rig, alice: Person) -> None:
    root = _tree(alice, 600)
    rig.links["seaweed"].delay(0.05)
    put = _start(alice, root)
    wait_leased(alice, put.id, Task.UPLOAD)
    for part in ("monitor", "postgres"):
        rig.stack.kill(part)
    rig.links["seaweed"].heal()
    rig.stack.up()
    _stored_once(alice, put, root)


def test_2_the_tape_service_dies_while_it_waits_for_a_recall(rig: Rig, alice: Person) -> None:
    root, target = _tree(alice, 5), alice.directory()
    put = alice.put(root)
    alice.store.to_tape(put.holding_id)
    quick_tape(rig.stack, mount=3.0)
    get = alice.client.get([root], target, holding_id=put.holding_id)
    watch_until(alice, get.id, lambda now: now.waiting_for.startswith("tape:"))
    rig.stack.kill("tape")
    rig.stack.up(["tape"])
    alice.ended(get)
    same(root, target + root)


def test_3_deleted_sources_fail_alone_and_hold_nobody_up(rig: Rig, alice: Person) -> None:
    root = _tree(alice, 30)
    rig.links["seaweed"].cut()
    put = _start(alice, root)
    watch_until(alice, put.id, lambda now: now.files_total == 31)
    # An upload that is under way has read its files already; they go while nobody reads.
    rig.stack.stop("transfer")
    lost = {root + b"/%d" % number for number in range(5)}
    for path in lost:
        os.unlink(path)
    rig.stack.up(["transfer"])
    # What is not stored yet cannot be had, and the one who asks is told so.
    early = alice.client.get([root + b"/7"], alice.directory(), holding_id=put.holding_id)
    early = alice.ended(early, "FAILED")
    assert set(alice.failures(early).values()) <= {"NOT_FOUND", "NO_COPY"}
    others = _start(alice.store.bob, _tree(alice.store.bob, 3))
    rig.links["seaweed"].heal()
    put = alice.ended(put, "COMPLETE_WITH_ERRORS")
    assert alice.failures(put) == {names.encode(path): "VANISHED" for path in lost}
    assert put.files_done == 26
    alice.store.bob.ended(others)


def test_3_a_store_that_answers_500_is_waited_for(rig: Rig, alice: Person) -> None:
    root = alice.directory()
    alice.file(root + b"/caf\xe9 \xff", os.urandom(2000))
    alice.file(root + b"/large", os.urandom(9 * MIB))
    rig.links["seaweed"].answer(BROKEN)
    put = _start(alice, root)
    watch_until(alice, put.id, lambda now: "object store" in now.waiting_for)
    rig.links["seaweed"].heal()
    _stored_once(alice, put, root)


def test_4_the_scan_dies_in_the_middle(rig: Rig, alice: Person) -> None:
    root = _tree(alice, 1000, 100)
    _die_at(rig, "transfer", "transfer.scan.registered")
    put = _start(alice, root)
    _come_back(rig, "transfer", "transfer.scan.registered")
    _stored_once(alice, put, root)


def test_5_a_missing_object_keeps_nothing_else_from_tape(rig: Rig, alice: Person) -> None:
    root = _tree(alice, 5, 2 * MIB)
    rig.stack.stop("tape")
    with cache_objects(rig.stack) as objects:
        put = alice.put(root)
    store = rig.stack.site.seaweed.store
    gone = next(key for key in objects if key.endswith(".raw"))
    store.client.delete_object(Bucket=store.bucket, Key=gone)
    rig.stack.up(["tape"])

    def probe() -> str | None:
        found = alice.files(holding_id=put.holding_id)
        missing = [file.path for file in found if "TAPE" not in tiers(file)]
        return None if len(missing) == 1 else f"not on tape: {missing}"

    alice.store.wait(probe, "the archive of the others")
    target = alice.directory()
    get = alice.get(root, target=target, holding_id=put.holding_id, expect="COMPLETE_WITH_ERRORS")
    assert set(alice.failures(get).values()) == {"NO_COPY"}
    assert (get.files_done, get.files_failed) == (5, 1)
    assert len(os.listdir(target + root)) == 4


def test_6_the_archive_dies_in_the_middle_of_a_tape_file(rig: Rig, alice: Person) -> None:
    root = _tree(alice, 200, 1000)
    _die_at(rig, "tape", "tape.archive.before_commit")
    put = alice.put(root)
    _come_back(rig, "tape", "tape.archive.before_commit")
    alice.store.wait_safe(put.holding_id)
    for archive in alice.store.carol.client.stat(
        all_users=True, holding_id=put.holding_id, actions=[Transaction.ARCHIVE]
    ):
        assert alice.store.carol.ended(archive).files_failed == 0
    alice.store.evict(put.holding_id)
    _stored_once(alice, put, root)


def _zeroed(content: bytes) -> bytes:
    return bytes(len(content))


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize("harm", [_zeroed, _cut])
def test_7_a_spoilt_object_is_not_delivered(
    rig: Rig, alice: Person, harm: Callable[[bytes], bytes]
) -> None:
    root = _tree(alice, 3, 2000)
    with cache_objects(rig.stack) as objects:
        put = alice.put(root)
    alice.store.wait_safe(put.holding_id)
    store = rig.stack.site.seaweed.store
    for key in objects:
        content = store.client.get_object(Bucket=store.bucket, Key=key)["Body"].read()
        store.client.put_object(Bucket=store.bucket, Key=key, Body=harm(content))
    _stored_once(alice, put, root)


def test_7_a_damaged_tar_on_tape_is_not_delivered(rig: Rig, alice: Person) -> None:
    root, target = _tree(alice, 3, 2000), alice.directory()
    before = observe.tape(rig).keys()
    put = alice.put(root)
    alice.store.to_tape(put.holding_id)
    for key in observe.tape(rig).keys() - before:
        copy = rig.tape_copy(key)
        copy.write_bytes(_zeroed(copy.read_bytes()))
    get = alice.get(root, target=target, holding_id=put.holding_id, expect="COMPLETE_WITH_ERRORS")
    files = {names.encode(root + b"/%d" % number) for number in range(3)}
    assert alice.failures(get) == dict.fromkeys(files, "NO_COPY")
    assert os.listdir(target + root) == []


def test_8_one_failure_among_thirty_is_told_as_one(rig: Rig, alice: Person) -> None:
    root, target = _tree(alice, 30), alice.directory()
    put = alice.put(root)
    with alice.acting():
        os.makedirs(target + root + b"/7")
    get = alice.get(root, target=target, holding_id=put.holding_id, expect="COMPLETE_WITH_ERRORS")
    assert alice.failures(get) == {names.encode(root + b"/7"): "IS_A_DIRECTORY"}
    assert (get.files_total, get.files_done, get.files_failed) == (31, 30, 1)


def test_a_get_that_dies_and_is_cancelled_then_leaves_nothing(rig: Rig, alice: Person) -> None:
    root, target = _tree(alice, 5), alice.directory()
    put = alice.put(root)
    alice.get(root, target=target, holding_id=put.holding_id)

    def unfinished() -> list[bytes]:
        return [name for name in os.listdir(target + root) if name.startswith(b".nl-")]

    _die_at(rig, "transfer", "transfer.get.before_rename")
    get = alice.client.get([root], target, holding_id=put.holding_id)
    _stay_dead(rig, "transfer", "transfer.get.before_rename")
    assert unfinished(), "it was to die with a file that is not in its place"
    alice.client.cancel(get.id)
    rig.stack.up(["transfer"])
    alice.ended(get, "CANCELLED")
    assert sorted(os.listdir(target + root)) == sorted(os.listdir(root))
