"""The cache port against a real S3 server, healthy and failing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Condition

import pytest

from deploy.local.ports import Ports
from deploy.local.process import Supervisor
from deploy.local.seaweed import S3Store, Seaweed
from deploy.local.wait import wait_until
from services.kit.config import SecretFile
from services.kit.errors import Internal, NotFound, ResourceExhausted, Unavailable
from services.kit.objecterrors import from_code
from services.kit.objectstore import ObjectStore, S3Config
from services.kit.objectupload import Target, put_verified
from tests.fixtures.tcpproxy import CuttingProxy

MIB = 1 << 20
MakeStore = Callable[..., ObjectStore]


def data_of(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def config_of(store: S3Store, directory: Path, endpoint: str, prefix: str) -> S3Config:
    for name, value in (("access", store.access_key), ("secret", store.secret_key)):
        (directory / name).touch(0o600)
        (directory / name).write_text(value)
    return S3Config(
        endpoint=endpoint,
        bucket=store.bucket,
        access_key=SecretFile(directory / "access"),
        secret_key=SecretFile(directory / "secret"),
        prefix=prefix,
    )


@pytest.fixture
def make_store(s3: S3Store, tmp_path: Path) -> Iterator[MakeStore]:
    made: list[ObjectStore] = []

    def make(endpoint: str = s3.endpoint, bucket: str = s3.bucket) -> ObjectStore:
        base = config_of(s3, tmp_path, endpoint, f"{tmp_path.name}/")
        config = S3Config(**{**_fields(base), "bucket": bucket})
        made.append(ObjectStore(config))
        return made[-1]

    yield make
    for store in made:
        store.close()


def _fields(config: S3Config) -> dict[str, object]:
    return {name: getattr(config, name) for name in config.__struct_fields__}


@pytest.fixture
def store(make_store: MakeStore) -> ObjectStore:
    return make_store()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_put_and_read_back(store: ObjectStore, kind: type) -> None:
    data = data_of(3 * MIB + 17)
    key = "12/1234-0000abcd.raw"
    store.put(key, kind(data))
    assert store.get_range(key, 0, len(data)) == data
    assert store.get_range(key, MIB + 1, 4321) == data[MIB + 1 : MIB + 4322]
    assert store.get_range(key, len(data) - 1, 1) == data[-1:]
    assert store.get_range(key, 5, 0) == b""
    assert store.head(key).size == len(data)


def test_empty_object(store: ObjectStore) -> None:
    store.put("empty", b"")
    assert store.head("empty").size == 0
    with store.open_upload("empty2") as upload:
        assert upload.commit() == 0
    assert store.head("empty2").size == 0


def test_a_damaged_put_is_refused_and_leaves_nothing(store: ObjectStore) -> None:
    with pytest.raises(Unavailable) as caught:
        put_verified(store._target("bad"), b"some bytes", 12345)
    assert caught.value.reason == "OBJECT_CORRUPTED_IN_TRANSIT"
    assert list(store.list_objects("bad")) == []


def test_a_damaged_part_is_refused_and_leaves_nothing(store: ObjectStore) -> None:
    with store.open_upload("bad-part", part_size=5 * MIB) as upload:
        upload.write(data_of(6 * MIB))
        upload._crc ^= 1
        with pytest.raises(Unavailable) as caught:
            upload.commit()
    assert caught.value.reason == "OBJECT_CORRUPTED_IN_TRANSIT"
    assert list(store.list_objects("bad-part")) == []
    assert list(store.list_uploads()) == []


@pytest.mark.parametrize("size", [1, 5 * MIB - 1, 5 * MIB, 5 * MIB + 1, 23 * MIB + 7])
def test_upload_of_any_size(store: ObjectStore, size: int) -> None:
    data = data_of(size, size)
    with store.open_upload("up", part_size=5 * MIB) as upload:
        for start in range(0, size, 700_001):
            upload.write(memoryview(data)[start : start + 700_001])
        assert upload.commit() == size
    assert b"".join(store.stream("up", 0, size, chunk=3 * MIB)) == data
    assert store.head("up").size == size
    assert list(store.list_uploads()) == []


def test_the_callers_buffer_may_be_reused(store: ObjectStore) -> None:
    buffer = bytearray(MIB)
    with store.open_upload("reuse", part_size=5 * MIB, parallel=3) as upload:
        for number in range(22):
            buffer[:] = bytes([number]) * MIB
            upload.write(buffer)
        upload.commit()
    expected = b"".join(bytes([number]) * MIB for number in range(22))
    assert store.get_range("reuse", 0, 22 * MIB) == expected


@pytest.mark.parametrize("size", [MIB, 12 * MIB])
def test_abort_leaves_nothing(store: ObjectStore, size: int) -> None:
    upload = store.open_upload("dropped", part_size=5 * MIB)
    upload.write(data_of(size))
    upload.abort()
    upload.abort()
    assert list(store.list_objects("dropped")) == []
    assert list(store.list_uploads()) == []
    with pytest.raises(ValueError, match="finished"):
        upload.write(b"more")


def test_an_error_in_the_block_aborts(store: ObjectStore) -> None:
    def fail() -> None:
        with store.open_upload("err", part_size=5 * MIB) as upload:
            upload.write(data_of(6 * MIB))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(store.list_objects("err")) == []
    assert list(store.list_uploads()) == []


def test_a_repeated_completion_is_no_error(store: ObjectStore, s3: S3Store) -> None:
    with store.open_upload("twice", part_size=5 * MIB) as upload:
        upload.write(data_of(10 * MIB))
        while upload._pending:
            upload._collect_oldest()
        upload._complete()
        assert upload.commit() == 10 * MIB


def test_large_files_get_larger_parts(store: ObjectStore) -> None:
    with store.open_upload("hint", part_size=5 * MIB, size_hint=5 * 2**40) as upload:
        assert upload._part_size * 10_000 > 5 * 2**40
    with store.open_upload("no-hint", part_size=5 * MIB, size_hint=MIB) as upload:
        assert upload._part_size == 5 * MIB


def memory(field: str) -> int:
    """A size in bytes from the kernel's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def peak_growth(action: Callable[[], object]) -> int:
    """By how many bytes resident memory grew at most while ``action`` ran."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = memory("VmRSS")
    action()
    return memory("VmHWM") - before


@pytest.mark.slow
def test_a_gibibyte_passes_in_bounded_memory(store: ObjectStore) -> None:
    chunk = memoryview(data_of(MIB))

    def up() -> None:
        with store.open_upload("big") as upload:
            for _ in range(1024):
                upload.write(chunk)
            assert upload.commit() == 1024 * MIB

    def down() -> None:
        pieces = store.stream("big", 0, 1024 * MIB)
        assert sum(piece == bytes(chunk) * 8 for piece in pieces) == 128

    assert peak_growth(up) < (5 * 8 + 16) * MIB
    # Each of the readers may hold a piece twice while it is put together.
    assert peak_growth(down) < 10 * 8 * MIB
    store.delete_many(["big"])


def test_a_small_upload_takes_little_memory(store: ObjectStore) -> None:
    uploads = []

    def open_many() -> None:
        for number in range(50):
            uploads.append(store.open_upload(f"small-{number}"))
            uploads[-1].write(b"x")

    assert peak_growth(open_many) < 10 * MIB
    assert [upload.commit() for upload in uploads] == [1] * 50


@pytest.mark.parametrize(("offset", "length"), [(0, 0), (3, 10), (MIB, 9 * MIB), (0, 20 * MIB)])
@pytest.mark.parametrize("readahead", [1, 3])
def test_stream_gives_the_range(
    store: ObjectStore, offset: int, length: int, readahead: int
) -> None:
    data = data_of(20 * MIB)
    store.put("ranges", data)
    pieces = list(store.stream("ranges", offset, length, chunk=4 * MIB, readahead=readahead))
    assert b"".join(pieces) == data[offset : offset + length]
    assert all(len(piece) <= 4 * MIB for piece in pieces)


def test_a_stream_reads_on_while_its_reader_is_busy(store: ObjectStore) -> None:
    store.put("ahead", data_of(8 * MIB))
    begun: list[int] = []
    count = Condition()

    def note(params: dict[str, str], **_: object) -> None:
        with count:
            begun.append(int(params["Range"].partition("=")[2].partition("-")[0]))
            count.notify()

    store._client.meta.events.register("provide-client-params.s3.GetObject", note)
    stream = store.stream("ahead", 0, 8 * MIB, chunk=MIB, readahead=3)
    next(stream)
    with count:
        assert count.wait_for(lambda: len(begun) == 4, 60), begun
    assert sorted(begun) == [0, MIB, 2 * MIB, 3 * MIB]
    list(stream)


def test_a_stream_can_be_left_early(store: ObjectStore) -> None:
    store.put("early", data_of(20 * MIB))
    stream = store.stream("early", 0, 20 * MIB, chunk=MIB)
    assert len(next(stream)) == MIB
    stream.close()  # type: ignore[attr-defined]


def test_a_broken_connection_costs_one_piece(
    store: ObjectStore, make_store: MakeStore, s3: S3Store
) -> None:
    data = data_of(16 * MIB)
    store.put("cut", data)
    with CuttingProxy(s3.endpoint, limit=3 * MIB, most_cuts=4) as proxy:
        cut = make_store(endpoint=proxy.endpoint)
        assert b"".join(cut.stream("cut", 0, len(data), chunk=2 * MIB, readahead=1)) == data
        assert proxy.cuts == 4


def test_a_connection_that_always_breaks_is_reported(
    store: ObjectStore, make_store: MakeStore, s3: S3Store
) -> None:
    store.put("cut", data_of(2 * MIB))
    with CuttingProxy(s3.endpoint, limit=300_000, most_cuts=10**9) as proxy:
        cut = make_store(endpoint=proxy.endpoint)
        with pytest.raises(Unavailable) as caught:
            cut.get_range("cut", 0, 2 * MIB)
    assert caught.value.reason == "OBJECT_STORE_UNREACHABLE"
    assert caught.value.transient


def test_missing_and_short_objects(store: ObjectStore) -> None:
    store.put("short", b"0123456789")
    for call in (lambda: store.get_range("none", 0, 1), lambda: store.head("none")):
        with pytest.raises(NotFound) as caught:
            call()
        assert caught.value.reason == "OBJECT_MISSING"
    for offset, length in ((5, 6), (10, 1), (500, 5)):
        with pytest.raises(NotFound) as caught:
            store.get_range("short", offset, length)
        assert caught.value.reason == "OBJECT_TRUNCATED"
    with pytest.raises(NotFound):
        list(store.stream("short", 0, 5 * MIB, chunk=MIB))


def test_list_and_delete(store: ObjectStore) -> None:
    keys = [f"b/{n & 0xFF:02x}/{n:05d}" for n in range(1100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(key, b"x" * 3), keys))
    listed = list(store.list_objects("b/"))
    assert [item.key for item in listed] == sorted(keys)
    assert {item.size for item in listed} == {3}
    assert abs(listed[0].modified - datetime.now(UTC)) < timedelta(hours=1)
    assert len(list(store.list_objects("b/0a/"))) == 5
    store.delete_many(iter([*keys[:1050], "never-there"]))
    assert sorted(item.key for item in store.list_objects("b/")) == sorted(keys[1050:])
    store.delete_many(keys)
    store.delete_many([])
    assert list(store.list_objects("b/")) == []


def test_stale_uploads_are_listed_and_aborted(store: ObjectStore) -> None:
    upload = store.open_upload("stale", part_size=5 * MIB)
    upload._start()
    (empty,) = store.list_uploads()
    assert not store.has_parts(empty)
    upload.write(data_of(6 * MIB))
    wait_until(lambda: None if store.has_parts(empty) else "a part", "the upload", 20)
    assert [item.key for item in store.list_uploads()] == ["stale"]
    (found,) = store.list_uploads()
    assert abs(datetime.now(UTC) - found.started) < timedelta(hours=1)
    store.abort_upload(found)
    store.abort_upload(found)
    assert not store.has_parts(found)
    assert list(store.list_uploads()) == []
    with pytest.raises(Unavailable):
        upload.write(data_of(64 * MIB))
    upload.abort()


def test_prefixes_do_not_see_each_other(store: ObjectStore, s3: S3Store, tmp_path: Path) -> None:
    other = ObjectStore(config_of(s3, tmp_path, s3.endpoint, "elsewhere/"))
    other.put("one", b"1")
    assert list(store.list_objects()) == []
    with pytest.raises(NotFound):
        store.head("one")
    other.delete_many(["one"])
    other.close()


def test_wrong_bucket_and_wrong_key_wait_for_a_person(
    make_store: MakeStore, s3: S3Store, tmp_path: Path
) -> None:
    absent = make_store(bucket="not-there")
    with pytest.raises(Unavailable) as caught:
        absent.put("k", b"x")
    assert caught.value.reason == "OBJECT_BUCKET_MISSING"
    assert absent.healthy()
    config = config_of(s3, tmp_path, s3.endpoint, "")
    (tmp_path / "secret").write_text("wrong")
    with pytest.raises(Unavailable) as caught:
        ObjectStore(config).put("k", b"x")
    assert caught.value.reason == "OBJECT_STORE_DENIED"
    assert "wrong" not in str(caught.value)


def test_a_server_that_stops_midway(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    server = Seaweed(tmp_path / "seaweed", Ports(tmp_path / "ports.json"))
    spec = server.prepare()
    try:
        supervisor.start(spec)
        store = ObjectStore(config_of(server.store, tmp_path, server.store.endpoint, ""))
        assert store.healthy() is None
        data = data_of(12 * MIB)
        store.put("kept", data)
        upload = store.open_upload("half", part_size=5 * MIB)
        upload.write(data)
        stream = store.stream("kept", 0, len(data), chunk=MIB, readahead=1)
        next(stream)
        supervisor.kill("seaweed")
        supervisor.wait_gone("seaweed")
        assert store.healthy()
        for call in (
            upload.commit,
            lambda: list(stream),
            lambda: store.put("k", b"x"),
            lambda: store.delete_many(["kept"]),
            lambda: list(store.list_objects()),
        ):
            with pytest.raises(Unavailable) as caught:
                call()
            assert caught.value.reason == "OBJECT_STORE_UNREACHABLE"
        upload.abort()
        supervisor.start(spec)
        assert store.get_range("kept", 0, len(data)) == data
        with pytest.raises(NotFound):
            store.head("half")
        for left in store.list_uploads():
            store.abort_upload(left)
        assert list(store.list_uploads()) == []
    finally:
        supervisor.stop("seaweed")


@pytest.mark.parametrize(
    ("code", "status", "kind", "reason"),
    [
        ("InsufficientStorage", 507, ResourceExhausted, "OBJECT_STORE_FULL"),
        ("QuotaExceeded", 403, ResourceExhausted, "OBJECT_STORE_FULL"),
        ("InternalError", 500, Unavailable, "OBJECT_STORE_FAILED"),
        ("SlowDown", 503, Unavailable, "OBJECT_STORE_FAILED"),
        ("", 502, Unavailable, "OBJECT_STORE_FAILED"),
        ("NoSuchBucket", 404, Unavailable, "OBJECT_BUCKET_MISSING"),
        ("404", 404, NotFound, "OBJECT_MISSING"),
        ("AccessDenied", 403, Unavailable, "OBJECT_STORE_DENIED"),
        ("MalformedXML", 400, Internal, "OBJECT_STORE_REFUSED"),
    ],
)
def test_answers_are_sorted_by_what_helps(
    code: str, status: int, kind: type[Exception], reason: str
) -> None:
    error = from_code(code, status, "key")
    assert type(error) is kind
    assert error.reason == reason
    assert error.transient == (kind in (Unavailable, ResourceExhausted))


@pytest.mark.parametrize(
    ("field", "value"), [("endpoint", "localhost:8333"), ("prefix", "/x"), ("prefix", "a//b/")]
)
def test_config_is_checked(field: str, value: str, tmp_path: Path) -> None:
    good: dict[str, object] = {
        "endpoint": "https://s3.example",
        "bucket": "b",
        "access_key": SecretFile(tmp_path / "a"),
        "secret_key": SecretFile(tmp_path / "s"),
    }
    with pytest.raises(ValueError, match=field):
        S3Config(**{**good, field: value})  # type: ignore[arg-type]


def test_target_is_the_prefixed_key(store: ObjectStore, tmp_path: Path) -> None:
    target = store._target("k")
    assert isinstance(target, Target)
    assert target.key == f"{tmp_path.name}/k"
