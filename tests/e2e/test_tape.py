"""Only what is wanted is read from tape, and only once."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from deploy.local.demo.tapemeter import TapeMeter
from deploy.local.stack import Stack
from tests.fixtures.store import Store, cache_objects, quick_tape, same, sizes

MEMBERS = 2000
MEMBER_BYTES = 10_240


@pytest.fixture
def xrootd(stack: Stack) -> Stack:
    if "xrootd" not in stack.parts():
        pytest.skip("needs the XRootD rig")
    return stack


def many(store: Store, count: int) -> bytes:
    root = store.alice.directory()
    with store.alice.acting():
        for number in range(count):
            with open(root + b"/%04d" % number, "wb") as stream:
                stream.write(os.urandom(MEMBER_BYTES))
    return root


def test_one_file_of_a_large_aggregate_is_read_alone(store: Store, stack: Stack) -> None:
    alice = store.alice
    root = many(store, MEMBERS)
    put = alice.put(root)
    store.to_tape(put.holding_id)

    meter, target, wanted = TapeMeter(stack), alice.directory(), root + b"/1234"
    before = meter.read_bytes()
    with cache_objects(stack) as recalled:
        alice.get(wanted, target=target, holding_id=put.holding_id)
    # Sockets and the endpoint's own files count too: still far from the 20 MB of the aggregate.
    assert meter.read_bytes() - before < 40 * MEMBER_BYTES
    assert [MEMBER_BYTES <= size < 3 * MEMBER_BYTES for size in recalled.values()] == [True]
    assert Path(os.fsdecode(target + wanted)).read_bytes() == Path(os.fsdecode(wanted)).read_bytes()


def recalls(stack: Stack, log_from: int) -> list[bytes]:
    """Lines about recalls that the library has logged since."""
    with open(stack.log_path("xrootd"), "rb") as log:
        log.seek(log_from)
        return [line for line in log.read().splitlines() if b"recall of" in line]


def test_users_who_want_the_same_tape_file_share_its_recall(store: Store, xrootd: Stack) -> None:
    alice, bob = store.alice, store.bob
    root = many(store, 20)
    put = alice.put(root)
    store.to_tape(put.holding_id)
    log_from = xrootd.log_path("xrootd").stat().st_size
    quick_tape(xrootd, mount=1.5)
    gets = [(person, person.directory(), person.client.get) for person in (alice, bob)]
    asked = [
        (person, target, get([root], target, holding_id=put.holding_id))
        for person, target, get in gets
    ]
    for person, _, get in asked:
        person.ended(get)
    assert [line.endswith(b"done") for line in recalls(xrootd, log_from)] == [True]
    same(root, asked[0][1] + root)
    assert sizes(asked[1][1] + root) == sizes(root)


def test_a_file_on_tape_explains_itself(store: Store, xrootd: Stack, tmp_path: Path) -> None:
    """What lies on tape is a plain tar that needs none of this software."""
    root = many(store, 5)
    copies = xrootd.site.xrootd.layout.data / "tape"
    before = set(copies.iterdir())
    put = store.alice.put(root)
    store.wait_safe(put.holding_id)
    (copy,) = set(copies.iterdir()) - before
    with tarfile.open(copy) as tar:
        first, *members = tar.getnames()
    subprocess.run(["tar", "-xf", copy, "-C", tmp_path], check=True)
    assert first == ".nearline/manifest.jsonl"
    assert len(members) == 6
    for number in range(5):
        name = os.fsdecode(root[1:] + b"/%04d" % number)
        assert (tmp_path / name).read_bytes() == Path(
            os.fsdecode(root), f"{number:04}"
        ).read_bytes()
