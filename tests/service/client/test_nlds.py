"""The command line against a gateway over real gRPC: output, exit codes, errors."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from nearline.type.v1.storage_pb2 import File, Holding
from nearline.type.v1.task_pb2 import Task
from nearline.type.v1.transaction_pb2 import Failure, Transaction
from services.kit.errors import (
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
)
from tests.service.client.conftest import Nlds
from tests.service.client.gateway import ID, Gateway

NLDS = [sys.executable, "-m", "nearline_client.cli"]
ODD = "/d/two\U0010fe0alines\U0010feff"


def feed(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """Make `data` the standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def final(state: int, **more: object) -> Transaction:
    return Transaction(id=ID, action=Transaction.PUT, state=state, **more)  # type: ignore[arg-type]


def test_put_prints_the_accepted_transaction(
    gateway: Gateway, nlds: Nlds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = nlds(
        "put", "a", "-l", "run", "-t", "k:v,x:y:z", "-t", "m:n", "-b", "job", "-n", ID, "-j"
    )
    assert done.code == 0
    shown = json.loads(done.out)
    assert (shown["id"], shown["action"], shown["state"]) == (ID, "PUT", "QUEUED")
    # Every field of the contract is there, also those that are empty.
    assert shown["files_failed"] == "0"
    assert shown["failures"] == []
    assert shown["waiting_for"] == ""
    request = gateway.requests[ID]
    assert request.paths == [f"{tmp_path}/a"]
    assert dict(request.header.tags) == {"k": "v", "x": "y:z", "m": "n"}
    assert request.header.job_label == "job"


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (Transaction.COMPLETE, 0),
        (Transaction.COMPLETE_WITH_WARNINGS, 0),
        (Transaction.COMPLETE_WITH_ERRORS, 10),
        (Transaction.FAILED, 11),
        (Transaction.CANCELLED, 12),
    ],
)
def test_exit_code_of_waiting_is_that_of_the_end(
    gateway: Gateway, nlds: Nlds, state: int, code: int
) -> None:
    gateway.transactions = [final(state, failures=[Failure(path="/a", code="CHANGED")])]
    gateway.changes = [[final(Transaction.QUEUED), final(state)]]
    done = nlds("put", "--wait", "-n", ID, "/a", "-j")
    assert done.code == code
    assert [failure["code"] for failure in json.loads(done.out)["failures"]] == ["CHANGED"]
    assert done.err == ""


def test_watch_prints_a_line_for_each_change(gateway: Gateway, nlds: Nlds) -> None:
    gateway.transactions = [final(Transaction.COMPLETE, files_total=2, files_done=2)]
    gateway.changes = [
        [
            final(Transaction.QUEUED),
            final(Transaction.STAGING, files_total=2, waiting_for="tape \x1b[2J drive\nbusy"),
            final(Transaction.STAGING, files_total=2, waiting_for="tape \x1b[2J drive\nbusy",
                  updated_at=Timestamp(seconds=5)),
            final(Transaction.COMPLETE, files_total=2, files_done=2),
        ]
    ]  # fmt: skip
    done = nlds("watch", ID)
    lines = done.out.splitlines()
    assert done.code == 0
    assert lines[0].endswith("QUEUED 0/0 files")
    assert lines[1].endswith("STAGING 0/2 files, waiting: tape \\x1b[2J drive busy")
    assert lines[2].endswith("COMPLETE 2/2 files")
    assert "\x1b" not in done.out


def test_watch_prints_one_object(gateway: Gateway, nlds: Nlds) -> None:
    gateway.transactions = [final(Transaction.COMPLETE)]
    gateway.changes = [[final(Transaction.QUEUED), final(Transaction.COMPLETE)]]
    assert json.loads(nlds("watch", "-j", ID).out)["state"] == "COMPLETE"


def test_find_feeds_getlist(gateway: Gateway, nlds: Nlds, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway.files = [File(path="/d/a b"), File(path=ODD), File(path="/d/é")]
    listed = nlds("find", "-1", "-l", "run")
    assert listed.out.splitlines() == ["/d/a b", ODD, "/d/é"]
    feed(monkeypatch, listed.out.encode())
    assert nlds("getlist", "-r", "/t", "-").code == 0
    (request,) = gateway.requests.values()
    assert request.paths == ["/d/a b", ODD, "/d/é"]


def test_lists_hold_raw_names_and_relative_ones(
    gateway: Gateway, nlds: Nlds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list").write_bytes(b"/d/\xff\n\n./x//y\n" + ODD.encode() + b"\n/last")
    assert nlds("putlist", "list").code == 0
    (request,) = gateway.requests.values()
    assert request.paths == ["/d/\U0010feff", f"{tmp_path}/x/y", ODD, "/last"]


def test_null_lists_are_raw(gateway: Gateway, nlds: Nlds, monkeypatch: pytest.MonkeyPatch) -> None:
    feed(monkeypatch, b"/d/two\nlines\xff\0/b\0")
    assert nlds("putlist", "--null", "-").code == 0
    (request,) = gateway.requests.values()
    assert request.paths == [ODD, "/b"]


def test_find_prints_json_lines(gateway: Gateway, nlds: Nlds) -> None:
    gateway.files = [
        File(path=ODD, type="FILE", size=3, locations=[{"tier": "TAPE", "state": "SAFE"}]),  # type: ignore[arg-type, list-item]
        File(path="/b", type="DIRECTORY"),  # type: ignore[arg-type]
    ]
    first, second = map(json.loads, nlds("find", "-j").out.splitlines())
    assert first["path"] == ODD
    assert first["locations"] == [{"tier": "TAPE", "state": "SAFE"}]
    assert (second["type"], second["link_target"]) == ("DIRECTORY", "")


def test_tables_show_nothing_that_a_terminal_obeys(gateway: Gateway, nlds: Nlds) -> None:
    gateway.holdings = [
        Holding(id=1, label="a\x1b]0;x\x07", user="alice", tags={"k\u202e": "v\n"}),
        Holding(id=20, label="日本", user="bob"),
    ]
    lines = nlds("list").out.splitlines()
    assert len(lines) == 3
    assert "a\\x1b]0;x\\x07" in lines[1]
    assert "k\\u202e:v" in lines[1]
    assert lines[1].startswith(" 1  ")


def test_find_tells_lost_copies(gateway: Gateway, nlds: Nlds) -> None:
    copies = [{"tier": "CACHE", "state": "LOST"}, {"tier": "TAPE", "state": "LOST"}]
    gateway.files = [File(path="/d/f", type="FILE", size=3, locations=copies)]  # type: ignore[arg-type]
    assert "cache (lost), tape (lost)" in nlds("find").out
    assert json.loads(nlds("find", "-j").out)["locations"] == copies


def test_find_table_and_urls(gateway: Gateway, nlds: Nlds) -> None:
    gateway.files = [
        File(
            path=ODD, type="SYMLINK", link_target="x", size=1536, mode=0o644, url="nearline:///1/d",  # type: ignore[arg-type]
            locations=[{"tier": "CACHE", "state": "STORED"}, {"tier": "TAPE", "state": "WRITTEN"}],  # type: ignore[list-item]
        )
    ]  # fmt: skip
    shown = nlds("find").out
    assert "l0644" in shown
    assert "1.5 KiB" in shown
    assert "cache, tape (not yet safe)" in shown
    assert "/d/two\\x0alines\\xff -> x" in shown
    assert nlds("find", "-U").out == "nearline:///1/d\n"


def test_stat_shows_the_newest_last(gateway: Gateway, nlds: Nlds) -> None:
    gateway.transactions = [
        Transaction(id=ID[:-1] + str(n), action=Transaction.PUT, state=Transaction.COMPLETE)
        for n in range(5)
    ]

    def ids(*args: str) -> list[str]:
        return [json.loads(line)["id"][-1] for line in nlds("stat", "-j", *args).out.splitlines()]

    assert ids() == ["0", "1", "2", "3", "4"]
    assert ids("-L", "2") == ["3", "4"]
    assert ids("-L", "2", "-9") == ["4", "3"]
    assert ids("-L", "2", "-0") == ["0", "1"]
    assert len(nlds("stat").out.splitlines()) == 6


def test_stat_of_one(gateway: Gateway, nlds: Nlds) -> None:
    failure = Failure(path=ODD, code="CHANGED", reason="it changed; put it again")
    gateway.failures = [*[failure] * 3, Failure(code="STORE_DOWN")]
    gateway.tasks = [Task(id=1, kind=Task.SCAN, state=Task.DONE)]
    gateway.transactions = [
        final(Transaction.FAILED, files_failed=3, failures=[failure], warnings=["tag \x1b is set"])
    ]
    shown = nlds("stat", ID)
    assert shown.code == 0
    assert "FAILED" in shown.out
    assert "it changed; put it again" in shown.out
    assert "tag \\x1b is set" in shown.out
    assert "shows all 3" in shown.out
    assert nlds("stat", "-F", ID).out == f"{ODD}\n" * 3
    assert nlds("stat", "-E", "-n", ID).out.count("CHANGED") == 3
    assert "SCAN" in nlds("stat", "-S", ID).out


def test_other_commands(gateway: Gateway, nlds: Nlds) -> None:
    changed = nlds("meta", "-l", "a", "-L", "b", "-T", "k:v", "-D", "x,y", "-j")
    assert json.loads(changed.out)["label"] == "b"
    assert list(gateway.asked[-1].delete_tags) == ["x", "y"]
    assert json.loads(nlds("cancel", "-j", ID).out)["state"] == "CANCELLED"
    assert "4.0 GiB (25 %)" in nlds("usage").out
    assert "no tape" in nlds("system").out
    assert json.loads(nlds("system", "-j").out)["health"] == "DEGRADED"
    assert nlds("stage", "--pin", "7", "/a").code == 0
    assert next(iter(gateway.requests.values())).header.pin_days == 7


def test_a_retry_is_shown_and_one_that_is_over_says_so(gateway: Gateway, nlds: Nlds) -> None:
    done = nlds("retry", ID)
    assert (done.code, "retry of" in done.out) == (0, True)
    assert "it was run again already, as" in done.err


def test_parked_tasks_are_listed(nlds: Nlds) -> None:
    done = nlds("system", "-P", "-g", "climate")
    assert "WORKER_LOST" in done.out
    assert nlds("system", "-g", "climate").code == 2


def test_a_request_that_has_no_room_waits_visibly(gateway: Gateway, nlds: Nlds) -> None:
    busy = ResourceExhausted("TOO_MANY_TRANSACTIONS", "much is running", retry_after=0.01)
    gateway.faults["Put"] = deque([busy])
    done = nlds("put", "/a")
    assert done.code == 0
    assert "nlds: much is running; trying again in 1 s\n" in done.err


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (("del", "-y", "/a"), "deleting is not built yet"),
        (("undelete", "/a"), "nlds: "),
    ],
)
def test_what_is_not_built_says_so(nlds: Nlds, args: tuple[str, ...], what: str) -> None:
    done = nlds(*args)
    assert done.code == 1
    assert what in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Unauthenticated("EXPIRED", "the token expired"), 3),
        (PermissionDenied("NO_GROUP", "you are not in x"), 3),
        (InvalidArgument("BAD", "two\nlines \x1b[2J"), 1),
    ],
)
def test_errors_are_one_line(gateway: Gateway, nlds: Nlds, fault: Exception, code: int) -> None:
    gateway.faults["ListHoldings"] = deque([fault] * 2)
    done = nlds("list")
    assert done.code == code
    assert done.err.startswith("nlds: ")
    assert done.err.count("\n") == 1
    assert "\x1b" not in done.err


def test_verbose_adds_detail(gateway: Gateway, nlds: Nlds) -> None:
    gateway.faults["ListHoldings"] = deque([InvalidArgument("BAD", "no", where="here")])
    done = nlds("list", "--verbose")
    assert "reason: BAD" in done.err
    assert "where: here" in done.err


@pytest.mark.parametrize(
    "args",
    [
        ("put",),
        ("put", "--what", "/a"),
        ("put", "-t", "novalue", "/a"),
        ("put", "-t", "a:1,a:2", "/a"),
        ("put", "-n", "not-a-uuid", "/a"),
        ("put", "/" + "x" * 256),
        ("put", ""),
        ("putlist", "/no/such/list"),
        ("find", "-1", "-j"),
        ("list", "-9", "-0"),
        ("list", "-L", "0"),
        ("meta", "-L", "b"),
        ("meta", "-l", "a"),
        ("stat", "-S"),
        ("watch",),
        ("nonsense",),
    ],
)
def test_wrong_usage(gateway: Gateway, nlds: Nlds, args: tuple[str, ...]) -> None:
    done = nlds(*args)
    assert done.code == 2
    assert done.out == ""
    assert done.err.count("\n") == 1
    assert not any(request.accepted for request in gateway.requests.values())


def test_delete_asks(gateway: Gateway, nlds: Nlds, monkeypatch: pytest.MonkeyPatch) -> None:
    feed(monkeypatch, b"n\n")
    done = nlds("del", "/a")
    assert done.code == 1
    assert "nothing was deleted" in done.err
    assert gateway.asked == []


def test_reader_that_has_enough(gateway: Gateway, environment: str) -> None:
    gateway.files = [File(path=f"/{n:0200}") for n in range(5_000)]
    gateway.page_size = 1_000
    with subprocess.Popen(
        [*NLDS, "find", "-1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_interrupted_wait_says_how_to_go_on(gateway: Gateway, environment: str) -> None:
    gateway.changes = [[final(Transaction.STAGING)]]
    gateway.hold_watch = threading.Event()
    with subprocess.Popen(
        [*NLDS, "watch", ID], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    assert f"`nlds watch {ID}`" in said
    assert f"`nlds cancel {ID}`" in said
    assert said.count("\n") == 1


def test_terminal_gets_a_bar(gateway: Gateway, environment: str) -> None:
    counts = {"files_total": 4, "files_done": 1, "bytes_total": 4096, "bytes_done": 1024}
    gateway.transactions = [final(Transaction.COMPLETE, files_total=4, files_done=4)]
    gateway.changes = [
        [
            final(Transaction.STAGING, waiting_for="[red]tape\x1b[2J", **counts),
            final(Transaction.COMPLETE, files_total=4, files_done=4),
        ]
    ]
    ours, theirs = pty.openpty()
    env = {**os.environ, "COLUMNS": "300", "TERM": "xterm"}
    with subprocess.Popen(
        [*NLDS, "watch", ID], stdin=theirs, stdout=theirs, stderr=theirs, env=env
    ) as process:
        os.close(theirs)
        shown = _read_terminal(ours)
    assert process.returncode == 0
    assert "4/4 files" in shown
    assert "PUT COMPLETE" in shown
    assert "waiting: [red]tape\\x1b[2J" in shown


def _read_terminal(descriptor: int) -> str:
    """All that was written to the terminal until its other end was closed."""
    shown = b""
    try:
        while block := os.read(descriptor, 65536):
            shown += block
    except OSError:
        pass  # Linux: EIO is the end
    finally:
        os.close(descriptor)
    return shown.decode()
