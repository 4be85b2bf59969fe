"""The kernel decides: users' files are touched with the users' own rights, or fail one by one."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nearline.type.v1.transaction_pb2 import Transaction
from nearline_client import names
from tests.fixtures.store import GROUP, Person, Store, needs_root, watch_until

MIB = 1 << 20
OPEN = 0o755


@pytest.fixture
def shared(store: Store) -> bytes:
    """A directory in which everybody may make files."""
    return store.shared_directory()


def content(path: bytes) -> bytes:
    return Path(os.fsdecode(path)).read_bytes()


def tree_of(person: Person, parent: bytes, mode: int = OPEN) -> bytes:
    """A directory of this person in a shared one, with a file that all may read."""
    root = parent + b"/" + person.name.encode()
    person.file(root + b"/open", b"for all\n")
    os.chmod(root, mode)
    return root


# -- reading -------------------------------------------------------------------------------------


@needs_root
def test_what_one_may_not_read_fails_alone(store: Store, shared: bytes) -> None:
    root = tree_of(store.alice, shared)
    secret = store.alice.file(root + b"/secret", b"hers\n", 0o600)
    closed = store.alice.file(root + b"/closed/inside", b"hers\n")
    os.chmod(os.path.dirname(closed), 0o700)
    put = store.bob.put(root, expect="COMPLETE_WITH_ERRORS")
    assert store.bob.failures(put) == {
        names.encode(secret): "PERMISSION_DENIED",
        names.encode(os.path.dirname(closed)): "PERMISSION_DENIED",
    }
    target = store.bob.directory()
    store.bob.get(root + b"/open", target=target, holding_id=put.holding_id)
    assert content(target + root + b"/open") == b"for all\n"


@needs_root
def test_a_file_of_somebody_elses_home_cannot_be_put(store: Store) -> None:
    path = store.alice.file(store.alice.directory() + b"/file")
    put = store.bob.put(path, expect="FAILED")
    assert set(store.bob.failures(put).values()) == {"PERMISSION_DENIED"}


@pytest.mark.parametrize("path", ["/etc/hostname", "/root", "/", "/proc/self/environ"])
def test_paths_outside_the_roots_cannot_be_put(store: Store, path: str) -> None:
    put = store.alice.put(path, expect="FAILED")
    assert set(store.alice.failures(put).values()) == {"OUTSIDE_ROOTS"}


def test_links_are_stored_as_links_and_lead_nowhere_else(store: Store) -> None:
    alice = store.alice
    root = alice.directory()
    with alice.acting():
        os.symlink("/etc", root + b"/out")
        os.symlink("/etc/shadow", root + b"/shadow")
    put = alice.put(root)
    assert len(alice.files(holding_id=put.holding_id)) == 3
    target = alice.directory()
    alice.get(root, target=target, holding_id=put.holding_id)
    assert os.readlink(target + root + b"/out") == b"/etc"

    through = alice.put(root + b"/out/hostname", expect="FAILED")
    assert set(alice.failures(through).values()) == {"OUTSIDE_ROOTS"}


def test_missing_and_special_files_fail_alone(store: Store) -> None:
    alice = store.alice
    root = alice.directory()
    good = alice.file(root + b"/good")
    with alice.acting():
        os.mkfifo(root + b"/pipe")
    put = alice.put(root, root + b"/missing", good + b"/below", expect="COMPLETE_WITH_ERRORS")
    # What is below a file that is stored too is left out with it.
    assert alice.failures(put) == {names.encode(root + b"/pipe"): "UNSUPPORTED_TYPE"}
    put = alice.put(good, root + b"/missing", expect="COMPLETE_WITH_ERRORS")
    assert alice.failures(put) == {names.encode(root + b"/missing"): "NOT_FOUND"}


@contextmanager
def cache_held(store: Store) -> Iterator[None]:
    """The cache answers nobody inside the block, so uploads wait with their files open."""
    store.stack.kill("seaweed", signal.SIGSTOP)
    try:
        yield
    finally:
        store.stack.kill("seaweed", signal.SIGCONT)


def test_files_that_vanish_or_change_fail_alone(store: Store) -> None:
    alice = store.alice
    root = alice.directory()
    changing = alice.file(root + b"/a changing", os.urandom(60 * MIB))
    vanishing = alice.file(root + b"/b vanishing", os.urandom(9 * MIB))
    alice.file(root + b"/c staying", os.urandom(9 * MIB))
    with cache_held(store):
        put = alice.client.put([root], group=GROUP)
        watch_until(alice, put.id, lambda now: now.state == Transaction.TRANSFERRING)
        wait_until_open(store, changing)
        with open(changing, "ab") as stream:
            stream.write(b"more")
        os.unlink(vanishing)
    put = alice.ended(put, "COMPLETE_WITH_ERRORS")
    assert alice.failures(put) == {
        names.encode(changing): "CHANGED",
        names.encode(vanishing): "VANISHED",
    }
    stored = {
        os.path.basename(names.decode(file.path)) for file in alice.files(holding_id=put.holding_id)
    }
    assert stored == {os.path.basename(root), b"c staying"}


def wait_until_open(store: Store, path: bytes) -> None:
    """Wait until some process of transfer has the file open."""
    wanted = os.fsdecode(path)

    def probe() -> str | None:
        for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
            try:
                if os.readlink(descriptor) == wanted:
                    return None
            except OSError:
                continue
        return f"nobody has {wanted} open"

    store.wait(probe, "the upload")


# -- writing -------------------------------------------------------------------------------------


@pytest.fixture
def put_by_alice(store: Store) -> tuple[bytes, int]:
    """A directory with two files that alice has stored; and its holding."""
    root = store.alice.directory()
    store.alice.file(root + b"/one", b"one\n")
    store.alice.file(root + b"/two", b"two\n")
    return root, store.alice.put(root).holding_id


@needs_root
def test_a_target_of_somebody_else_is_not_written(
    store: Store, shared: bytes, put_by_alice: tuple[bytes, int]
) -> None:
    root, holding = put_by_alice
    target = tree_of(store.alice, shared)
    get = store.bob.get(root, target=target, holding_id=holding, expect="FAILED")
    assert set(store.bob.failures(get).values()) == {"PERMISSION_DENIED"}
    assert os.listdir(target) == [b"open"]
    # Nor to the original path, which is in alice's home.
    get = store.bob.get(root, holding_id=holding, expect="FAILED")
    assert set(store.bob.failures(get).values()) == {"PERMISSION_DENIED"}


@needs_root
def test_a_link_in_the_target_does_not_lead_out(
    store: Store, put_by_alice: tuple[bytes, int]
) -> None:
    root, holding = put_by_alice
    target = store.bob.directory()
    first = root.split(b"/")[1]
    with store.bob.acting():
        os.symlink("/etc", target + b"/" + first)
    get = store.bob.get(root, target=target, holding_id=holding, expect="FAILED")
    assert set(store.bob.failures(get).values()) == {"NOT_A_DIRECTORY"}
    assert not os.path.exists(b"/etc/" + root.split(b"/")[2])


@needs_root
def test_a_link_where_a_file_goes_is_replaced_not_followed(
    store: Store, put_by_alice: tuple[bytes, int]
) -> None:
    root, holding = put_by_alice
    target = store.bob.directory()
    victim = store.bob.file(store.bob.directory() + b"/victim", b"untouched\n")
    with store.bob.acting():
        os.makedirs(target + root)
        os.symlink(victim, target + root + b"/one")
    store.bob.get(root, target=target, holding_id=holding)
    assert content(victim) == b"untouched\n"
    assert content(target + root + b"/one") == b"one\n"
    assert not os.path.islink(target + root + b"/one")


@pytest.mark.parametrize("target", ["/etc/nearline", "/usr/nearline"])
def test_targets_outside_the_roots(
    store: Store, put_by_alice: tuple[bytes, int], target: str
) -> None:
    root, holding = put_by_alice
    get = store.alice.get(root, target=target, holding_id=holding, expect="FAILED")
    assert set(store.alice.failures(get).values()) == {"OUTSIDE_ROOTS"}
    assert not os.path.exists(target)


def test_a_directory_in_the_place_of_a_file(store: Store, put_by_alice: tuple[bytes, int]) -> None:
    root, holding = put_by_alice
    target = store.alice.directory()
    store.alice.file(target + root + b"/one/inside")
    get = store.alice.get(root, target=target, holding_id=holding, expect="COMPLETE_WITH_ERRORS")
    assert store.alice.failures(get) == {names.encode(root + b"/one"): "IS_A_DIRECTORY"}
    assert content(target + root + b"/two") == b"two\n"


def test_a_file_in_the_place_of_a_directory(store: Store, put_by_alice: tuple[bytes, int]) -> None:
    root, holding = put_by_alice
    target = store.alice.directory()
    store.alice.file(target + root)
    get = store.alice.get(root, target=target, holding_id=holding, expect="FAILED")
    assert set(store.alice.failures(get).values()) == {"NOT_A_DIRECTORY"}


@pytest.fixture
def full_disk(store: Store) -> Iterator[bytes]:
    """A file system of 1 MiB of alice's."""
    path = store.alice.directory()
    options = f"size=1m,uid={store.alice.ids.uid},gid={store.alice.ids.gid},mode=700"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@needs_root
def test_a_full_target_fails_the_files_that_do_not_fit(store: Store, full_disk: bytes) -> None:
    alice = store.alice
    root = alice.directory()
    alice.file(root + b"/large", bytes(3 * MIB))
    alice.file(root + b"/streamed", bytes(12 * MIB))
    alice.file(root + b"/small", b"fits\n")
    put = alice.put(root)
    get = alice.get(
        root, target=full_disk, holding_id=put.holding_id, expect="COMPLETE_WITH_ERRORS"
    )
    assert alice.failures(get) == {
        names.encode(root + b"/large"): "NO_SPACE",
        names.encode(root + b"/streamed"): "NO_SPACE",
    }
    # Nothing half-written is left.
    assert os.listdir(full_disk + root) == [b"small"]
