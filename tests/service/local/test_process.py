"""The supervisor: what it keeps, what it ends and what it never touches."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local import procfs
from deploy.local.errors import StackError
from deploy.local.process import ProcessSpec, Supervisor
from deploy.local.wait import wait_until

FOREVER = "print('up', flush=True); import time; time.sleep(600)"
STUBBORN = f"import signal; signal.signal(15, signal.SIG_IGN); {FOREVER}"
PARENT = f"import subprocess; subprocess.Popen(['sleep', '600']); {FOREVER}"


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    supervisor = Supervisor(tmp_path)
    yield supervisor
    for name in supervisor.names():
        supervisor.end(name)


def python(supervisor: Supervisor, code: str, name: str = "part", **options: object) -> ProcessSpec:
    """A process that is ready when its log says so."""

    def ready() -> str | None:
        return None if "up" in supervisor.log_tail(name) else "silent"

    argv = (sys.executable, "-c", code)
    return ProcessSpec(name, argv, cwd=Path("/"), ready=ready, **options)  # type: ignore[arg-type]


def test_a_second_start_keeps_the_running_process(supervisor: Supervisor) -> None:
    supervisor.start(python(supervisor, PARENT))
    first = supervisor.pid("part")
    supervisor.start(python(supervisor, PARENT))
    assert supervisor.pid("part") == first is not None


def test_another_program_finds_and_stops_the_process(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    supervisor.start(python(supervisor, PARENT))
    other = Supervisor(tmp_path)
    assert other.pid("part") == supervisor.pid("part")
    other.stop("part")
    assert supervisor.pid("part") is None


def test_a_changed_file_restarts_the_process(supervisor: Supervisor, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("one")
    supervisor.start(python(supervisor, PARENT, files=(config,)))
    first = supervisor.pid("part")
    config.write_text("two")
    supervisor.start(python(supervisor, PARENT, files=(config,)))
    assert supervisor.pid("part") not in (None, first)


def test_what_ignores_term_is_killed_after_the_bound(supervisor: Supervisor) -> None:
    supervisor.start(python(supervisor, STUBBORN, stop_timeout=0.2))
    pid = supervisor.pid("part")
    supervisor.stop("part")
    assert pid is not None
    assert procfs.inspect(pid) is None


def test_children_in_sessions_of_their_own_end_with_the_process(supervisor: Supervisor) -> None:
    code = "import subprocess; subprocess.Popen(['sleep', '600'], start_new_session=True)"
    supervisor.start(python(supervisor, f"{code}; {FOREVER}"))
    pid = supervisor.pid("part")
    assert pid is not None
    (child,) = procfs.descendants(pid)
    assert child.session != pid
    supervisor.stop("part")
    assert not procfs.still_runs(child)


def test_children_of_a_killed_process_are_ended_by_the_next_start(supervisor: Supervisor) -> None:
    supervisor.start(python(supervisor, PARENT))
    first = supervisor.pid("part")
    assert first is not None
    supervisor.kill("part", signal.SIGKILL)
    supervisor.wait_gone("part")
    assert list(procfs.members(first)), "the child should have outlived its parent"
    supervisor.start(python(supervisor, PARENT))
    assert not list(procfs.members(first))


def test_a_reused_pid_is_left_alone(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(python(supervisor, PARENT))
    supervisor.kill("part", signal.SIGKILL)
    supervisor.wait_gone("part")
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as stranger:
        record = tmp_path / "run" / "part.json"
        record.write_text(json.dumps({**json.loads(record.read_text()), "pid": stranger.pid}))
        assert supervisor.pid("part") is None
        supervisor.stop("part")
        assert stranger.poll() is None
        stranger.kill()


def test_an_exit_at_the_start_shows_the_log(supervisor: Supervisor) -> None:
    with pytest.raises(StackError, match="no such setting"):
        supervisor.start(python(supervisor, "raise SystemExit('no such setting')"))


def test_environment_secrets_are_not_inherited(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOMEBODYS_TOKEN", "secret")
    code = "import os, time; print('up', sorted(os.environ), flush=True); time.sleep(600)"
    supervisor.start(python(supervisor, code, env={"OWN": "1"}))
    assert "OWN" in supervisor.log_tail("part")
    assert "SOMEBODYS_TOKEN" not in supervisor.log_tail("part")


def test_a_killed_test_program_leaves_nothing_behind(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys, time
from pathlib import Path
from deploy.local.process import ProcessSpec, Supervisor
from deploy.local.watchdog import Watchdog
directory = Path({str(tmp_path / "stack")!r})
directory.mkdir()
Watchdog(directory)
supervisor = Supervisor(directory)
supervisor.start(ProcessSpec("part", ("sleep", "600"), cwd=Path("/")))
print(supervisor.pid("part"), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).parents[3]
    program = subprocess.run([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE)
    pid = int(program.stdout)
    wait_until(lambda: "it runs" if procfs.inspect(pid) else None, "end", 10.0)
    wait_until(lambda: "it exists" if (tmp_path / "stack").exists() else None, "removal", 10.0)
