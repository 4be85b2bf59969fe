"""Writing the TOML files of the services from plain Python values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

Value: TypeAlias = "str | int | float | bool | Path | Sequence[Value] | Mapping[str, Value]"
Table: TypeAlias = Mapping[str, Value]


def encode(table: Table) -> bytes:
    """The TOML document of ``table``. Raises TypeError for a value that TOML does not know."""
    return ("\n".join(_lines(table, ())) + "\n").encode()


def merged(base: Table, changes: Table) -> Table:
    """``base`` with ``changes`` over it, table by table."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return result


def _lines(table: Table, name: tuple[str, ...]) -> list[str]:
    simple = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"{_key(key)} = {_value(value)}" for key, value in simple.items()]
    for key, value in table.items():
        if isinstance(value, Mapping):
            path = (*name, _key(key))
            lines += ["", f"[{'.'.join(path)}]", *_lines(value, path)]
    return lines


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else _text(key)


def _text(text: str) -> str:
    # A JSON string is a TOML basic string, but for DEL, which JSON leaves as it is.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | Path):
        return _text(str(value))
    if isinstance(value, Sequence):
        return f"[{', '.join(map(_value, value))}]"
    raise TypeError(f"TOML has no {type(value).__name__}")
