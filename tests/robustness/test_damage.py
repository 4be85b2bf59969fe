"""Bytes that changed in the cache or on tape are noticed, never delivered, and replaced."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from deploy.local.stack import Stack
from nearline.tape.v1 import tape_pb2 as tape
from nearline.tape.v1.tape_pb2_grpc import TapeServiceStub
from nearline.type.v1.storage_pb2 import Blob, File
from nearline.type.v1.transaction_pb2 import Transaction
from nearline_client import names
from services.kit.channel import sync_channel
from services.kit.config import PeerConfig, SecretFile, TlsConfig
from tests.fixtures.store import GROUP, Store, cache_objects, same, states, tiers

Harm = Callable[[Stack, str], None]
MIB = 1 << 20
_PATIENCE_SECONDS = 300.0


@pytest.fixture
def operator(store: Store) -> Iterator[TapeServiceStub]:
    """The tape service as an operator with a certificate of the mesh reaches it."""
    site = store.stack.site
    files = site.authority.credentials("operator")
    tls = TlsConfig(cert=files.certificate, key=SecretFile(files.key), ca=files.authority)
    channel = sync_channel(PeerConfig(address=site.address("tape"), tls=tls))
    yield TapeServiceStub(channel)
    channel.close()


@pytest.fixture(autouse=True)
def _bystander(session_store: Store) -> None:
    """A store that shows nothing at all is waited for; this one shows one object always."""
    if not hasattr(session_store, "bystander"):
        path = session_store.alice.file(session_store.alice.directory() + b"/bystander")
        session_store.bystander = session_store.alice.put(path)  # type: ignore[attr-defined]


def reconcile(operator: TapeServiceStub, **options: bool) -> dict[str, tape.Orphan]:
    """What the reconciler finds, by name."""
    request = tape.ReconcileRequest(grace_seconds=1, **options)
    return {one.name: one for batch in operator.Reconcile(request) for one in batch.orphans}


def faults(store: Store, holding_id: int, *, open: bool) -> list[str]:
    """Paths of a holding with a fault, as the manager of the group sees them."""
    found = store.carol.client.faults(GROUP, open=open)
    return [fault.path for fault in found if fault.holding_id == holding_id]


def flip_on_tape(stack: Stack, content: bytes) -> int:
    """Turn over one bit of the content wherever tape has it; a second time restores it."""
    found = 0
    for root in (stack.site.xrootd.layout.data, stack.site.directory / "tape"):
        for path in root.rglob("*") if root.exists() else ():
            if stat.S_ISREG(path.lstat().st_mode):
                found += _flip(path, content)
    return found


def _flip(path: Path, content: bytes) -> int:
    # All but the first byte, which is the one that changes.
    at = path.read_bytes().find(content[1:])
    if at < 1:
        return 0
    with path.open("r+b") as stream:
        stream.seek(at - 1)
        value = stream.read(1)[0]
        stream.seek(at - 1)
        stream.write(bytes([value ^ 1]))
    return 1


def damage(stack: Stack, key: str) -> None:
    """Turn every byte of an object over."""
    store = stack.site.seaweed.store
    content = store.client.get_object(Bucket=store.bucket, Key=key)["Body"].read()
    flipped = bytes(content).translate(bytes(255 - value for value in range(256)))
    store.client.put_object(Bucket=store.bucket, Key=key, Body=flipped)


def rot(stack: Stack, key: str) -> None:
    """Turn over a bit below the object store, which then refuses to read the object."""
    store = stack.site.seaweed.store
    content = store.client.get_object(Bucket=store.bucket, Key=key)["Body"].read()
    volumes = list(stack.site.seaweed.directory.rglob("*.dat"))
    assert sum(_flip(volume, content[:4096]) for volume in volumes) == 1
    with pytest.raises(ClientError):
        store.client.get_object(Bucket=store.bucket, Key=key)["Body"].read()


def remove(stack: Stack, key: str) -> None:
    store = stack.site.seaweed.store
    store.client.delete_object(Bucket=store.bucket, Key=key)


@pytest.fixture
def tree(store: Store) -> bytes:
    """Files that go into a pack, and one with an object of its own."""
    root = store.alice.directory()
    for number in range(10):
        store.alice.file(root + b"/%d" % number, os.urandom(10_000))
    store.alice.file(root + b"/large", os.urandom(20 * MIB))
    return root


@pytest.mark.parametrize("harm", [damage, remove])
def test_what_is_safe_on_tape_comes_back_from_there(
    store: Store, tree: bytes, harm: Harm, operator: TapeServiceStub
) -> None:
    with cache_objects(store.stack) as objects:
        put = store.alice.put(tree)
    store.wait_safe(put.holding_id)
    for key in objects:
        harm(store.stack, key)
    target = store.alice.directory()
    store.alice.get(tree, target=target, holding_id=put.holding_id)
    same(tree, target + tree)
    # The recall has made the cache copies anew, the faults stay on record, the bad objects go.
    files = [file for file in store.alice.files(holding_id=put.holding_id) if file.size]
    assert [tiers(file) for file in files] == [["CACHE", "TAPE"]] * 11
    assert len(faults(store, put.holding_id, open=False)) >= 11
    assert not set(faults(store, put.holding_id, open=True)) & {file.path for file in files}
    store.wait(lambda: _unreported(operator, objects), "an age of a second")
    found = reconcile(operator)
    assert {found[key].action for key in objects} == {tape.Orphan.REMOVED}
    assert not reconcile(operator, dry_run=True).keys() & set(objects)
    again = store.alice.directory()
    store.alice.get(tree, target=again, holding_id=put.holding_id)
    same(tree, again + tree)


def test_an_object_that_the_store_fails_to_read_comes_from_tape(store: Store) -> None:
    """Other objects can be read. The store tries for 13 seconds each time before it says so."""
    root = store.alice.directory()
    store.alice.file(root + b"/1", os.urandom(10_000))
    with cache_objects(store.stack) as objects:
        put = store.alice.put(root)
    store.wait_safe(put.holding_id)
    (key,) = objects
    rot(store.stack, key)
    target = store.alice.directory()
    get = store.alice.client.get([root], target, holding_id=put.holding_id)
    ended = store.alice.client.wait(get.id, _PATIENCE_SECONDS)
    assert Transaction.State.Name(ended.state) == "COMPLETE", store.alice.story(get.id)
    same(root, target + root)
    found = store.carol.client.faults(GROUP)
    (fault,) = [fault for fault in found if fault.holding_id == put.holding_id]
    assert fault.path == names.encode(root + b"/1")
    assert fault.reason.startswith(f"the object store reads other objects, but not {key}")


def _unreported(operator: TapeServiceStub, objects: dict[str, int]) -> str | None:
    left = set(objects) - reconcile(operator, dry_run=True).keys()
    return f"{len(left)} are not reported" if left else None


def test_a_bit_on_tape_costs_one_file_until_the_tape_file_is_restored(
    store: Store, operator: TapeServiceStub
) -> None:
    root = store.alice.directory()
    contents = {root + b"/%d" % n: os.urandom(10_000) for n in range(5)}
    for path, content in contents.items():
        store.alice.file(path, content)
    victim, precious = next(iter(contents.items()))
    put = store.alice.put(root)
    store.to_tape(put.holding_id)
    assert flip_on_tape(store.stack, precious)
    target = store.alice.directory()
    get = store.alice.get(
        root, target=target, holding_id=put.holding_id, expect="COMPLETE_WITH_ERRORS"
    )
    (failure,) = store.alice.reasons(get)
    assert (failure.path, failure.code) == (names.encode(victim), "NO_COPY")
    assert "the tape copy (file " in failure.reason
    assert "does not match its digest" in failure.reason.replace("do not", "does not")
    assert sorted(os.listdir(target + root)) == [b"1", b"2", b"3", b"4"]
    (file,) = store.alice.files(victim, holding_id=put.holding_id)
    assert states(file) == {Blob.LOST}
    assert faults(store, put.holding_id, open=True) == [names.encode(victim)]
    assert flip_on_tape(store.stack, precious)

    def restored() -> str | None:
        """The copy that the library holds may have to be brought back first."""
        answers = list(operator.VerifyFaults(tape.VerifyFaultsRequest(stage=True)))
        left = faults(store, put.holding_id, open=True)
        return "; ".join(answer.trouble for answer in answers) if left else None

    store.wait(restored, "the tape copy")
    again = store.alice.directory()
    store.alice.get(root, target=again, holding_id=put.holding_id)
    same(root, again + root)


@pytest.mark.parametrize("harm", [damage, remove])
def test_what_is_nowhere_else_fails_and_nothing_is_delivered(
    store: Store, tree: bytes, harm: Harm
) -> None:
    store.stack.stop("tape")
    with cache_objects(store.stack) as objects:
        put = store.alice.put(tree)
    assert len(objects) == 2
    for key in objects:
        harm(store.stack, key)
    target = store.alice.directory()
    get = store.alice.get(
        tree, target=target, holding_id=put.holding_id, expect="COMPLETE_WITH_ERRORS"
    )
    failed = store.alice.failures(get)
    assert set(failed.values()) == {"NO_COPY"}
    assert len(failed) == 11
    for failure in store.alice.reasons(get):
        assert "the cache copy (object " in failure.reason
        assert " UTC: its " in failure.reason
    # The directory itself has no bytes to lose.
    assert os.listdir(target + tree) == []


def test_damaged_bytes_do_not_reach_tape(store: Store, tree: bytes) -> None:
    store.stack.stop("tape")
    with cache_objects(store.stack) as objects:
        put = store.alice.put(tree)
    (large,) = [key for key in objects if key.endswith(".raw")]
    damage(store.stack, large)
    store.stack.up()

    def probe() -> str | None:
        files = store.alice.files(holding_id=put.holding_id)
        left = [file.path for file in files if "large" not in file.path and not on_tape(file)]
        return f"{len(left)} files are not on tape yet" if left else None

    store.wait(probe, "the archive")
    damaged = store.alice.files(tree + b"/large", holding_id=put.holding_id)
    assert not any(on_tape(file) for file in damaged)
    get = store.alice.get(
        tree + b"/large",
        target=store.alice.directory(),
        holding_id=put.holding_id,
        expect="FAILED",
    )
    assert store.alice.failures(get).keys() == {names.encode(tree + b"/large")}


def on_tape(file: File) -> bool:
    return "TAPE" in tiers(file)
