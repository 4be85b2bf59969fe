"""Crash points: all that are in the code are known, and one that is armed ends the process."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.kit import crash
from services.kit.config import ConfigError

SERVICES = Path(crash.__file__).parents[1]
POINT = "pack.stored"


def _used() -> Iterator[str]:
    for path in SERVICES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "crash.point":
                yield ast.literal_eval(node.args[0])


def test_every_point_stands_in_the_code_once() -> None:
    assert Counter(_used()) == Counter(crash.POINTS.keys())


def _run(wanted: str, visits: str) -> subprocess.CompletedProcess[str]:
    code = f"from services.kit import crash\ncrash.arm({wanted!r})\n{visits}\nprint('alive')"
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=SERVICES.parent,
    )


def test_an_armed_point_ends_the_process_at_once() -> None:
    done = _run(POINT, f"try:\n  crash.point({POINT!r})\nfinally:\n  print('cleaned up')")
    assert (done.returncode, "cleaned" in done.stdout) == (crash.EXIT_CODE, False)
    assert POINT in done.stderr


def test_other_points_and_earlier_visits_are_passed() -> None:
    visits = f"crash.point('pack.recorded'); crash.point({POINT!r}); print('once')"
    done = _run(f"{POINT}:2", f"{visits}\ncrash.point({POINT!r})")
    assert (done.returncode, "alive" in done.stdout) == (crash.EXIT_CODE, False)
    done = _run(f"{POINT}:2", visits)
    assert (done.returncode, "alive" in done.stdout) == (0, True)


@pytest.mark.parametrize("wanted", ["no.such.point", f"{POINT}:0", f"{POINT}:x"])
def test_what_cannot_be_armed_is_refused(wanted: str) -> None:
    with pytest.raises(ConfigError, match=r"NEARLINE_CRASH"):
        crash.arm(wanted)
