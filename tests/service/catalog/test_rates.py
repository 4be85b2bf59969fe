"""How fast it goes. Rates are printed (``pytest -s``), not judged: machines differ."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nearline.catalog.v1 import catalog_pb2 as api
from nearline.type.v1.storage_pb2 import Blob, FileSelector, HoldingSelector
from tests.service.catalog.harness import GROUP, Catalog, Member, a_file, digest

FILES = 100_000
DIRECTORIES = 1500


@contextmanager
def timed(what: str, count: int) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    print(f"{what}: {count:,} in {seconds:.2f} s, {count / seconds:,.0f}/s")


@pytest.mark.slow
def test_rates_of_a_put_of_many_files_and_its_get(catalog: Catalog) -> None:
    put = catalog.open("model")
    base = "/gws/nopw/j04/project/model-output/experiment-17"
    paths = [f"{base}/member-{n % DIRECTORIES:04}/variable_{n:07}.nc" for n in range(FILES)]
    entries = [(path, a_file(4096)) for path in paths]
    batches = [entries[at : at + 5000] for at in range(0, FILES, 5000)]
    with timed("register", FILES):
        answers = catalog.register_all(put, batches)
    with timed("register again", FILES):
        assert catalog.register_all(put, batches) == answers
    numbers = [number for answer in answers for number in answer.file_ids]

    sha = digest(b"x")
    members = [
        Member(file_id=n, offset=at * 5000, length=4096, digest=sha, attributes=a_file(4096))
        for at, n in enumerate(numbers)
    ]
    packs = [members[at : at + 8000] for at in range(0, FILES, 8000)]
    blobs = catalog.allocate(put.holding.id, count=len(packs))
    with timed("record in packs of 8000", FILES):
        for blob, pack in zip(blobs, packs, strict=True):
            assert catalog.record(blob, pack, size=10**9).accepted == len(pack)

    with timed("list members", FILES):
        assert len(catalog.members([blob.id for blob in blobs])) == FILES
    claim = api.ClaimAggregateRequest(
        holding_id=put.holding.id, source_blob_ids=[blob.id for blob in blobs], claim_key="k"
    )
    tape = catalog.stub.ClaimAggregate(claim).blob
    copied = [Member(file_id=m.file_id, offset=m.offset, length=4096, digest=sha) for m in members]
    with timed("record an aggregate", FILES):
        catalog.record(tape, copied, state=Blob.SAFE, size=10**10, adler32=1)

    holdings = HoldingSelector(groups=[GROUP])
    for what, selector in {
        "one exact path": FileSelector(holdings=holdings, path=paths[777]),
        "one directory": FileSelector(
            holdings=holdings, path=f"{base}/member-0007", recursive=True
        ),
        "a regex on names": FileSelector(holdings=holdings, path="variable_00777..", regex=True),
        "a regex on a directory": FileSelector(holdings=holdings, path="member-0007/", regex=True),
    }.items():
        with timed(f"find {what}", 1):
            found = list(catalog.stub.FindFiles(api.FindFilesRequest(selector=selector)))
        assert found
    first = api.FindFilesRequest(selector=FileSelector(holdings=holdings), limit=1000)
    with timed("find a page", 1000):
        assert len(list(catalog.stub.FindFiles(first))) == 1
    with timed("find everything", FILES):
        assert len(catalog.find()) == FILES
    with timed("resolve a directory", FILES):
        assert len(catalog.resolve([base])[0][0]) == FILES
    parts = [paths[at : at + 1000] for at in range(0, FILES, 1000)]
    with timed("resolve path by path", FILES):
        assert sum(len(files) for files, _ in catalog.resolve(*parts)) == FILES
    with timed("get by number", FILES):
        assert len(catalog.files(numbers)) == FILES
    with timed("evict packs of 8000", FILES):
        assert len(catalog.evict()) == len(blobs)
