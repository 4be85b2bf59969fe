"""A directory goes to the cache, to tape, out of the cache, and comes back as it was."""

from __future__ import annotations

import os
import shutil

import pytest

from deploy.local.demo.make import Plan, make_tree
from deploy.local.demo.names import ODD_NAMES
from nearline.type.v1.task_pb2 import Task
from nearline_client import names
from tests.fixtures.store import GROUP, Person, Store, kind, needs_root, same, tiers

PLAN = Plan(files=400, large=(20_000_000,))


@pytest.fixture
def tree(store: Store) -> bytes:
    """Alice's directory with all that a file system can hold."""
    root = os.path.join(store.alice.directory(), b"data")
    with store.alice.acting():
        make_tree(root, PLAN)
    return root


def entries(root: bytes) -> int:
    return 1 + sum(len(directories) + len(files) for _, directories, files in os.walk(root))


def test_a_directory_comes_back_from_tape_as_it_was(store: Store, tree: bytes) -> None:
    alice = store.alice
    put = alice.put(tree, label=f"trip-{os.getpid()}")
    assert (put.files_total, put.files_done, put.files_failed) == (entries(tree), entries(tree), 0)
    stored = alice.files(holding_id=put.holding_id)
    assert len(stored) == entries(tree)
    assert {tuple(tiers(file)) for file in stored} == {("CACHE",)}
    assert {kind(file) for file in stored} == {"FILE", "DIRECTORY", "SYMLINK"}

    store.wait_safe(put.holding_id)
    assert {tuple(tiers(file)) for file in alice.files(holding_id=put.holding_id)} == {
        ("CACHE", "TAPE")
    }
    store.evict(put.holding_id)

    target = alice.directory()
    get = alice.get(tree, target=target, holding_id=put.holding_id)
    assert get.files_done == put.files_done
    assert get.bytes_done == put.bytes_total
    same(tree, target + tree)


def test_what_is_in_the_cache_comes_back_to_its_original_path(store: Store, tree: bytes) -> None:
    put = store.alice.put(tree)
    kept = tree + b" kept"
    shutil.move(tree, kept)
    store.alice.get(tree, holding_id=put.holding_id)
    same(kept, tree)


def test_a_get_replaces_what_was_changed_meanwhile(store: Store) -> None:
    alice = store.alice
    path = alice.file(alice.directory() + b"/file", b"stored\n")
    put = alice.put(path)
    alice.file(path, b"changed and longer\n", 0o600)
    alice.get(path, holding_id=put.holding_id)
    with open(path, "rb") as stream:
        assert stream.read() == b"stored\n"
    assert os.stat(path).st_mode & 0o777 == 0o644


def test_names_of_any_bytes_pass_from_find_to_getlist(store: Store) -> None:
    alice = store.alice
    source = alice.directory()
    for number, name in enumerate(ODD_NAMES):
        alice.file(source + b"/" + name, b"%d\n" % number)
    raw = b"\0".join(source + b"/" + name for name in ODD_NAMES)
    label = f"odd-{os.path.basename(source).decode()}"
    done = alice.nlds("putlist", "--null", "-w", "-g", GROUP, "-l", label, "-", stdin=raw)
    assert done.returncode == 0, done.stderr

    found = alice.nlds("find", "-1", "-l", label)
    assert found.returncode == 0, found.stderr
    assert len(found.stdout.splitlines()) == len(ODD_NAMES)

    target = alice.directory()
    done = alice.nlds("getlist", "-w", "-l", label, "-r", target, "-", stdin=found.stdout)
    assert done.returncode == 0, done.stderr
    for number, name in enumerate(ODD_NAMES):
        with open(target + source + b"/" + name, "rb") as stream:
            assert stream.read() == b"%d\n" % number


def test_a_name_like_an_option_is_put_from_its_directory(store: Store) -> None:
    alice = store.alice
    source, target = alice.directory(), alice.directory()
    alice.file(source + b"/-rf", b"harmless\n")
    done = alice.nlds("put", "-w", "-g", GROUP, "--", "-rf", cwd=source)
    assert done.returncode == 0, done.stderr
    done = alice.nlds("get", "-w", "-r", target, "--", "-rf", cwd=source)
    assert done.returncode == 0, done.stderr
    assert os.listdir(target + source) == [b"-rf"]


@needs_root
def test_what_comes_back_belongs_to_who_gets_it(store: Store) -> None:
    alice, bob = store.alice, store.bob
    path = alice.file(alice.directory() + b"/file", mode=0o640)
    put = alice.put(path)
    target = bob.directory()
    bob.get(path, target=target, holding_id=put.holding_id)
    restored = os.stat(target + path)
    assert (restored.st_uid, restored.st_gid) == (bob.ids.uid, bob.ids.gid)
    assert restored.st_mode & 0o7777 == 0o640
    assert owner(bob, target + path) == {bob.ids.uid}


def owner(person: Person, path: bytes) -> set[int]:
    """Uids of a path's directories up to the home, exclusive."""
    found = set()
    while (path := os.path.dirname(path)) and path != os.fsencode(
        person.store.stack.home(person.name)
    ):
        found.add(os.stat(path).st_uid)
    return found


def test_find_shows_what_was_stored(store: Store) -> None:
    alice = store.alice
    path = alice.file(alice.directory() + b"/a b\n", b"12345", 0o604)
    put = alice.put(path)
    (file,) = alice.files(path, exact=True, holding_id=put.holding_id)
    assert names.decode(file.path) == path
    assert (file.size, file.mode, file.uid) == (5, 0o604, alice.ids.uid)
    assert file.mtime.ToNanoseconds() == os.stat(path).st_mtime_ns
    assert (file.user, file.group, file.transaction_id) == ("alice", GROUP, put.id)
    assert file.digest == "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5"
    assert file.url.startswith(f"nearline:///{put.holding_id}/")


def test_names_of_one_file_that_come_back_apart_are_one_file_again(store: Store) -> None:
    alice = store.alice
    root = alice.directory()
    first = alice.file(root + b"/first", os.urandom(40 << 20))
    with alice.acting():
        os.link(first, root + b"/second")
    put = alice.put(root)
    target = alice.directory()
    get = alice.get(root, target=target, holding_id=put.holding_id)
    downloads = [task for task in alice.client.tasks(get.id) if task.kind == Task.DOWNLOAD]
    assert len(downloads) == 2
    same(root, target + root)
