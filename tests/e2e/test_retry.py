"""What failed is run again by `nlds retry`, and nothing else; requests stop at any moment."""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Iterator

import pytest

import nearline_client
from nearline.type.v1.transaction_pb2 import Transaction
from tests.fixtures.store import GROUP, LIMIT, Person, Store


def retried(person: Person, id_: str, code: int = 0) -> Transaction:
    """The retry of a transaction at its end, by the real command."""
    done = person.nlds("retry", "--wait", "--json", id_)
    assert done.returncode == code, (done.stdout, done.stderr, person.story(id_))
    again = person.client.transaction(json.loads(done.stdout)["id"])
    assert again.retry_of == id_
    return again


def test_a_put_goes_on_with_the_files_that_failed(store: Store) -> None:
    alice = store.alice
    root = alice.directory()
    good = alice.file(root + b"/good")
    secret, later = alice.file(root + b"/secret", mode=0), alice.directory() + b"/later"
    put = alice.put(root, later, expect="COMPLETE_WITH_ERRORS")
    assert set(alice.failures(put)) == {secret.decode(), later.decode()}

    with alice.acting():
        os.chmod(secret, 0o600)
    alice.file(later)
    again = retried(alice, put.id)
    assert (again.state, again.files_total, again.files_done) == (Transaction.COMPLETE, 2, 2)
    found = {file.path.encode() for file in alice.files(holding_id=put.holding_id)}
    assert {good, secret, later} <= found
    # All of it belongs to the request that was made.
    assert {good, secret, later} <= {f.path.encode() for f in alice.files(transaction_id=put.id)}
    assert retried(alice, put.id).id == again.id
    refused = alice.nlds("retry", again.id)
    assert refused.returncode == 1
    assert b"nothing failed" in refused.stderr


def test_a_get_brings_only_what_did_not_come(store: Store) -> None:
    alice = store.alice
    root, target = alice.directory(), alice.directory()
    names = [alice.file(root + b"/%d" % n, b"content %d" % n) for n in range(5)]
    alice.put(root)
    with alice.acting():
        os.makedirs(target + names[2] + b"/in the way")
    get = alice.get(root, target=target, expect="COMPLETE_WITH_ERRORS")
    assert set(alice.failures(get)) == {names[2].decode()}

    with alice.acting():
        os.removedirs(target + names[2] + b"/in the way")
        os.makedirs(os.path.dirname(target + names[2]), exist_ok=True)
        with open(target + names[0], "wb") as mine:
            mine.write(b"changed since")
    again = retried(alice, get.id)
    assert (again.files_total, again.files_done) == (1, 1)
    with open(target + names[2], "rb") as restored:
        assert restored.read() == b"content 2"
    with open(target + names[0], "rb") as kept:
        assert kept.read() == b"changed since"


def test_only_who_asked_may_have_it_run_again(store: Store) -> None:
    alice, bob = store.alice, store.bob
    put = alice.put(alice.directory() + b"/missing", expect="FAILED")
    refused = bob.nlds("retry", put.id)
    assert refused.returncode == 3
    assert b"only alice" in refused.stderr
    assert retried(alice, put.id, code=11).state == Transaction.FAILED


def test_a_request_is_cancelled_while_its_paths_are_sent(store: Store) -> None:
    alice, id_ = store.alice, str(uuid.uuid4())
    path, cancelled = alice.file(alice.directory() + b"/a").decode(), threading.Event()

    def paths() -> Iterator[str]:
        for number in range(5000):
            yield f"{path}/{number}"
        # Some of them are with the ledger by now.
        store.wait(lambda: None if stopped() else "it cannot be cancelled yet", "the cancellation")
        cancelled.set()
        yield f"{path}/last"

    def stopped() -> bool:
        with nearline_client.connect(config=alice.config) as other:
            try:
                return other.cancel(id_).state == Transaction.CANCELLED
            except nearline_client.ServiceError:
                return False

    put = alice.client.put(paths(), group=GROUP, transaction_id=id_)
    assert cancelled.is_set()
    assert (put.id, put.state) == (id_, Transaction.CANCELLED)
    assert alice.client.wait(id_, LIMIT).files_total == 0
    assert not list(alice.client.tasks(id_))


def test_parked_tasks_are_for_managers(store: Store) -> None:
    assert store.alice.nlds("system", "-P", "-g", GROUP).returncode == 3
    listed = store.carol.nlds("system", "-P", "-j")
    assert listed.returncode == 0, listed.stderr
    with pytest.raises(nearline_client.ServiceError):
        list(store.bob.client.parked())
