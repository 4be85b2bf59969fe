"""Settings written as TOML read back as the same values."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.local.toml import encode, merged

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
simple = texts | st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.floats(allow_nan=False)
values = st.recursive(
    simple | st.lists(simple, max_size=3),
    lambda inner: st.dictionaries(texts, inner, max_size=3),
)


@given(st.dictionaries(texts, values, max_size=4))
def test_any_table_survives(table: dict[str, object]) -> None:
    assert tomllib.loads(encode(table).decode()) == table  # type: ignore[arg-type]


def test_paths_are_written_as_text() -> None:
    assert encode({"path": Path("/a b")}) == b'path = "/a b"\n'


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(TypeError, match="NoneType"):
        encode({"nothing": None})  # type: ignore[dict-item]


def test_merging_replaces_single_settings() -> None:
    base = {"server": {"listen": "a", "grace": 1}, "log": "json"}
    assert merged(base, {"server": {"grace": 2}}) == {
        "server": {"listen": "a", "grace": 2},
        "log": "json",
    }
