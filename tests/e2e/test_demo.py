"""The demonstration as `make demo` runs it, on a small directory."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.parts import temporary_directory


@pytest.fixture(scope="module")
def outcome() -> tuple[subprocess.CompletedProcess[str], Path]:
    """What a run printed, and the directory of its stack, which the run itself has removed."""
    with temporary_directory("demo") as directory:
        # The test user must reach the home directory below it.
        directory.chmod(0o711)
        stack = directory / "stack"
        command = [sys.executable, "-m", "deploy.local.demo", "--dir", str(stack)]
        run = subprocess.run(
            [*command, "--files", "200", "--large", "9", "--limit", "120"],
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        return run, stack


@pytest.mark.slow
def test_everything_comes_back(outcome: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    run, _ = outcome
    assert run.returncode == 0, run.stdout + run.stderr
    *_, entries, files, size, verdict = run.stdout.splitlines()
    assert re.fullmatch(r"entries = 5\d\d", entries)
    assert re.fullmatch(r"files = 3\d\d", files)
    assert int(size.removeprefix("bytes = ")) > 9_000_000
    assert verdict == "verified = all"


@pytest.mark.slow
def test_it_shows_where_the_files_are(
    outcome: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    text = outcome[0].stdout
    total = re.search(r"entries = (\d+)", text)
    assert total
    count = total[1]
    assert f"in the cache {count}, on tape {count} ({count} safe), only on tape 0" in text
    assert f"in the cache 0, on tape {count} ({count} safe), only on tape {count}" in text


@pytest.mark.slow
def test_one_member_is_read_not_the_aggregate(
    outcome: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    found = re.search(
        r"the file has ([\d,]+) bytes; the tape side read ([\d,]+)", outcome[0].stdout
    )
    assert found
    size, read = (int(number.replace(",", "")) for number in found.groups())
    # The whole is hundreds of times as large; requests and stats are read from sockets too.
    assert size <= read < size + 200_000


@pytest.mark.slow
def test_nothing_is_left(outcome: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    assert not outcome[1].exists()
