"""Text for people: sizes, times, alignment, and nothing that a terminal would obey."""

from __future__ import annotations

import unicodedata

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from nearline_client.cli.render import (
    human_size,
    local_time,
    one_line,
    print_table,
    safe,
    text_width,
)


@given(st.text(st.characters()))
def test_nothing_controls_the_terminal(text: str) -> None:
    shown = safe(text)
    assert all(
        unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp") for character in shown
    )
    assert "\u202e" not in shown
    shown.encode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 日本 👍", "plain é 日本 👍"),
        ("a\x1b[31m", "a\\x1b[31m"),
        ("\u202eabc", "\\u202eabc"),
        ("\U0010feff", "\\xff"),
    ],
)
def test_safe(text: str, shown: str) -> None:
    assert safe(text) == shown


def test_one_line() -> None:
    assert one_line("two\n  lines\t") == "two lines"


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (10 * 1024**4, "10.0 TiB"),
        (2**63 - 1, "8.0 EiB"),
    ],
)
def test_human_size(size: int, shown: str) -> None:
    assert human_size(size) == shown


def test_times_of_any_year() -> None:
    assert local_time(Timestamp(seconds=86_400 * 365)).startswith("197")
    for seconds in (-62_135_596_800, 253_402_300_799, 10**17):
        assert local_time(Timestamp(seconds=seconds))


def test_columns_line_up(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("1", "日本", "x"), ("1000", "plain", "y"), ("2", "combi\u0301ned", "z")]
    print_table((">N", "NAME", "LAST"), rows, "nothing")
    lines = capsys.readouterr().out.splitlines()
    starts = [text_width(line[:-1]) for line in lines[1:]]
    assert starts == [16, 16, 16]
    assert lines[0] == "   N  NAME      LAST"


def test_empty_table_says_so_beside_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("A",), [], "nothing here")
    assert capsys.readouterr() == ("", "nothing here\n")
