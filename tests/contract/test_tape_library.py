"""The XRootD driver against the simulated library: off to tape, back, and through failures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.local.wait import wait_until
from services.kit.errors import AlreadyExists, Unavailable
from services.tape.endpoint import CHUNK_BYTES, Offline, TapeFileState, needs_stage
from services.tape.endpoints.xrootd import XRootDEndpoint
from tests.fixtures.tape import RunningRig, running_rig

DATA = os.urandom(5_000_000)


def connect(running: RunningRig) -> XRootDEndpoint:
    return XRootDEndpoint(running.rig.url, running.rig.keytab)


def new_path() -> str:
    return f"library/{uuid.uuid4().hex}/file"


def put(endpoint: XRootDEndpoint, path: str, data: bytes = DATA) -> None:
    with endpoint.create(path) as writer:
        writer.write(data)
        writer.commit()


def state(endpoint: XRootDEndpoint, path: str) -> TapeFileState:
    return endpoint.stat([path])[0]


def await_state(
    endpoint: XRootDEndpoint, path: str, wanted: Callable[[TapeFileState], bool]
) -> TapeFileState:
    def missing() -> str | None:
        now = state(endpoint, path)
        return None if wanted(now) else str(now)

    wait_until(missing, "state of the file", 30)
    return state(endpoint, path)


def await_gone(endpoint: XRootDEndpoint, path: str) -> None:
    def missing() -> str | None:
        try:
            return "it is there" if endpoint.stat([path])[0].exists else None
        except Unavailable as error:
            return str(error)

    wait_until(missing, "removal of the unfinished file", 60)


def run_python(program: str) -> str:
    """Run a program in a process of its own; returns what it printed."""
    imports = (
        "import os, pathlib\n"
        "from services.kit.errors import NearlineError\n"
        "from services.tape.endpoints.xrootd import XRootDEndpoint\n"
    )
    command = [sys.executable, "-c", imports + textwrap.dedent(program)]
    return subprocess.run(command, capture_output=True, text=True).stdout


def archive(endpoint: XRootDEndpoint, path: str, data: bytes = DATA) -> None:
    """Write a file and leave it on tape only."""
    put(endpoint, path, data)
    await_state(endpoint, path, lambda now: now.on_tape)
    endpoint.release([path])
    assert not state(endpoint, path).online


@pytest.fixture
def endpoint(xrootd_rig: RunningRig) -> XRootDEndpoint:
    return connect(xrootd_rig)


@pytest.fixture
def path() -> str:
    return new_path()


# -- the life of a file


def test_a_file_goes_to_tape_is_evicted_and_comes_back(endpoint: XRootDEndpoint, path: str) -> None:
    put(endpoint, path)
    written = state(endpoint, path)
    assert (written.exists, written.online, written.requested) == (True, True, False)
    safe = await_state(endpoint, path, lambda now: now.on_tape)
    assert safe.online
    assert not needs_stage(safe)

    endpoint.release([path])
    assert state(endpoint, path) == TapeFileState(path, True, None, False, True, False, "")
    assert needs_stage(state(endpoint, path))

    assert endpoint.stage([path])[path]
    # The bytes are there a moment before the request is over.
    back = await_state(endpoint, path, lambda now: now.online and not now.requested)
    assert back == TapeFileState(path, True, None, True, True, False, "")
    with endpoint.open(path) as reader:
        assert reader.read_many([(0, 10), (1_000_000, 77)]) == [
            DATA[:10],
            DATA[1_000_000:1_000_077],
        ]
        assert reader.read(0, len(DATA)) == DATA


def test_what_is_not_yet_on_tape_is_not_evicted(
    xrootd_rig: RunningRig, endpoint: XRootDEndpoint, path: str
) -> None:
    xrootd_rig.configure(migrate_delay=3600)
    put(endpoint, path)
    endpoint.release([path])
    assert state(endpoint, path).online
    assert not state(endpoint, path).on_tape


def test_an_offline_file_cannot_be_opened_and_keeps_its_size(
    endpoint: XRootDEndpoint, path: str
) -> None:
    archive(endpoint, path)
    with pytest.raises(Offline) as caught:
        endpoint.open(path)
    assert caught.value.reason == "TAPE_FILE_OFFLINE"
    assert caught.value.transient
    assert endpoint.stat([path], sizes=True)[0].size == len(DATA)
    with pytest.raises(AlreadyExists):
        endpoint.create(path)


def test_a_requested_file_is_not_asked_for_twice(
    xrootd_rig: RunningRig, endpoint: XRootDEndpoint, path: str
) -> None:
    archive(endpoint, path)
    xrootd_rig.configure(seek=0.5)
    endpoint.stage([path])
    waiting = state(endpoint, path)
    assert waiting.requested
    assert not waiting.online
    assert not needs_stage(waiting)
    await_state(endpoint, path, lambda now: now.online)


def test_each_stage_pins_the_copy_until_it_is_released(
    xrootd_rig: RunningRig, endpoint: XRootDEndpoint, path: str
) -> None:
    archive(endpoint, path)
    xrootd_rig.configure(seek=0.3)
    endpoint.stage([path])
    endpoint.stage([path])
    await_state(endpoint, path, lambda now: now.online)
    endpoint.stage([path])
    for online in (True, True, False):
        endpoint.release([path])
        assert state(endpoint, path).online is online


def test_one_missing_path_does_not_keep_the_others_from_being_released(
    endpoint: XRootDEndpoint,
) -> None:
    paths = [new_path() for _ in range(3)]
    for path in paths:
        put(endpoint, path)
        await_state(endpoint, path, lambda now: now.on_tape)
    endpoint.release([paths[0], new_path(), *paths[1:]])
    assert [now.online for now in endpoint.stat(paths)] == [False] * 3


def test_a_cancelled_stage_does_not_happen(
    xrootd_rig: RunningRig, endpoint: XRootDEndpoint, path: str
) -> None:
    other = new_path()
    for name in (path, other):
        archive(endpoint, name)
    xrootd_rig.configure(seek=0.5)
    requests = endpoint.stage([path])
    endpoint.cancel(requests)
    assert not state(endpoint, path).requested
    endpoint.stage([other])
    await_state(endpoint, other, lambda now: now.online)  # the drive passed the cancelled one
    assert not state(endpoint, path).online


def test_a_failed_recall_says_why_and_can_be_asked_for_again(
    xrootd_rig: RunningRig, endpoint: XRootDEndpoint, path: str
) -> None:
    archive(endpoint, path)
    xrootd_rig.configure(fail_recall=[path])
    endpoint.stage([path])
    failed = await_state(endpoint, path, lambda now: bool(now.error))
    assert "simulated tape error" in failed.error
    assert needs_stage(failed)
    xrootd_rig.configure()
    endpoint.stage([path])
    assert await_state(endpoint, path, lambda now: now.online).error == ""


def test_a_failed_migration_says_why_and_is_tried_again(
    xrootd_rig: RunningRig, endpoint: XRootDEndpoint, path: str
) -> None:
    xrootd_rig.configure(fail_migrate=[path])
    put(endpoint, path)
    failed = await_state(endpoint, path, lambda now: bool(now.error))
    assert not failed.on_tape
    xrootd_rig.configure()
    assert await_state(endpoint, path, lambda now: now.on_tape).error == ""


def test_a_rename_keeps_the_tape_copy(endpoint: XRootDEndpoint, path: str) -> None:
    archive(endpoint, path)
    renamed = new_path()
    endpoint.rename(path, renamed)
    endpoint.stage([renamed])
    await_state(endpoint, renamed, lambda now: now.online)
    with endpoint.open(renamed) as reader:
        assert reader.read(0, len(DATA)) == DATA


def test_an_empty_file_is_never_offline(endpoint: XRootDEndpoint, path: str) -> None:
    put(endpoint, path, b"")
    endpoint.release([path])
    assert state(endpoint, path).online


def test_a_big_batch_goes_out_and_comes_back(endpoint: XRootDEndpoint) -> None:
    prefix = f"library/{uuid.uuid4().hex}"
    paths = [f"{prefix}/{number}" for number in range(60)]
    for path in paths:
        put(endpoint, path, path.encode())

    def left(done: Callable[[TapeFileState], bool]) -> str | None:
        waiting = [now.path for now in endpoint.stat(paths) if not done(now)]
        return f"{len(waiting)} files" if waiting else None

    wait_until(lambda: left(lambda now: now.on_tape), "migration", 30)
    endpoint.release(paths)
    assert all(map(needs_stage, endpoint.stat(paths)))
    assert endpoint.stage(paths).keys() == set(paths)
    wait_until(lambda: left(lambda now: now.online), "recall", 30)
    with endpoint.open(paths[7]) as reader:
        assert reader.read(0, len(paths[7])) == paths[7].encode()


# -- who may come in, and with what


def test_without_the_keytab_nothing_is_seen(xrootd_rig: RunningRig, tmp_path: Path) -> None:
    server = f"root://127.0.0.1:{xrootd_rig.rig.port}"
    source = tmp_path / "source"
    source.write_bytes(b"forged")
    environment = {name: value for name, value in os.environ.items() if "SSS" not in name}
    environment["HOME"] = str(tmp_path)
    for command in (
        ["xrdfs", server, "ls", "/tape"],
        ["xrdfs", server, "query", "prepare", "0", "/tape/x"],
        ["xrdcp", str(source), f"{server}//tape/forged"],
    ):
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode != 0
        assert "Auth failed" in result.stderr
    assert not xrootd_rig.local("forged").exists()
    assert xrootd_rig.rig.keytab.stat().st_mode & 0o777 == 0o600


def test_a_wrong_keytab_is_told_of_as_such(xrootd_rig: RunningRig, tmp_path: Path) -> None:
    keytab = tmp_path / "keytab"
    keytab.write_text("0 u:tape g:tape n:nearline N:1 c:1 e:0 f:0 k:" + "ab" * 32 + "\n")
    keytab.chmod(0o600)
    result = run_python(
        f"""
        endpoint = XRootDEndpoint({xrootd_rig.rig.url!r}, pathlib.Path({str(keytab)!r}))
        try:
            endpoint.create("a/b")
        except NearlineError as error:
            print(error.reason, error.transient, error.message)
        """
    )
    assert result.startswith("TAPE_AUTH_FAILED True ")
    assert "keytab" in result


HOSTILE = [
    'quote" backslash\\ ',
    "new\nline",
    "a\n1 rm /tape/library/precious",
    "a\n1 closew /tape/library/precious",
    "tab\tand\x01control",
    '{"json":[]}',
]


def test_names_of_others_cannot_confuse_the_library(
    xrootd_rig: RunningRig, endpoint: XRootDEndpoint
) -> None:
    """Files that another client made: they reach tape too, and no event of theirs hits ours."""
    precious = f"library/{uuid.uuid4().hex}/precious"
    archive(endpoint, precious)
    directory = f"foreign/{uuid.uuid4().hex}"
    for name in HOSTILE:
        name = name.replace("library/precious", precious)
        put_raw(xrootd_rig, f"{directory}/{name}")
    local = xrootd_rig.local(directory)

    def missing() -> str | None:
        files = [path for path in local.rglob("*") if path.is_file()]
        left = [path for path in files if "user.tape.copy" not in os.listxattr(path)]
        return f"{left} are not on tape" if left or len(files) < len(HOSTILE) else None

    wait_until(missing, "migration", 20)
    endpoint.stage([precious])
    await_state(endpoint, precious, lambda now: now.online)


def put_raw(running: RunningRig, path: str) -> None:
    """Write a file past the driver, which would refuse the name."""
    from XRootD import client
    from XRootD.client.flags import OpenFlags

    query = f"?xrd.wantprot=sss&xrd.sss={running.rig.keytab}"
    file = client.File()
    url = f"root://127.0.0.1:{running.rig.port}//tape/{path}{query}"
    status, _ = file.open(url, OpenFlags.NEW | OpenFlags.MAKEPATH)
    assert status.ok, status.message
    assert file.write(b"theirs")[0].ok
    assert file.close()[0].ok


# -- failures, each on a rig of its own


@pytest.fixture
def own_rig() -> Iterator[RunningRig]:
    with running_rig() as running:
        yield running


def write_until_it_fails(endpoint: XRootDEndpoint, path: str, break_it: Callable[[], None]) -> None:
    with endpoint.create(path) as writer:
        writer.write(bytes(2 * CHUNK_BYTES))
        break_it()
        for _ in range(32):
            writer.write(bytes(CHUNK_BYTES))
        writer.commit()


def test_a_frozen_server_fails_the_write_and_keeps_nothing(own_rig: RunningRig, path: str) -> None:
    endpoint = connect(own_rig)
    group = own_rig.pid
    try:
        with pytest.raises(Unavailable) as caught:
            write_until_it_fails(endpoint, path, lambda: os.killpg(group, signal.SIGSTOP))
        assert caught.value.transient
        assert endpoint.healthy()
    finally:
        os.killpg(group, signal.SIGCONT)
    wait_until(endpoint.healthy, "the server to answer again", 60)
    put(endpoint, new_path())
    await_gone(endpoint, path)
    assert list(endpoint.list(path.rpartition("/")[0])) == []
    assert endpoint.healthy() is None


def test_a_killed_server_fails_the_write_and_keeps_nothing(own_rig: RunningRig, path: str) -> None:
    endpoint = connect(own_rig)
    with pytest.raises(Unavailable):
        write_until_it_fails(endpoint, path, lambda: own_rig.supervisor.kill("xrootd"))
    own_rig.supervisor.wait_gone("xrootd")
    own_rig.start()
    await_gone(endpoint, path)
    put(endpoint, path)
    assert state(endpoint, path).online


def test_a_killed_writer_leaves_nothing(own_rig: RunningRig, path: str) -> None:
    run_python(
        f"""
        rig, keytab = {own_rig.rig.url!r}, pathlib.Path({str(own_rig.rig.keytab)!r})
        XRootDEndpoint(rig, keytab).create({path!r}).write(bytes({CHUNK_BYTES}))
        os.kill(os.getpid(), 9)
        """
    )
    assert own_rig.local(path).exists()
    await_gone(connect(own_rig), path)


def test_pending_recalls_survive_a_kill(own_rig: RunningRig, path: str) -> None:
    endpoint = connect(own_rig)
    archive(endpoint, path)
    own_rig.configure(seek=3600)
    endpoint.stage([path])
    own_rig.supervisor.kill("xrootd")
    own_rig.supervisor.wait_gone("xrootd")
    own_rig.configure()
    own_rig.start()
    # Nobody asks again.
    await_state(connect(own_rig), path, lambda now: now.online and not now.requested)
    endpoint.release([path])
    assert not state(endpoint, path).online


def test_a_migration_that_was_due_survives_a_kill(own_rig: RunningRig, path: str) -> None:
    own_rig.configure(migrate_delay=3600)
    put(connect(own_rig), path)
    own_rig.supervisor.kill("xrootd")
    own_rig.supervisor.wait_gone("xrootd")
    own_rig.configure()
    own_rig.start()
    await_state(connect(own_rig), path, lambda now: now.on_tape)


def test_removed_files_leave_the_tape_and_others_stay(own_rig: RunningRig) -> None:
    endpoint = connect(own_rig)
    keep, drop, renamed = new_path(), new_path(), new_path()
    for path in (keep, drop):
        archive(endpoint, path)
    assert own_rig.tape_copies() == 2
    endpoint.remove(drop)
    endpoint.rename(keep, renamed)

    def left() -> str | None:
        return None if own_rig.tape_copies() == 1 else f"{own_rig.tape_copies()} copies on tape"

    wait_until(left, "sweep", 20)
    endpoint.stage([renamed])
    await_state(endpoint, renamed, lambda now: now.online)


def test_the_server_never_outlives_its_library(own_rig: RunningRig) -> None:
    endpoint = connect(own_rig)
    assert endpoint.healthy() is None
    os.kill(own_rig.pid, signal.SIGKILL)
    wait_until(lambda: None if own_rig.rig.ready() else "it answers", "end of xrootd", 10)
    own_rig.start()
    assert endpoint.healthy() is None


def test_stages_from_many_threads(own_rig: RunningRig) -> None:
    endpoint = connect(own_rig)
    paths = [new_path() for _ in range(8)]
    for path in paths:
        archive(endpoint, path, path.encode())
    threads = [threading.Thread(target=endpoint.stage, args=([path],)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for path in paths:
        await_state(endpoint, path, lambda now: now.online)
