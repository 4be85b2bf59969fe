"""Trees of files whose every byte is known from the seed."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from stat import S_ISDIR, S_ISLNK

from deploy.local.demo.names import ODD_NAMES
from nearline_client import names

MIB = 1 << 20


@dataclass(frozen=True)
class Entry:
    """One path: ``content`` is the hex SHA-256 of a file, the target of a link, else empty."""

    kind: str
    size: int = 0
    content: str = ""


@dataclass
class Tree:
    """Paths in wire form with what is there; the root is one of them."""

    root: bytes
    entries: dict[str, Entry] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """Paths of regular files."""
        return [path for path, entry in self.entries.items() if entry.kind == "file"]

    @property
    def bytes(self) -> int:
        """Bytes of the regular files."""
        return sum(entry.size for entry in self.entries.values())


def make_tree(root: bytes, rng: random.Random) -> Tree:
    """Make one of several sorts of trees at ``root``, which does not exist yet."""
    tree = Tree(root)
    _directory(tree, root)
    sort: Callable[[Tree, random.Random], None] = rng.choices(
        (_few, _many, _large, _odd), (4, 3, 2, 2)
    )[0]
    sort(tree, rng)
    return tree


def survey(root: bytes) -> dict[str, Entry]:
    """What lies below ``root``, without it; by wire form of the paths as seen from there."""
    return {names.encode(path[len(root) :]): _entry(path) for path in _below(root)}


def _few(tree: Tree, rng: random.Random) -> None:
    for number in range(rng.randint(1, 25)):
        _file(tree, b"file-%d" % number, rng, rng.choice((0, 1, 100, 5_000, 60_000)))


def _many(tree: Tree, rng: random.Random) -> None:
    for number in range(rng.randint(100, 400)):
        below = b"dir-%d/" % (number % 7)
        _file(tree, below + b"member-%d" % number, rng, rng.randint(1, 12_000))


def _large(tree: Tree, rng: random.Random) -> None:
    _file(tree, b"large", rng, rng.randint(9 * MIB, 26 * MIB))
    _file(tree, b"beside it", rng, 1000)


def _odd(tree: Tree, rng: random.Random) -> None:
    for name in rng.sample(ODD_NAMES, 8):
        _file(tree, name, rng, rng.randint(0, 3000))
    _directory(tree, tree.root + b"/empty \xff directory")
    for target in (b"file-1", b"/nowhere/at all", b"\xfe\n"):
        path = tree.root + b"/link-%d" % len(tree.entries)
        os.symlink(target, path)
        tree.entries[names.encode(path)] = _entry(path)


def _directory(tree: Tree, path: bytes) -> None:
    os.mkdir(path)
    tree.entries[names.encode(path)] = Entry("directory")


def _file(tree: Tree, name: bytes, rng: random.Random, size: int) -> None:
    path = tree.root + b"/" + name
    parent = os.path.dirname(path)
    if names.encode(parent) not in tree.entries:
        _directory(tree, parent)
    content = rng.randbytes(size)
    with open(path, "wb") as stream:
        stream.write(content)
    tree.entries[names.encode(path)] = Entry("file", size, hashlib.sha256(content).hexdigest())


def _below(root: bytes) -> Iterator[bytes]:
    for directory, below, files in os.walk(root):
        for name in (*below, *files):
            yield os.path.join(directory, name)


def _entry(path: bytes) -> Entry:
    info = os.lstat(path)
    if S_ISDIR(info.st_mode):
        return Entry("directory")
    if S_ISLNK(info.st_mode):
        return Entry("symlink", 0, names.encode(os.readlink(path)))
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Entry("file", info.st_size, digest)
