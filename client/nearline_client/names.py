"""How a POSIX name, any bytes but NUL, travels as a proto3 string, JSON and PostgreSQL text.

The wire form of a name is its UTF-8 text. A byte that cannot stay as it is becomes the one private
character U+10FE00 + byte:

- bytes that are not part of valid UTF-8,
- the bytes of control characters (C0, DEL, C1), U+2028 and U+2029, so that a name is always one
  line and ``find -1`` can feed ``getlist``,
- the bytes of characters in the escape range U+10FE00..U+10FEFF themselves, so that no two names
  share a wire form.

The mapping is injective: ``decode(encode(name)) == name`` for every name. Several strings may
decode to one name (an escaped letter, for instance); `canonical` gives the one that `encode` makes,
and only that one may be stored or compared.
"""

from __future__ import annotations

import os
import re

MAX_COMPONENT_BYTES = 255
MAX_PATH_BYTES = 4096

_ESCAPE = 0x10FE00
_MUST_ESCAPE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\udc80-\udcff\U0010fe00-\U0010feff]")
_ESCAPED = re.compile("[\U0010fe00-\U0010feff]")


class PathError(ValueError):
    """A path that cannot be accepted; the message says why and what is accepted.

    ``reason`` is one of EMPTY, NOT_ABSOLUTE, PARENT_REFERENCE, NUL_BYTE, NOT_UNICODE,
    COMPONENT_TOO_LONG and PATH_TOO_LONG.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def encode(name: bytes) -> str:
    """The wire form of a name or path. Any bytes are accepted (NUL becomes an escape too)."""
    text = name.decode("utf-8", "surrogateescape")
    # Every character that must be escaped is unprintable, so most names end here.
    if text.isprintable():
        return text
    return _MUST_ESCAPE.sub(_escape_match, text)


def decode(wire: str) -> bytes:
    """The bytes of a wire form, canonical or not.

    Raises `PathError` (a ValueError) where no POSIX name has this form: it holds a NUL or a
    lone surrogate.
    """
    try:
        name = wire.encode("utf-8")
    except UnicodeEncodeError:
        raise PathError(
            "NOT_UNICODE",
            f"name {_shown(wire)} holds a lone surrogate;"
            " send a byte that is not UTF-8 as U+10FE00+byte",
        ) from None
    if not wire.isprintable() and _ESCAPED.search(wire):
        name = _unescape(wire)
    if b"\0" in name:
        raise PathError(
            "NUL_BYTE", f"name {_shown(wire)} holds a NUL byte, which no file name can have"
        )
    return name


def canonical(wire: str) -> str:
    """The wire form that `encode` gives to the same name. Raises like `decode`."""
    return wire if wire.isprintable() else encode(decode(wire))


def is_canonical(wire: str) -> bool:
    """Whether this is the one wire form of some name."""
    try:
        return canonical(wire) == wire
    except PathError:
        return False


def from_os(name: str) -> str:
    """The wire form of a name as Python's ``sys.argv`` and ``os`` functions give it."""
    return encode(os.fsencode(name))


def to_os(wire: str) -> str:
    """A name for Python's ``os`` functions, from its wire form. Raises like `decode`."""
    return os.fsdecode(decode(wire))


def clean_path(wire: str) -> str:
    """The canonical wire form of an absolute path: no ``//``, no ``.``, no trailing slash.

    Raises `PathError` for a path that is empty, relative or too long, or that has ``..``.
    ``..`` is refused rather than folded, as folding changes the meaning where a directory
    before it is a symbolic link.
    """
    return encode(clean_path_bytes(decode(wire)))


def clean_path_bytes(path: bytes) -> bytes:
    """`clean_path` for raw bytes."""
    if not path:
        raise PathError("EMPTY", "the path is empty; give an absolute path")
    if not path.startswith(b"/"):
        raise PathError(
            "NOT_ABSOLUTE", f"path {_shown(encode(path))} is relative; give an absolute path"
        )
    if b"\0" in path:
        raise PathError("NUL_BYTE", f"path {_shown(encode(path))} holds a NUL byte")
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    _check_components(path, parts)
    clean = b"/" + b"/".join(parts)
    if len(clean) > MAX_PATH_BYTES:
        raise PathError(
            "PATH_TOO_LONG",
            f"path {_shown(encode(path))} has {len(clean)} bytes;"
            f" at most {MAX_PATH_BYTES} are accepted",
        )
    return clean


def _check_components(path: bytes, parts: list[bytes]) -> None:
    if b".." in parts:
        raise PathError(
            "PARENT_REFERENCE",
            f"path {_shown(encode(path))} has a '..' component; give the path without it",
        )
    longest = max(map(len, parts), default=0)
    if longest > MAX_COMPONENT_BYTES:
        raise PathError(
            "COMPONENT_TOO_LONG",
            f"path {_shown(encode(path))} has a component of {longest} bytes;"
            f" at most {MAX_COMPONENT_BYTES} are accepted",
        )


def _shown(wire: str) -> str:
    return ascii(wire) if len(wire) <= 100 else ascii(wire[:100]) + "…"


def _escape_match(match: re.Match[str]) -> str:
    raw = match.group().encode("utf-8", "surrogateescape")
    return "".join(chr(_ESCAPE + byte) for byte in raw)


def _unescape(wire: str) -> bytes:
    # Splitting at the escapes keeps the runs between them, which are encoded as they are.
    parts = re.split("([\U0010fe00-\U0010feff])", wire)
    return b"".join(
        bytes((ord(part) - _ESCAPE,)) if _ESCAPED.fullmatch(part) else part.encode("utf-8")
        for part in parts
    )
