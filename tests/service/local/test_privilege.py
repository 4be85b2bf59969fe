"""What a server may do that root's stack runs as an unprivileged user."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local.privilege import Identity, unprivileged

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give rights away")


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A directory that only root can pass through, with a program and a directory in it."""
    tmp_path.chmod(0o700)
    (tmp_path / "data").mkdir()
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    return tmp_path


def run(identity: Identity, *command: str | Path) -> int:
    return subprocess.run([*identity.prefix, *map(str, command)], check=False).returncode


def test_programs_below_a_closed_directory_can_be_found_and_run(closed: Path) -> None:
    identity = unprivileged(closed / "program")
    assert run(identity, "test", "-x", closed / "program") == 0
    assert run(identity, closed / "program") == 0


def test_nothing_can_be_written_that_is_not_its_own(closed: Path) -> None:
    identity = unprivileged(closed / "program")
    assert run(identity, "touch", closed / "data" / "file") != 0
    os.chown(closed / "data", identity.uid, identity.gid)
    assert run(identity, "touch", closed / "data" / "file") == 0


def test_root_cannot_be_had_back(closed: Path) -> None:
    for identity in (unprivileged(closed / "program"), unprivileged(Path("/usr/bin/env"))):
        assert run(identity, sys.executable, "-c", "import os; os.setuid(0)") != 0


def test_open_directories_need_no_capability_at_all() -> None:
    status = subprocess.run(
        [*unprivileged(Path("/usr/bin/env")).prefix, "cat", "/proc/self/status"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    capabilities = [line.split()[1] for line in status.splitlines() if line.startswith("Cap")]
    assert {int(value, 16) for value in capabilities} == {0}
