"""Whole paths as directory and name, what lies below one, and what a pattern asks of a directory.

A directory is kept with its final slash: ``directory + name`` is the whole path, and everything
below ``/a`` is in directories that start with ``/a/``. The root is the empty name in ``/``.
"""

import hashlib
import re
import string
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote

from nearline_client import names
from services.catalog.rules import invalid

_LITERAL = frozenset(string.ascii_letters + string.digits + "/_-~ ,:;=@%&!#'\"<>")

# Paths that are clean at a glance, as nearly all are: printable, and short enough even if each
# character has four bytes.
_PLAIN = re.compile(r"(?:/(?!\.)[^/]{1,63})+")
_PLAIN_LENGTH = 1024


def clean(path: str, field: str) -> str:
    """``path`` if it is a clean absolute path in canonical wire form, else InvalidArgument."""
    if len(path) <= _PLAIN_LENGTH and path.isprintable() and _PLAIN.fullmatch(path):
        return path
    try:
        is_clean = names.clean_path(path) == path
    except names.PathError as error:
        raise invalid(field, str(error)) from error
    if not is_clean:
        raise invalid(field, f"{path[:100]!a} is not clean; send names.clean_path of it")
    return path


def split(path: str) -> tuple[str, str]:
    """Directory with final slash, and name, of a clean path."""
    slash = path.rindex("/") + 1
    return path[:slash], path[slash:]


def below(path: str) -> str:
    """The prefix of the directories of everything below a clean path."""
    return path if path.endswith("/") else path + "/"


def directory_hash(directory: str) -> bytes:
    """What stands for a directory where it must be unique: 32 bytes, as paths can reach 16 KiB."""
    return hashlib.sha256(directory.encode()).digest()


def after(prefix: str) -> str:
    """The least string above all that start with ``prefix``, which ends in a slash."""
    return prefix[:-1] + "0"


def outermost(prefixes: Iterable[str]) -> list[str]:
    """The prefixes that no other one covers, each once, in order of text."""
    kept: list[str] = []
    for prefix in sorted(set(prefixes)):
        if not kept or not prefix.startswith(kept[-1]):
            kept.append(prefix)
    return kept


def covered(directory: str, prefixes: frozenset[str]) -> bool:
    """Whether ``directory`` (with final slash) or one above it is among ``prefixes``."""
    return any(above in prefixes for above in _above(directory))


def url(holding_id: int, path: str) -> str:
    """``nearline:///HOLDING/PATH`` with the bytes of the path percent-encoded."""
    return f"nearline:///{holding_id}{quote(names.decode(path), safe='/')}"


@dataclass(frozen=True, slots=True)
class Hint:
    """What each match of a pattern has in its directory: ``text``, at the start if ``anchored``."""

    text: str
    anchored: bool


def directory_hint(pattern: str) -> Hint | None:
    """A text that the directory of every matching path holds, None if the pattern demands none.

    Reads only what is surely plain and stops at anything else, so it never claims too much. The
    last slash of a run of plain characters, and all before it, lies in the directory.
    """
    if pattern.startswith(("***", "(")) or "|" in pattern:
        return None
    anchored = pattern.startswith("^")
    runs = _runs(pattern[1:] if anchored else pattern)
    found = [
        Hint(run[: run.rindex("/") + 1], anchored and number == 0)
        for number, run in enumerate(runs)
        if "/" in run
    ]
    return max(found, key=lambda hint: (hint.anchored, len(hint.text)), default=None)


def _runs(pattern: str) -> list[str]:
    """Runs of characters that each match must hold; the first one starts where the pattern does."""
    runs, run, at = [], "", 0
    while at < len(pattern):
        char = pattern[at]
        if char == "\\" and at + 1 < len(pattern) and pattern[at + 1] in ".-+^$()[]{}*?/":
            run, at = run + pattern[at + 1], at + 2
        elif char in _LITERAL or ord(char) > 127:
            run, at = run + char, at + 1
        elif char in "*?.+":
            runs.append(run[:-1] if char in "*?" else run)
            run, at = "", at + 1
        else:
            # Brackets, groups, classes: the rest is not read. A bound may drop what it follows.
            return [*runs, run[:-1] if char == "{" else run]
    return [*runs, run]


@lru_cache(maxsize=4096)
def _above(directory: str) -> tuple[str, ...]:
    slashes = (at for at, char in enumerate(directory) if char == "/")
    return tuple(directory[: at + 1] for at in slashes)
