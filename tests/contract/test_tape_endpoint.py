"""What every tape endpoint promises, run over both drivers."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import uuid
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.local.wait import wait_until
from services.kit.errors import (
    Aborted,
    AlreadyExists,
    InvalidArgument,
    NearlineError,
    NotFound,
    Unavailable,
)
from services.tape.endpoint import (
    CHUNK_BYTES,
    TapeEndpoint,
    TapeFileState,
    Written,
    check_path,
    needs_stage,
)
from services.tape.endpoints.directory import DirectoryEndpoint
from services.tape.endpoints.xrootd import XRootDEndpoint

MIB = 1 << 20


@dataclass(frozen=True)
class Harness:
    """An endpoint, a directory of it that no other test uses, and the disk behind it."""

    endpoint: TapeEndpoint
    prefix: str
    root: Path
    constructor: str
    """Python that makes the same endpoint in another process."""

    def path(self, name: str = "file") -> str:
        return f"{self.prefix}/{name}"

    def put(self, name: str = "file", data: bytes = b"some bytes") -> str:
        path = self.path(name)
        with self.endpoint.create(path) as writer:
            writer.write(data)
            writer.commit()
        return path

    def listing(self) -> list[str]:
        return sorted(entry.path for entry in self.endpoint.list(self.prefix))

    def state(self, path: str) -> TapeFileState:
        return self.endpoint.stat([path], sizes=True)[0]

    def read(self, path: str, length: int) -> bytes:
        with self.endpoint.open(path) as reader:
            return reader.read(0, length)

    def disk_files(self) -> list[Path]:
        return [path for path in self.root.rglob("*") if path.is_file()]


@pytest.fixture(params=["directory", "xrootd"])
def tape(request: pytest.FixtureRequest, tmp_path: Path) -> Harness:
    prefix = f"contract/{uuid.uuid4().hex}"
    if request.param == "directory":
        module, name, arguments = "directory", "DirectoryEndpoint", f"Path({str(tmp_path)!r})"
        endpoint: TapeEndpoint = DirectoryEndpoint(tmp_path)
        root = tmp_path
    else:
        running = request.getfixturevalue("xrootd_rig")
        url, keytab = running.rig.url, running.rig.keytab
        module, name = "xrootd", "XRootDEndpoint"
        arguments = f"{url!r}, Path({str(keytab)!r})"
        endpoint = XRootDEndpoint(url, keytab)
        root = running.local(prefix)
    constructor = f"from services.tape.endpoints.{module} import {name} as E; e = E({arguments})"
    return Harness(endpoint, prefix, root, constructor)


def data_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)


# -- writing


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 40 * MIB + 3])
def test_committed_bytes_are_verified_and_read_back(tape: Harness, size: int) -> None:
    data = data_of(size)
    with tape.endpoint.create(tape.path()) as writer:
        writer.write(data)
        written = writer.commit()
    assert written == Written(size, zlib.adler32(data))
    assert tape.read(tape.path(), size) == data
    assert tape.state(tape.path()).size == size


def test_pieces_of_any_size_are_joined_and_the_buffer_may_be_reused(tape: Harness) -> None:
    rng, expected, buffer = random.Random(5), bytearray(), bytearray(3 * MIB)
    with tape.endpoint.create(tape.path()) as writer:
        for size in (0, 1, 3 * MIB, 17, 3 * MIB, 3 * MIB, 3 * MIB, 2 * MIB):
            buffer[:size] = piece = rng.randbytes(size)
            writer.write(memoryview(buffer)[:size])
            expected += piece
        writer.write(bytes(expected))
        expected *= 2
        assert writer.commit() == Written(len(expected), zlib.adler32(expected))
    assert tape.read(tape.path(), len(expected)) == expected


@pytest.mark.parametrize("size", [0, 100, 20 * MIB])
def test_abort_leaves_nothing(tape: Harness, size: int) -> None:
    writer = tape.endpoint.create(tape.path())
    writer.write(bytes(size))
    writer.abort()
    writer.abort()
    assert not tape.state(tape.path()).exists
    assert tape.disk_files() == []


def test_an_exception_in_the_middle_leaves_nothing(tape: Harness) -> None:
    def interrupted() -> None:
        with tape.endpoint.create(tape.path()) as writer:
            writer.write(bytes(10 * MIB))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert not tape.state(tape.path()).exists
    assert tape.disk_files() == []


def test_leaving_without_a_commit_leaves_nothing(tape: Harness) -> None:
    with tape.endpoint.create(tape.path()) as writer:
        writer.write(b"forgotten")
    assert not tape.state(tape.path()).exists


def test_a_name_is_used_once(tape: Harness) -> None:
    path = tape.put(data=b"first")
    with pytest.raises(AlreadyExists) as caught:
        tape.put(data=b"second")
    assert caught.value.reason == "TAPE_FILE_EXISTS"
    assert tape.read(path, 5) == b"first"


def test_of_two_writers_of_a_name_one_wins(tape: Harness) -> None:
    def attempt(number: int) -> bytes | None:
        data = bytes([number]) * 100
        with contextlib.suppress(AlreadyExists), tape.endpoint.create(tape.path()) as writer:
            writer.write(data)
            writer.commit()
            return data
        return None

    with ThreadPoolExecutor(4) as pool:
        winners = [data for data in pool.map(attempt, range(8)) if data]
    assert [tape.read(tape.path(), 100)] == winners


def test_a_damaged_copy_is_refused_and_removed(tape: Harness) -> None:
    with tape.endpoint.create(tape.path()) as writer:
        writer.write(bytes(CHUNK_BYTES))

        def stored() -> str | None:
            sizes = [path.stat().st_size for path in tape.disk_files()]
            return None if sizes == [CHUNK_BYTES] else f"files of {sizes} bytes"

        wait_until(stored, "the first chunk", 10)
        with tape.disk_files()[0].open("r+b") as stream:
            stream.write(b"damage")
        with pytest.raises(Aborted) as caught:
            writer.commit()
    assert caught.value.reason == "TAPE_CHECKSUM_MISMATCH"
    assert caught.value.transient
    assert tape.disk_files() == []


def test_many_threads_write_and_read_at_once(tape: Harness) -> None:
    def round_trip(number: int) -> bool:
        data = random.Random(number).randbytes(9 * MIB + number)
        return tape.read(tape.put(f"file{number}", data), len(data)) == data

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(round_trip, range(12)))
    assert len(tape.listing()) == 12


_TRANSFER = """
import resource, sys
from pathlib import Path
{constructor}
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
MIB = 1 << 20
path, block = sys.argv[1], bytes(range(256)) * 4096
with e.create(path + "/warm-up") as writer:
    writer.write(block)
    writer.commit()
before = peak()
with e.create(path + "/big") as writer:
    for _ in range(256):
        writer.write(block)
    writer.commit()
with e.open(path + "/big") as reader:
    assert sum(map(len, reader.stream(0, 256 * MIB))) == 256 * MIB
print((peak() - before) // 1024)
"""


def test_memory_stays_bounded_whatever_the_size(tape: Harness) -> None:
    """256 MiB up and down cost no more than the window: 4 chunks of 8 MiB, and a few copies."""
    program = _TRANSFER.format(constructor=tape.constructor)
    result = subprocess.run(
        [sys.executable, "-c", program, tape.prefix], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) < 100


# -- reading


def test_ranges(tape: Harness) -> None:
    data = data_of(20 * MIB)
    with tape.endpoint.open(tape.put(data=data)) as reader:
        for offset, length in ((0, 0), (0, 1), (5, 7), (MIB, 17 * MIB), (20 * MIB - 1, 1)):
            assert reader.read(offset, length) == data[offset : offset + length]


def test_many_ranges_in_one_call_come_in_the_order_asked(tape: Harness) -> None:
    data, rng = data_of(12 * MIB), random.Random(1)
    small = [(rng.randrange(11 * MIB), rng.randrange(2000)) for _ in range(2500)]
    large = [(0, 3 * MIB), (7, 0), (2 * MIB, 9 * MIB), (5, 2_097_136), (5, 2_097_137)]
    ranges = [*small, *large, *small[:3], small[0]]
    with tape.endpoint.open(tape.put(data=data)) as reader:
        assert reader.read_many([]) == []
        assert reader.read_many(ranges) == [data[o : o + n] for o, n in ranges]


@pytest.mark.parametrize(
    ("offset", "length", "chunk"), [(0, 0, 10), (3, 25, 10), (1, 9 * MIB, MIB)]
)
def test_streams(tape: Harness, offset: int, length: int, chunk: int) -> None:
    data = data_of(10 * MIB)
    with tape.endpoint.open(tape.put(data=data)) as reader:
        pieces = list(reader.stream(offset, length, chunk))
    assert b"".join(pieces) == data[offset : offset + length]
    assert all(len(piece) == chunk for piece in pieces[:-1])


def test_a_stream_may_be_given_up(tape: Harness) -> None:
    data = data_of(30 * MIB)
    with tape.endpoint.open(tape.put(data=data)) as reader:
        stream = reader.stream(0, len(data), MIB)
        assert next(stream) == data[:MIB]
        del stream
        assert reader.read(4, 4) == data[4:8]


def test_reading_past_the_end_is_an_error_of_the_file(tape: Harness) -> None:
    with tape.endpoint.open(tape.put(data=b"0123456789")) as reader:
        for attempt in (
            lambda: reader.read(5, 6),
            lambda: reader.read_many([(0, 2), (8, 3)]),
            lambda: list(reader.stream(0, 11, 4)),
        ):
            with pytest.raises(Unavailable) as caught:
                attempt()
            assert caught.value.reason == "TAPE_SHORT_READ"


def test_a_missing_file_cannot_be_opened(tape: Harness) -> None:
    with pytest.raises(NotFound) as caught:
        tape.endpoint.open(tape.path("none"))
    assert caught.value.reason == "TAPE_FILE_NOT_FOUND"


# -- what is there


def test_states_come_in_the_order_asked_and_a_missing_file_is_an_answer(tape: Harness) -> None:
    present = tape.put(data=b"abc")
    missing = tape.path("none")
    paths = [missing, present, tape.path("no/directory"), present]
    states = tape.endpoint.stat(paths, sizes=True)
    assert [state.path for state in states] == paths
    assert [state.exists for state in states] == [False, True, False, True]
    assert [state.size for state in states] == [None, 3, None, 3]
    assert states[0] == TapeFileState(missing, False, None, False, False, False, "")
    assert states[1].online
    assert tape.endpoint.stat([]) == []


def test_more_paths_than_one_request_holds(tape: Harness) -> None:
    present = tape.put()
    paths = [tape.path(f"none{number}") for number in range(2300)]
    paths[2100] = present
    states = tape.endpoint.stat(paths)
    assert [state.path for state in states if state.exists] == [present]
    tape.endpoint.release(paths)
    assert set(tape.endpoint.stage(paths)) >= {present}


def test_every_file_gets_on_tape(tape: Harness) -> None:
    paths = [tape.put(f"file{number}") for number in range(5)]

    def waiting() -> str | None:
        left = [state.path for state in tape.endpoint.stat(paths) if not state.on_tape]
        return f"{left} are not on tape" if left else None

    wait_until(waiting, "migration", 20)


def test_only_committed_files_are_listed(tape: Harness) -> None:
    paths = sorted(tape.put(name, b"x" * size) for size, name in enumerate(("a", "d/b", "d/e/c")))
    with tape.endpoint.create(tape.path("d/unfinished")) as writer:
        writer.write(bytes(CHUNK_BYTES))
        assert tape.listing() == paths
    assert tape.listing() == paths
    entries = {entry.path: entry for entry in tape.endpoint.list()}
    assert [entries[path].size for path in paths] == [0, 1, 2]
    assert all(entries[path].modified > 1.7e9 for path in paths)
    assert sorted(entry.path for entry in tape.endpoint.list(tape.path("d"))) == paths[1:]
    assert list(tape.endpoint.list(tape.path("none"))) == []


def test_remove_may_be_repeated(tape: Harness) -> None:
    path = tape.put()
    tape.endpoint.remove(path)
    tape.endpoint.remove(path)
    assert not tape.state(path).exists
    assert tape.listing() == []


def test_rename_moves_the_file_and_replaces_none(tape: Harness) -> None:
    old, other = tape.put("old", b"old"), tape.put("other", b"other")
    new = tape.path("new/deep/name")
    tape.endpoint.rename(old, new)
    assert tape.read(new, 3) == b"old"
    assert not tape.state(old).exists
    with pytest.raises(NotFound):
        tape.endpoint.rename(old, tape.path("newer"))
    with pytest.raises(AlreadyExists):
        tape.endpoint.rename(new, other)
    assert tape.read(other, 5) == b"other"
    assert tape.read(new, 3) == b"old"


def test_stage_release_and_cancel_of_what_is_online_or_missing(tape: Harness) -> None:
    path, missing = tape.put(), tape.path("none")
    assert not needs_stage(tape.state(path))
    assert not needs_stage(tape.state(missing))
    requests = tape.endpoint.stage([path, missing])
    assert path in requests
    tape.endpoint.stage([missing])
    tape.endpoint.cancel(requests)
    tape.endpoint.cancel({missing: "unknown", path: "unknown"})
    tape.endpoint.release([missing, path])
    assert tape.state(path).exists


# -- bad input and failures

BAD_PATHS = [
    "",
    "/etc/passwd",
    "../outside",
    "a/../../b",
    "a//b",
    "a/",
    "./a",
    ".hidden",
    "a b",
    "a\nb",
    "a\0b",
    "a?cks.type=md5",
    "a&b",
    "a%41",
    'a"b',
    "a\\b",
    "ä",
    "\udcff",
    "-rf",
    "x" * 251,
    "/".join(["x" * 100] * 11),
]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_hostile_paths_are_refused_before_anything_is_sent(tape: Harness, path: str) -> None:
    endpoint, good = tape.endpoint, tape.path()
    for attempt in (
        lambda: endpoint.create(path),
        lambda: endpoint.open(path),
        lambda: endpoint.stat([good, path]),
        lambda: endpoint.stage([path]),
        lambda: endpoint.cancel({path: "id"}),
        lambda: endpoint.release([path]),
        lambda: endpoint.remove(path),
        lambda: endpoint.rename(path, good),
        lambda: endpoint.rename(good, path),
    ):
        with pytest.raises(InvalidArgument) as caught:
            attempt()
        assert caught.value.reason == "TAPE_BAD_PATH"
    if path:
        with pytest.raises(InvalidArgument):
            next(endpoint.list(path))


def test_the_longest_path_works(tape: Harness) -> None:
    name = "x" * 250 + "/" + "y~=@,.+-" * 30
    path = tape.put(name)
    assert check_path(path) == path
    assert tape.listing() == [path]


def test_foreign_names_are_not_listed(tape: Harness) -> None:
    path = tape.put("ours")
    directory = next(file for file in tape.disk_files() if file.name == "ours").parent
    for name in (".hidden", "with space", "new\nline", 'quo"te'):
        (directory / name).write_bytes(b"x")
    assert tape.listing() == [path]


def test_health(tape: Harness) -> None:
    assert tape.endpoint.healthy() is None


def test_an_endpoint_that_is_not_there_is_told_of(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    for endpoint in (
        DirectoryEndpoint(blocked / "root"),
        XRootDEndpoint("root://127.0.0.1:9//tape"),
    ):
        assert endpoint.healthy()
        with pytest.raises(NearlineError):
            endpoint.create("a/b")


@pytest.mark.parametrize("url", ["", "http://h//p", "root://h/p", "root:////p", "root://h"])
def test_a_url_that_is_none_is_refused_with_the_remedy(url: str) -> None:
    with pytest.raises(InvalidArgument, match="root://HOST:PORT//DIRECTORY"):
        XRootDEndpoint(url)
