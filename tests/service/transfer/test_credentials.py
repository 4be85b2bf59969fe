"""Acting as users: judged by the kernel, thread by thread."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.kit.errors import PermissionDenied
from services.transfer.credentials import Credentials, acting_as, lookup, privileged

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="acting as other users needs root")
ALICE = Credentials(20001, 20001, (20001, 30001))
BOB = Credentials(20002, 20002, (20002,))


def identity() -> dict[str, str]:
    """The kernel's account of this thread."""
    lines = Path("/proc/thread-self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: " ".join(fields[name].split()) for name in ("Uid", "Gid", "Groups", "CapEff")}


@pytest.fixture
def open_tmp() -> Iterator[Path]:
    """A directory that every user may reach; pytest closes its own to all but this one."""
    with tempfile.TemporaryDirectory(prefix="nearline-users-") as name:
        os.chmod(name, 0o711)
        yield Path(name)


@needs_root
def test_the_identity_is_taken_and_given_back() -> None:
    before = identity()
    with acting_as(ALICE):
        inside = identity()
    assert inside["Uid"].split()[3] == "20001"
    assert inside["Gid"].split()[3] == "20001"
    assert inside["Groups"] == "20001 30001"
    assert int(inside["CapEff"], 16) == 0
    assert identity() == before


@needs_root
def test_an_error_gives_the_identity_back() -> None:
    before = identity()

    def fail() -> None:
        with acting_as(ALICE):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert identity() == before


@needs_root
def test_threads_act_for_different_users_at_once(open_tmp: Path) -> None:
    """The kernel lets each of many threads read its own user's file and no other's, all at once."""
    users = [Credentials(21000 + n, 21000 + n, (21000 + n,)) for n in range(6)]
    for user in users:
        path = open_tmp / str(user.uid)
        path.write_text(str(user.uid))
        os.chown(path, user.uid, user.gid)
        path.chmod(0o600)
    barrier = threading.Barrier(len(users) + 1)
    before = identity()

    def attempt(user: Credentials) -> list[str]:
        outcomes = []
        for _ in range(50):
            with acting_as(user):
                barrier.wait()
                outcomes += [f"{other.uid}:{read(open_tmp / str(other.uid))}" for other in users]
                barrier.wait()
        assert identity() == before
        return outcomes

    def read(path: Path) -> str:
        try:
            return path.read_text()
        except PermissionError:
            return "denied"

    with ThreadPoolExecutor(len(users)) as pool:
        results = [pool.submit(attempt, user) for user in users]
        for _ in range(50):
            barrier.wait()
            assert identity() == before  # this thread is not touched by the others
            assert {read(open_tmp / str(u.uid)) for u in users} == {str(u.uid) for u in users}
            barrier.wait()
        for user, result in zip(users, results, strict=True):
            expected = [f"{u.uid}:{u.uid if u == user else 'denied'}" for u in users]
            assert result.result() == expected * 50


@needs_root
def test_supplementary_groups_open_and_close_files(open_tmp: Path) -> None:
    shared = open_tmp / "shared"
    shared.write_text("for the group")
    os.chown(shared, 1, 30001)
    shared.chmod(0o040)
    with acting_as(ALICE):
        assert shared.read_text() == "for the group"
    with acting_as(BOB), pytest.raises(PermissionError):
        shared.read_text()


@needs_root
def test_created_files_belong_to_the_user(open_tmp: Path) -> None:
    open_tmp.chmod(0o777)
    with acting_as(BOB):
        (open_tmp / "mine").write_text("")
        with pytest.raises(PermissionError):
            os.chown(open_tmp / "mine", 0, 0)
    info = (open_tmp / "mine").stat()
    assert (info.st_uid, info.st_gid) == (20002, 20002)


@needs_root
def test_a_thread_started_inside_is_healed_by_its_next_user(open_tmp: Path) -> None:
    secret = open_tmp / "secret"
    secret.write_text("bob's")
    os.chown(secret, BOB.uid, BOB.gid)
    secret.chmod(0o600)
    pool = ThreadPoolExecutor(1)
    with acting_as(ALICE):
        inherited = pool.submit(identity).result()
    assert inherited["Uid"].split()[3] == "20001"

    def as_bob() -> tuple[str, dict[str, str]]:
        with acting_as(BOB):
            text = secret.read_text()
        return text, identity()

    text, after = pool.submit(as_bob).result()
    assert text == "bob's"
    assert after == identity()
    pool.shutdown()


@needs_root
def test_a_thread_that_cannot_get_back_ends_the_process() -> None:
    program = """
        from services.transfer import credentials as c
        import os
        with c.acting_as(c.Credentials(20001, 20001)):
            os.write(1, b"in")
            _, sets = c._capabilities()
            for part in sets:
                part.permitted = part.effective = 0
            header = c._Header(c._CAPABILITY_VERSION, 0)
            c._call(c._calls().capset, c.ctypes.byref(header), sets)
        os.write(1, b"out")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, check=False
    )
    assert done.returncode == -6
    assert b"in" in done.stdout
    assert b"out" not in done.stdout
    assert b"cannot restore the identity" in done.stderr


def test_root_is_never_served() -> None:
    with pytest.raises(PermissionDenied) as caught, acting_as(Credentials(0, 0)):
        pass
    assert caught.value.reason == "ROOT_REFUSED"


@needs_root
def test_without_privilege_only_the_own_user_is_served() -> None:
    program = """
        import os
        from services.kit.errors import PermissionDenied
        from services.transfer.credentials import Credentials, acting_as, privileged
        os.setgroups([]); os.setgid(20001); os.setuid(20001)
        assert not privileged()
        with acting_as(Credentials(20001, 20001)):
            print("own")
        for uid in (20002, 0):
            try:
                with acting_as(Credentials(uid, 20002)):
                    print("wrong")
            except PermissionDenied as error:
                print(error.reason, error.message)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        check=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "own"
    assert lines[1].startswith("NOT_PRIVILEGED transfer runs as uid 20001")
    assert lines[2].startswith("ROOT_REFUSED")
    assert len(lines) == 3


def test_privilege_is_known() -> None:
    assert privileged() == (os.geteuid() == 0)


def test_lookup_asks_the_name_service() -> None:
    found = lookup("nobody")
    assert found.uid != 0
    assert found.gid in found.gids


@pytest.mark.parametrize("name", ["no-such-user-here", "a\0b", ""])
def test_unknown_users_are_refused(name: str) -> None:
    with pytest.raises(PermissionDenied) as caught:
        lookup(name)
    assert caught.value.reason == "UNKNOWN_USER"
