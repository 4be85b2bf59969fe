"""Paths of people and lists of paths, without a service."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearline_client import names
from nearline_client.names import PathError
from nearline_client.paths import absolute, absolutes, raw, read_list

NAMES = st.binary(min_size=1, max_size=40).map(lambda b: b"/" + b.replace(b"\0", b"0"))


@given(NAMES)
def test_every_spelling_names_the_same_bytes(name: bytes) -> None:
    assert raw(name) == name
    assert raw(names.encode(name)) == name
    # A name of the private characters themselves can be given as bytes only.
    if not any(0x10FE00 <= ord(c) <= 0x10FEFF for c in name.decode("utf-8", "replace")):
        assert raw(os.fsdecode(name)) == name


@given(st.lists(NAMES))
def test_lists_of_wire_forms_and_of_raw_names(listed: list[bytes]) -> None:
    lines = "".join(f"{names.encode(name)}\n" for name in listed).encode()
    assert list(map(raw, read_list(io.BytesIO(lines)))) == listed
    ended = b"".join(name + b"\0" for name in listed)
    assert list(read_list(io.BytesIO(ended), null=True)) == listed


def test_long_lists_are_read_in_blocks() -> None:
    paths = [f"/d/{n}".encode() for n in range(100_000)]
    assert list(read_list(io.BytesIO(b"\n".join(paths)))) == paths


def test_list_that_is_no_list() -> None:
    with pytest.raises(PathError, match="--null"):
        list(read_list(io.BytesIO(b"x" * 2_000_000)))


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("a", "/cwd/a"),
        ("./a/", "/cwd/a"),
        (".", "/cwd"),
        ("..", "/"),
        ("../a", "/a"),
        ("../../../a", "/a"),
        ("/a//b/./c/", "/a/b/c"),
        ("/a/nothing-here/../c", "/a/c"),
        ("/", "/"),
        ("a\nb", "/cwd/a\U0010fe0ab"),
        (Path("a"), "/cwd/a"),
        (b"\xff", "/cwd/\U0010feff"),
        ("\udcff", "/cwd/\U0010feff"),
    ],
)
def test_absolute(given: str | bytes | Path, meant: str) -> None:
    assert absolute(given, b"/cwd") == meant


def test_relative_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(absolutes(["a", "/b"])) == [f"{tmp_path}/a", "/b"]


def test_links_stay_and_are_not_passed_backwards(tmp_path: Path) -> None:
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/away")
    assert absolute(f"{tmp_path}/link/x") == f"{tmp_path}/link/x"
    assert absolute(f"{tmp_path}/far/../link") == f"{tmp_path}/link"
    with pytest.raises(PathError, match="behind the symbolic link"):
        absolute(f"{tmp_path}/link/../x")


@pytest.mark.parametrize("path", ["", b"", b"/a\0b", "/" + "x" * 256])
def test_paths_that_cannot_be(path: str | bytes) -> None:
    with pytest.raises(PathError):
        absolute(path)
