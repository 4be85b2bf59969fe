"""Paths as people and programs give them, turned into what travels: absolute, in wire form.

A relative path is relative to the physical working directory (`os.getcwd`), and symbolic links are
never resolved: a link is stored and found under its own name. `..` is folded by text, as
`os.path.abspath` does, but only behind a component that is no symbolic link on this machine, where
folding means what the kernel means; behind a link it is refused, because either reading of it
would name another file than somebody expects.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from nearline_client import names
from nearline_client.names import PathError

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]
"""A path: bytes as they are; text as the system gives names, or in wire form as `find` does."""

_READ_BYTES = 256 * 1024


def raw(path: AnyPath) -> bytes:
    """The bytes of a path.

    Text that holds characters of the name encoding, as the path of a found file may, is taken as
    the wire form; give a name that really holds such private characters as bytes.
    """
    path = os.fspath(path)
    if isinstance(path, bytes):
        return path
    if not path.isprintable() and names.is_canonical(path):
        return names.decode(path)
    return os.fsencode(path)


def absolute(path: AnyPath, cwd: bytes | None = None) -> str:
    """The wire form of the absolute path. Raises PathError for one that nobody can have."""
    data = raw(path)
    if not data:
        raise PathError("EMPTY", "a path is empty; leave it out or name a file")
    if not data.startswith(b"/"):
        data = (os.getcwdb() if cwd is None else cwd) + b"/" + data
    return names.encode(names.clean_path_bytes(_without_parents(data)))


def absolutes(paths: Iterable[AnyPath]) -> Iterator[str]:
    """`absolute` of each, one by one, against the working directory of the first moment."""
    cwd: bytes | None = None
    for path in paths:
        cwd = os.getcwdb() if cwd is None else cwd
        yield absolute(path, cwd)


def pattern(text: AnyPath) -> str:
    """A regular expression over wire forms, which is taken as it is."""
    return names.encode(raw(text))


def read_list(stream: BinaryIO, *, null: bool = False) -> Iterator[str | bytes]:
    """The paths of a list: one a line, or ended by NUL; empty ones are left out.

    A line may be a raw name or what `find -1` printed (text, in wire form). Names that end in NUL
    are raw throughout.
    """
    for line in _split(stream, b"\0" if null else b"\n"):
        if line:
            yield line if null else _text_or_raw(line)


def _text_or_raw(line: bytes) -> str | bytes:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        return line
    # In a locale that is not UTF-8 a plain text would be encoded otherwise than it stands here.
    return line if text.isprintable() else text


def _split(stream: BinaryIO, end: bytes) -> Iterator[bytes]:
    """The pieces of a stream between ends, read in blocks, so that its length does not matter."""
    rest = b""
    while block := stream.read(_READ_BYTES):
        *pieces, rest = (rest + block).split(end)
        if len(rest) > _READ_BYTES:
            raise PathError(
                "PATH_TOO_LONG",
                f"an entry of the list has more than {_READ_BYTES} bytes;"
                " is this a list of paths, and does it need --null?",
            )
        yield from pieces
    yield rest


def _without_parents(path: bytes) -> bytes:
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." not in parts:
        return path
    kept: list[bytes] = []
    for part in parts:
        if part == b"..":
            _refuse_link(b"/" + b"/".join(kept), path)
            del kept[-1:]
        else:
            kept.append(part)
    return b"/" + b"/".join(kept)


def _refuse_link(directory: bytes, path: bytes) -> None:
    if os.path.islink(directory):
        raise PathError(
            "PARENT_REFERENCE",
            f"path {names.encode(path)!a} has '..' behind the symbolic link"
            f" {names.encode(directory)!a}; give the path without '..'",
        )
