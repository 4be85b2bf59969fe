"""Compares two trees: every byte and every attribute that a store is to give back."""

from __future__ import annotations

import errno
import os
import stat
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import NamedTuple

_CHUNK = 1 << 20
_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symbolic link"}


@dataclass(frozen=True)
class Facts:
    """One entry of a tree, without its bytes. Times in nanoseconds since 1970.

    ``hard_link``: the first name below the root of the entry's inode, where it has several.
    """

    kind: str
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    link_target: bytes = b""
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    hard_link: bytes = b""


class Difference(NamedTuple):
    """What differs at a path, relative to both roots."""

    path: bytes
    what: str
    expected: object
    found: object

    def __str__(self) -> str:
        return f"{self.path!r}: {self.what} is {self.found!r}, expected {self.expected!r}"


@dataclass(frozen=True)
class Comparison:
    """What was compared: entries of all kinds, regular files, their bytes; and what differs."""

    entries: int
    files: int
    bytes: int
    differences: tuple[Difference, ...]


def compare(expected: bytes, found: bytes) -> Comparison:
    """Compare all below two roots, and the roots themselves. Reads every byte of both."""
    left, right = survey(expected), survey(found)
    differences = (*_differing_facts(left, right), *_differing_bytes(expected, found, left, right))
    files = [facts for facts in left.values() if facts.kind == "file"]
    return Comparison(
        len(left), len(files), sum(facts.size for facts in files), tuple(sorted(differences))
    )


def survey(root: bytes) -> dict[bytes, Facts]:
    """The facts of every entry by its path below ``root``, ``.`` for the root itself."""
    seen = {b".": os.lstat(root)}
    seen.update(_walk(root, b""))
    first = _first_names(seen)
    return {path: _facts(root, path, info, first) for path, info in seen.items()}


def _walk(root: bytes, below: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    directories = [below]
    while directories:
        directory = directories.pop()
        with os.scandir(os.path.join(root, directory)) as entries:
            for entry in entries:
                path = os.path.join(directory, entry.name)
                yield path, entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    directories.append(path)


def _first_names(seen: Mapping[bytes, os.stat_result]) -> dict[tuple[int, int], bytes]:
    names: defaultdict[tuple[int, int], list[bytes]] = defaultdict(list)
    for path, info in seen.items():
        if stat.S_ISREG(info.st_mode):
            names[info.st_dev, info.st_ino].append(path)
    return {inode: min(paths) for inode, paths in names.items() if len(paths) > 1}


def _facts(
    root: bytes,
    path: bytes,
    info: os.stat_result,
    first: Mapping[tuple[int, int], bytes],
) -> Facts:
    full, kind = os.path.join(root, path), stat.S_IFMT(info.st_mode)
    return Facts(
        kind=_KINDS.get(kind, f"special file {kind:o}"),
        # What a directory's size is, the file system decides.
        size=info.st_size if kind == stat.S_IFREG else 0,
        mode=stat.S_IMODE(info.st_mode),
        uid=info.st_uid,
        gid=info.st_gid,
        mtime_ns=info.st_mtime_ns,
        link_target=os.readlink(full) if kind == stat.S_IFLNK else b"",
        xattrs=_xattrs(full),
        hard_link=first.get((info.st_dev, info.st_ino), b""),
    )


def _xattrs(path: bytes) -> dict[str, bytes]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
        return {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in names
            if name.startswith("user.")
        }
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return {}


def _differing_facts(
    left: Mapping[bytes, Facts], right: Mapping[bytes, Facts]
) -> Iterator[Difference]:
    for path in left.keys() | right.keys():
        expected, found = left.get(path), right.get(path)
        if expected is None or found is None:
            yield Difference(path, "entry", _presence(expected), _presence(found))
            continue
        for each in fields(Facts):
            values = getattr(expected, each.name), getattr(found, each.name)
            if values[0] != values[1]:
                yield Difference(path, each.name, *map(_readable, (each.name,) * 2, values))


def _presence(facts: Facts | None) -> str:
    return facts.kind if facts else "absent"


def _readable(name: str, value: object) -> object:
    return f"{value:04o}" if name == "mode" else value


def _differing_bytes(
    expected: bytes, found: bytes, left: Mapping[bytes, Facts], right: Mapping[bytes, Facts]
) -> Iterator[Difference]:
    for path, facts in left.items():
        other = right.get(path)
        if other is None or facts.kind != "file" or other.kind != "file":
            continue
        at = _first_difference(os.path.join(expected, path), os.path.join(found, path))
        if at is not None:
            yield Difference(path, "content", "the same bytes", f"different from byte {at}")


def _first_difference(left: bytes, right: bytes) -> int | None:
    """Where two files begin to differ; None when they are the same."""
    at = 0
    with open(left, "rb", buffering=0) as one, open(right, "rb", buffering=0) as two:
        while True:
            pair = one.read(_CHUNK), two.read(_CHUNK)
            if pair[0] != pair[1]:
                return at + _common(*pair)
            if not pair[0]:
                return None
            at += len(pair[0])


def _common(left: bytes, right: bytes) -> int:
    differing = (at for at, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1])
    return next(differing, min(len(left), len(right)))
