"""Text for people and JSON for programs. Texts of others cannot reach the terminal's controls."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

# Controls, marks and overrides of writing direction, line separators, lone surrogates, and the
# characters that stand for the bytes of odd names.
_HARMFUL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
    "\U0010fe00-\U0010feff]"
)
_MEASURED_ROWS = 200
_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def safe(text: str) -> str:
    """`text` with everything spelled out (`\\x1b`) that could control or confuse a terminal."""
    return text if text.isprintable() else _HARMFUL.sub(_spelled, text)


def one_line(text: str) -> str:
    """`safe` text without line breaks."""
    return safe(" ".join(text.split()))


def _spelled(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code >= 0x10FE00:
        code -= 0x10FE00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def human_size(size: int) -> str:
    """Bytes in the unit that fits: `512 B`, `1.5 KiB`."""
    if size < 1024:
        return f"{size} B"
    value, units = size / 1024, list(_UNITS)
    # 1023.95 would be shown as 1024.0.
    while value >= 1023.95 and len(units) > 1:
        value /= 1024
        del units[0]
    return f"{value:.1f} {units[0]}"


def local_time(timestamp: Timestamp) -> str:
    """A time in the zone of this machine, to the second."""
    try:
        moment = (_EPOCH + timedelta(seconds=timestamp.seconds)).astimezone()
    except (OverflowError, ValueError):
        return f"{timestamp.seconds} s since 1970"
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], empty: str) -> None:
    """Aligned columns; `>` before a title puts its column to the right. The cells are made safe.

    Widths are those of the first rows, so that a table of any length prints at once. Without rows
    `empty` goes to standard error.
    """
    cells = ([one_line(cell) for cell in row] for row in rows)
    first = list(islice(cells, _MEASURED_ROWS))
    if not first:
        click.echo(empty, err=True)
        return
    titles = [column.lstrip(">") for column in columns]
    widths = [max(map(text_width, column)) for column in zip(titles, *first, strict=True)]
    right = [column.startswith(">") for column in columns]
    for row in chain([titles], first, cells):
        padded = (_pad(*cell) for cell in zip(row, widths, right, strict=True))
        _print("  ".join(padded).rstrip())


def print_fields(fields: Iterable[tuple[str, str]]) -> None:
    """One `name  value` a line; empty values are left out."""
    shown = [(name, one_line(value)) for name, value in fields if value]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        _print(f"{name:{width}}  {value}")


def print_lines(lines: Iterable[str]) -> None:
    """Each as it is and in UTF-8, whatever the locale, so that another program can read it."""
    out = sys.stdout
    out.flush()
    for block in _blocks(lines):
        out.buffer.write(block)
        out.buffer.flush()


def print_json(messages: Iterable[Message]) -> None:
    """The proto3 JSON of each on a line, with the names of the contract and all fields."""
    from google.protobuf.json_format import MessageToJson

    for message in messages:
        # Everything but ASCII is escaped by JSON itself: any locale and terminal can take it.
        _print(
            MessageToJson(
                message,
                indent=None,
                preserving_proto_field_name=True,
                always_print_fields_with_no_presence=True,
            )
        )


def text_width(text: str) -> int:
    """Columns that `text` takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - text_width(text))
    return space + text if right else text + space


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")


def _blocks(lines: Iterable[str]) -> Iterator[bytes]:
    """Many lines at once: a million single writes take seconds."""
    each = iter(lines)
    while several := list(islice(each, 1000)):
        yield "".join(f"{line}\n" for line in several).encode()
