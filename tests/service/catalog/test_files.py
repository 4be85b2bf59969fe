"""Registering, finding and resolving files."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from msgspec import structs
from sqlalchemy import text

from nearline.catalog.v1 import catalog_pb2 as api
from nearline.type.v1.storage_pb2 import Attributes, Blob, FileSelector, HoldingSelector, IdRange
from nearline_client import names
from services.kit.config import DatabaseConfig
from tests.service.catalog.harness import (
    GROUP,
    Catalog,
    Put,
    a_directory,
    a_file,
    digest,
    members,
    ranges,
    refused,
    serving,
)

DEEP = "/" + "/".join(["d" * 250] * 16)
ODD = [
    names.encode(path)
    for path in (
        b"/data/two\nlines",
        b"/data/not utf-8 \xff\xfe",
        b"/data/tab\there",
        b"/data/back\\slash\\N",
        b"/data/100% _under_ 'quoted' \"twice\"",
        "/data/日本語/ünï".encode(),
        b"/data/" + b"\xff" * 255,
        b"/data/; drop table file; --",
        b"/x",
    )
]


def paths_of(files: object) -> list[str]:
    return [file.path for file in files]  # type: ignore[attr-defined]


def test_a_batch_gets_consecutive_numbers_and_a_repeat_the_same(catalog: Catalog) -> None:
    put = catalog.open()
    found = {f"/data/{n}": a_file() for n in range(100)}
    first, second = catalog.register(put, found), catalog.register(put, found)
    assert first == second
    assert list(first.file_ids) == list(range(first.file_ids[0], first.file_ids[0] + 100))
    assert not first.rejected


def test_a_path_that_comes_twice_in_a_batch_is_one_file(catalog: Catalog) -> None:
    put = catalog.open()
    (answer,) = catalog.register_all(
        put, [[("/a", a_file(1)), ("/b", a_file()), ("/a", a_file(2))]]
    )
    first, other, again = answer.file_ids
    assert first == again != other
    assert catalog.files([first])[0].attributes.size == 1


def test_batches_of_a_stream_are_answered_in_order(catalog: Catalog) -> None:
    put = catalog.open()
    batches = [[(f"/{b}/{n}", a_file()) for n in range(10)] for b in range(5)]
    answers = catalog.register_all(put, batches)
    assert [len(answer.file_ids) for answer in answers] == [10] * 5
    numbers = [number for answer in answers for number in answer.file_ids]
    assert paths_of(catalog.files(numbers)) == [path for batch in batches for path, _ in batch]


def test_all_metadata_comes_back(catalog: Catalog) -> None:
    put = catalog.open()
    found = {
        "/data/file": a_file(2**40, xattrs={"user.é": b"\0\xff", "user.b": b""}, hardlink="7:12"),
        "/data/link": Attributes(type=Attributes.SYMLINK, mode=0o777, link_target="../else\\where"),
        "/data": a_directory(),
        "/": a_directory(),
        "/old": Attributes(
            type=Attributes.FILE, mode=0o7777, uid=2**32 - 1, gid=2**32 - 1, mtime_ns=-1
        ),
    }
    numbers = catalog.register(put, found).file_ids
    back = catalog.files(numbers)
    assert {file.path: file.attributes for file in back} == found
    assert not any(file.stored or file.slices or file.digest for file in back)


def test_odd_and_very_long_names_are_kept_found_and_resolved(catalog: Catalog) -> None:
    put = catalog.open()
    contents = {path: path.encode() for path in [*ODD, DEEP, DEEP[:-1] + "e"]}
    _, numbers = catalog.store(put, contents)
    for path, number in numbers.items():
        (file,) = catalog.find(path=path)
        assert (file.id, file.path) == (number, path)
        (below,) = catalog.find(path=path, recursive=True)
        assert below.id == number
    ((files, unmatched),) = catalog.resolve([*contents, "/data/nothing"])
    assert sorted(paths_of(files)) == sorted(contents)
    assert unmatched == ["/data/nothing"]
    above = DEEP.rsplit("/", 3)[0]
    assert sorted(paths_of(catalog.resolve([above])[0][0])) == sorted([DEEP, DEEP[:-1] + "e"])


def test_the_url_names_the_bytes_of_the_path(catalog: Catalog) -> None:
    put = catalog.open()
    catalog.store(put, {names.encode(b"/a b/\xff\n%"): b"x"})
    (file,) = catalog.find()
    assert file.url == f"nearline:///{put.holding.id}/a%20b/%FF%0A%25"


def test_a_stored_path_of_another_put_is_refused(catalog: Catalog) -> None:
    put = catalog.open("model")
    _, numbers = catalog.store(put, {"/a": b"old"})
    answer = catalog.register(catalog.open("model"), {"/a": a_file(), "/b": a_file()})
    assert answer.file_ids[0] == 0
    assert answer.file_ids[1]
    (rejected,) = answer.rejected
    assert (rejected.path, rejected.code) == ("/a", "ALREADY_EXISTS")
    assert list(catalog.register(put, {"/a": a_file()}).file_ids) == [numbers["/a"]]
    assert catalog.register(catalog.open("other"), {"/a": a_file()}).file_ids[0]


def test_a_path_that_was_never_stored_is_taken_over(catalog: Catalog) -> None:
    failed, later = catalog.open("model"), catalog.open("model")
    (old,) = catalog.register(failed, {"/a": a_file(3)}).file_ids
    (new,) = catalog.register(later, {"/a": a_file(4)}).file_ids
    assert new not in (0, old)
    assert catalog.files([old]) == []
    # The upload of the older PUT comes late: it must not store its bytes under the new one.
    (blob,) = catalog.allocate(failed.holding.id)
    answer = catalog.record(blob, members({"/a": old}, {"/a": b"old"}))
    assert (answer.accepted, list(answer.missing_file_ids), answer.unused) == (0, [old], True)
    (blob,) = catalog.allocate(later.holding.id)
    assert catalog.record(blob, members({"/a": new}, {"/a": b"new!"})).accepted == 1
    (file,) = catalog.find()
    assert (file.id, file.transaction_id) == (new, later.transaction)


def test_two_puts_of_the_same_paths_at_once_give_each_path_to_one(catalog: Catalog) -> None:
    puts = [catalog.open("model") for _ in range(4)]
    found = {f"/data/{n % 7}/{n}": a_file() for n in range(500)}
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda put: catalog.register(put, found), puts))
    alive = {file.id for answer in answers for file in catalog.files(answer.file_ids)}
    assert len(alive) == 500
    with catalog.database.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM file")) == 500
        assert connection.scalar(text("SELECT sum(files) FROM reservation")) == 500


@pytest.mark.parametrize(
    ("path", "attributes"),
    [
        ("relative", a_file()),
        ("", a_file()),
        ("/a/../b", a_file()),
        ("/a//b", a_file()),
        ("/a/", a_file()),
        ("/nul\0", a_file()),
        ("/two\nlines", a_file()),
        ("/" + "x" * 256, a_file()),
        ("/a", Attributes()),
        ("/a", Attributes(type=Attributes.FILE, size=-1)),
        ("/a", Attributes(type=Attributes.DIRECTORY, size=1)),
        ("/a", Attributes(type=Attributes.FILE, mode=0o10000)),
        ("/a", Attributes(type=Attributes.SYMLINK, link_target="nul\0")),
    ],
)
def test_bad_entries_are_refused(catalog: Catalog, path: str, attributes: Attributes) -> None:
    with refused("INVALID_FIELD"):
        catalog.register(catalog.open(), {path: attributes})


def test_a_stream_without_a_header_or_with_an_unopened_holding_is_refused(
    catalog: Catalog,
) -> None:
    put, request = catalog.open(), api.RegisterFilesRequest
    with refused("INVALID_FIELD"):
        list(catalog.stub.RegisterFiles(iter([request(batch=request.Batch())])))
    with refused("INVALID_FIELD"):
        list(catalog.stub.RegisterFiles(iter([])))
    with refused("INVALID_FIELD"):
        list(catalog.stub.ResolveFiles(iter([api.ResolveFilesRequest()])))
    with refused("HOLDING_NOT_OPEN"):
        catalog.register(Put(put.holding, str(uuid.uuid4())), {"/a": a_file()})


def test_over_quota_files_are_refused_one_by_one(catalog: Catalog) -> None:
    put = catalog.open("model")
    catalog.stub.SetQuota(api.SetQuotaRequest(group=GROUP, quota_bytes=100, quota_files=3))
    answer = catalog.register(put, {"/a": a_file(60), "/b": a_file(50), "/c": a_file(40)})
    assert [bool(number) for number in answer.file_ids] == [True, False, True]
    assert [(r.path, r.code) for r in answer.rejected] == [("/b", "OVER_QUOTA")]
    # What runs counts too, and a repeat does not count twice.
    assert catalog.register(put, {"/a": a_file(60)}).file_ids[0] == answer.file_ids[0]
    other = catalog.open("other")
    more = catalog.register(other, {"/e": a_file(0), "/f": a_file(0), "/g": a_file(1)})
    assert [bool(number) for number in more.file_ids] == [True, False, False]


def test_concurrent_puts_cannot_pass_the_quota_together(catalog: Catalog) -> None:
    catalog.stub.SetQuota(api.SetQuotaRequest(group=GROUP, quota_files=50))
    puts = [catalog.open(f"label-{n}") for n in range(4)]
    found = {f"/{n}": a_file() for n in range(30)}
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda put: catalog.register(put, found), puts))
    assert sum(bool(number) for answer in answers for number in answer.file_ids) == 50


def test_numbers_that_do_not_exist_are_left_out(catalog: Catalog) -> None:
    put = catalog.open()
    numbers = catalog.register(put, {f"/{n}": a_file() for n in range(2500)}).file_ids
    wanted = [
        IdRange(first=numbers[0], count=3000),
        IdRange(first=numbers[10], count=5),
        IdRange(first=numbers[-1] + 10_000, count=1),
    ]
    answers = list(catalog.stub.GetFiles(api.GetFilesRequest(files=wanted)))
    assert [file.id for answer in answers for file in answer.files] == list(numbers)
    assert max(len(answer.files) for answer in answers) <= 1000
    with refused("INVALID_FIELD"):
        list(catalog.stub.GetFiles(api.GetFilesRequest(files=[IdRange(first=1, count=2**40)])))


def test_files_are_found_only_once_they_are_stored(catalog: Catalog) -> None:
    put = catalog.open()
    numbers = dict(zip(["/a"], catalog.register(put, {"/a": a_file(5)}).file_ids, strict=True))
    assert catalog.find() == []
    assert catalog.resolve(["/a"]) == [([], ["/a"])]
    assert catalog.holdings()[0].files == 0
    (blob,) = catalog.allocate(put.holding.id)
    catalog.record(blob, members(numbers, {"/a": b"hello"}))
    (file,) = catalog.find()
    assert (file.path, file.size, file.digest) == ("/a", 5, digest(b"hello").hex())
    assert (file.holding_id, file.label) == (put.holding.id, put.holding.label)
    assert (file.user, file.group, file.transaction_id) == ("ann", GROUP, put.transaction)
    assert file.mtime.ToNanoseconds() == a_file().mtime_ns
    assert [(place.tier, place.state) for place in file.locations] == [(Blob.CACHE, Blob.STORED)]
    assert (catalog.holdings()[0].files, catalog.holdings()[0].bytes) == (1, 5)


def a_tree(catalog: Catalog) -> None:
    contents = {path: path.encode() for path in ("/a/b", "/a/c/d", "/a/c/e.nc", "/ab", "/a.x/f.nc")}
    catalog.store(catalog.open("one", tags={"t": "1"}), contents)
    catalog.store(catalog.open("two", user="bob"), {"/a/b": b"newer", "/z": b"z"})
    catalog.store(catalog.open("hidden", group="gws_two"), {"/a/secret": b"s"})


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ({}, ["/a/b", "/a/c/d", "/a/c/e.nc", "/ab", "/a.x/f.nc", "/a/b", "/z"]),
        ({"newest": True}, ["/a/c/d", "/a/c/e.nc", "/ab", "/a.x/f.nc", "/a/b", "/z"]),
        ({"path": "/a/b"}, ["/a/b", "/a/b"]),
        ({"path": "/a/b", "newest": True}, ["/a/b"]),
        ({"path": "/a"}, []),
        ({"path": "/nowhere/x"}, []),
        ({"path": "/a", "recursive": True}, ["/a/b", "/a/c/d", "/a/c/e.nc", "/a/b"]),
        ({"path": "/a/c", "recursive": True}, ["/a/c/d", "/a/c/e.nc"]),
        ({"path": "/a/c/d", "recursive": True}, ["/a/c/d"]),
        (
            {"path": "/", "recursive": True, "newest": True},
            ["/a/c/d", "/a/c/e.nc", "/ab", "/a.x/f.nc", "/a/b", "/z"],
        ),
        ({"path": r"\.nc$", "regex": True}, ["/a/c/e.nc", "/a.x/f.nc"]),
        ({"path": "^/a/", "regex": True, "newest": True}, ["/a/c/d", "/a/c/e.nc", "/a/b"]),
        ({"path": "/c/[de]", "regex": True}, ["/a/c/d", "/a/c/e.nc"]),
        ({"path": r"^/a\.x/f", "regex": True}, ["/a.x/f.nc"]),
        ({"path": "a/b$|z", "regex": True}, ["/a/b", "/a/b", "/z"]),
        ({"path": "c/", "regex": True}, ["/a/c/d", "/a/c/e.nc"]),
    ],
    ids=str,
)  # fmt: skip
def test_find_by_path(catalog: Catalog, selector: dict[str, object], expected: list[str]) -> None:
    a_tree(catalog)
    assert paths_of(catalog.find(**selector)) == expected
    backwards = paths_of(catalog.find(descending=True, **selector))
    assert backwards == expected[::-1]


def test_find_by_holding(catalog: Catalog) -> None:
    a_tree(catalog)
    (one, _) = catalog.holdings()

    def find(**selector: object) -> list[str]:
        wanted = HoldingSelector(**{"groups": [GROUP], **selector})  # type: ignore[arg-type]
        return paths_of(catalog.find(wanted))

    assert find(user="bob") == ["/a/b", "/z"]
    assert find(label="one", user="bob") == []
    assert len(find(label="^o", label_regex=True)) == 5
    assert len(find(tags={"t": "1"})) == 5
    assert len(find(holding_id=one.id)) == 5
    assert len(find(transaction_id=one.transaction_ids[0])) == 5
    assert find(transaction_id=str(uuid.uuid4())) == []
    assert find(groups=[]) == []
    assert find(groups=["gws_two"]) == ["/a/secret"]


def test_only_files_of_the_transaction_are_found(catalog: Catalog) -> None:
    first, second = catalog.open("model"), catalog.open("model")
    catalog.store(first, {"/a": b"1"})
    catalog.store(second, {"/b": b"2"})
    wanted = HoldingSelector(groups=[GROUP], transaction_id=second.transaction)
    assert paths_of(catalog.find(wanted)) == ["/b"]
    assert paths_of(catalog.resolve(["/"], holdings=wanted)[0][0]) == ["/b"]
    assert catalog.resolve(["/a"], holdings=wanted)[0][1] == ["/a"]


def test_cursors_go_on_where_they_were_given_out(catalog: Catalog) -> None:
    put = catalog.open()
    numbers = sorted(catalog.store(put, {f"/{n}": b"" for n in range(2500)})[1].values())
    selector = FileSelector(holdings=HoldingSelector(groups=[GROUP]))
    for descending in (False, True):
        request = api.FindFilesRequest(selector=selector, descending=descending)
        answers = list(catalog.stub.FindFiles(request))
        expected = numbers[::-1] if descending else numbers
        assert [file.id for answer in answers for file in answer.files] == expected
        assert [len(answer.files) for answer in answers] == [1000, 1000, 500]
        request.cursor = answers[0].cursor
        rest = [file.id for answer in catalog.stub.FindFiles(request) for file in answer.files]
        assert rest == expected[1000:]
        request.limit = 3
        limited = [file.id for answer in catalog.stub.FindFiles(request) for file in answer.files]
        assert limited == expected[1000:1003]
    for cursor in (answers[0].cursor, "AAAA", "\u2028", answers[0].cursor[:-2]):
        with refused("INVALID_FIELD"):
            catalog.find(cursor=cursor)


@pytest.mark.parametrize(
    ("selector", "reason"),
    [
        ({"path": "(", "regex": True}, "INVALID_REGEX"),
        ({"path": "^/a/[", "regex": True}, "INVALID_REGEX"),
        ({"path": "", "regex": True}, "INVALID_FIELD"),
        ({"path": "x" * 5000, "regex": True}, "INVALID_FIELD"),
        ({"path": "x", "regex": True, "recursive": True}, "INVALID_FIELD"),
        ({"path": "a/b"}, "INVALID_FIELD"),
        ({"path": "/a/../b"}, "INVALID_FIELD"),
    ],
    ids=str,
)
def test_bad_selectors_are_refused(
    catalog: Catalog, selector: dict[str, object], reason: str
) -> None:
    a_tree(catalog)
    with refused(reason):
        catalog.find(**selector)


def test_a_search_that_takes_too_long_says_what_to_do(
    database_config: DatabaseConfig, tmp_path: Path
) -> None:
    impatient = structs.replace(database_config, statement_timeout_seconds=0.3)
    with serving(impatient, tmp_path) as catalog:
        catalog.store(catalog.open(), {"/a": b""})
        with catalog.database.connect() as other:
            # Nothing that PostgreSQL searches here is slow; waiting counts as well.
            other.execute(text("LOCK TABLE file IN ACCESS EXCLUSIVE MODE"))
            for search in (
                lambda: catalog.find(path="a", regex=True),
                lambda: catalog.resolve(["a"], regex=True),
            ):
                with refused("SEARCH_TOO_WIDE") as caught:
                    search()
                assert "narrow" in caught[0].message


def test_resolve_takes_the_newest_version_of_each_path_once(catalog: Catalog) -> None:
    a_tree(catalog)
    ((files, unmatched),) = catalog.resolve(["/a/b", "/a", "/a/c", "/a/c/d", "/zz", "/a/b", "/a/q"])
    assert sorted(paths_of(files)) == ["/a/b", "/a/c/d", "/a/c/e.nc"]
    assert unmatched == ["/zz", "/a/q"]
    newest = {file.path: file for file in files}
    assert newest["/a/b"].digest == digest(b"newer")
    one = HoldingSelector(groups=[GROUP], label="one")
    (((older,), _),) = catalog.resolve(["/a/b"], holdings=one)
    assert older.digest == digest(b"/a/b")


def test_resolve_answers_each_batch(catalog: Catalog) -> None:
    a_tree(catalog)
    answers = catalog.resolve(["/z"], ["/"], ["/nothing"], ["/z"])
    assert [paths_of(files) for files, _ in (answers[0], answers[3])] == [["/z"], ["/z"]]
    assert len(answers[1][0]) == 6
    assert answers[2] == ([], ["/nothing"])


def test_a_directory_that_was_stored_comes_with_what_is_below(catalog: Catalog) -> None:
    put = catalog.open()
    answer = catalog.register(put, {"/d": a_directory(), "/d/f": a_file(1)})
    (blob,) = catalog.allocate(put.holding.id)
    of_directory = api.RecordBlobRequest.Member(
        file_id=answer.file_ids[0], offset=512, attributes=a_directory()
    )
    of_file = members({"/d/f": answer.file_ids[1]}, {"/d/f": b"x"})
    assert catalog.record(blob, [of_directory, *of_file]).accepted == 2
    ((files, _),) = catalog.resolve(["/d"])
    assert sorted(paths_of(files)) == ["/d", "/d/f"]
    ((files, _),) = catalog.resolve(["/", "/d"])
    assert sorted(paths_of(files)) == ["/d", "/d/f"]


def test_resolve_by_patterns_gives_each_file_once(catalog: Catalog) -> None:
    a_tree(catalog)
    patterns = [r"\.nc$", "^/a/", "e\\.nc", "nothing"]
    ((files, unmatched),) = catalog.resolve(patterns, regex=True)
    assert sorted(paths_of(files)) == ["/a.x/f.nc", "/a/b", "/a/c/d", "/a/c/e.nc"]
    assert unmatched == ["nothing"]
    with refused("INVALID_REGEX"):
        catalog.resolve(["("], regex=True)


def test_large_directories_are_resolved_in_messages_of_a_thousand(catalog: Catalog) -> None:
    put = catalog.open()
    contents = {f"/big/{n % 450}/{n}": b"" for n in range(12_500)}
    for at in range(0, 12_500, 5000):
        catalog.store(put, dict(list(contents.items())[at : at + 5000]))
    ((files, _),) = catalog.resolve(["/big"])
    assert sorted(paths_of(files)) == sorted(contents)
    (blob, *_) = files[0].slices
    assert (blob.tier, blob.state, blob.offset > 0) == (Blob.CACHE, Blob.STORED, True)


def test_reading_notes_the_access_at_most_once_an_hour(catalog: Catalog) -> None:
    blob, _ = catalog.store(catalog.open(), {"/a": b"1"})

    def access(change: str = "") -> object:
        with catalog.database.connect() as connection:
            if change:
                connection.execute(
                    text(f"UPDATE blob SET last_access = now() - interval '{change}'")
                )
                connection.commit()
            return connection.scalar(text(f"SELECT last_access FROM blob WHERE id = {blob.id}"))

    recent = access("10 minutes")
    catalog.resolve(["/a"])
    assert access() == recent
    old = access("2 hours")
    catalog.resolve(["/a"])
    assert access() != old


def test_deleting_is_not_built_and_says_so(catalog: Catalog) -> None:
    with refused("NOT_BUILT"):
        list(catalog.stub.DeleteFiles(iter([api.DeleteFilesRequest()])))
    with refused("NOT_BUILT"):
        list(catalog.stub.UndeleteFiles(iter([api.UndeleteFilesRequest()])))


def test_numbers_as_single_ranges_are_served(catalog: Catalog) -> None:
    numbers = catalog.register(catalog.open(), {f"/{n}": a_file() for n in range(30)}).file_ids
    odd = list(numbers)[1::2]
    answers = catalog.stub.GetFiles(api.GetFilesRequest(files=ranges(reversed(odd))))
    assert [file.id for answer in answers for file in answer.files] == odd
