"""What a request may say: pure checks that name the field and what to do."""

import re
import uuid
from collections.abc import Iterable, Mapping

from nearline_client import names
from services.kit.errors import InvalidArgument

MOST_TEXT = 255
MOST_TAGS = 64
MOST_PATHS = 1000
MOST_PATTERN = 1024
MOST_PIN_DAYS = 366

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def transaction_id(text: str, field: str = "transaction_id") -> str:
    """The id in its one spelling (lower case with hyphens)."""
    try:
        return str(uuid.UUID(text))
    except ValueError as error:
        raise _invalid(field, "must be a UUID, made anew by the client for each request") from error


def label(text: str, field: str = "label") -> str:
    """A label, tag key or tag value: at most 255 printable characters."""
    if len(text) > MOST_TEXT:
        raise _invalid(field, f"has {len(text)} characters; at most {MOST_TEXT} are accepted")
    if _CONTROL.search(text):
        raise _invalid(field, "holds control characters; leave them out")
    return text


def pattern(text: str, field: str) -> str:
    """A regular expression; its syntax is the database's to judge."""
    if len(text) > MOST_PATTERN or "\0" in text:
        raise _invalid(field, f"must be a regular expression of at most {MOST_PATTERN} characters")
    return text


def tags(pairs: Mapping[str, str], field: str = "tags") -> Mapping[str, str]:
    """Tags with non-empty keys."""
    if len(pairs) > MOST_TAGS:
        raise _invalid(field, f"has {len(pairs)} tags; at most {MOST_TAGS} are accepted")
    for key, value in pairs.items():
        if not key:
            raise _invalid(field, "has a tag without a key; write key:value")
        label(key, field)
        label(value, field)
    return pairs


def number(value: int, field: str, *, least: int = 0, most: int | None = None) -> int:
    """A count or number between ``least`` and ``most``."""
    if value < least or (most is not None and value > most):
        bound = "" if most is None else f" and at most {most}"
        raise _invalid(field, f"is {value}; it must be at least {least}{bound}")
    return value


def path(wire: str, field: str) -> str:
    """A clean absolute path in canonical wire form."""
    try:
        return names.clean_path(wire)
    except names.PathError as error:
        raise _invalid(field, str(error)) from error


def paths(wires: Iterable[str], first: int, *, regex: bool) -> list[str]:
    """A batch of 1 to 1000 paths, or of regular expressions."""
    batch = list(wires)
    if not 1 <= len(batch) <= MOST_PATHS:
        raise _invalid("paths.paths", f"has {len(batch)} paths; send 1 to {MOST_PATHS} at a time")
    check = pattern if regex else path
    return [check(wire, f"paths.paths[{position}]") for position, wire in enumerate(batch, first)]


def _invalid(field: str, problem: str) -> InvalidArgument:
    return InvalidArgument("INVALID_REQUEST", f"{field} {problem}", violations=[(field, problem)])
