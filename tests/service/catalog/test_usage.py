"""Usage of groups, quotas, and the folding of changes."""

from sqlalchemy import text

from nearline.catalog.v1 import catalog_pb2 as api
from nearline.type.v1.storage_pb2 import Blob
from tests.service.catalog.harness import GROUP, Catalog, a_file, refused


def rows(catalog: Catalog, table: str) -> int:
    with catalog.database.connect() as connection:
        return int(connection.scalar(text(f"SELECT count(*) FROM {table}")) or 0)


def test_usage_follows_copies_per_group(catalog: Catalog) -> None:
    one, two = catalog.open("one"), catalog.open("two", user="bob")
    source, _ = catalog.store(one, {"/a": b"12345", "/b": b"678"})
    catalog.store(two, {"/a": b"1"})
    catalog.store(catalog.open(group="gws_two"), {"/a": b"12"})
    catalog.archive(one, [source])
    catalog.stub.SetQuota(api.SetQuotaRequest(group="gws_three", quota_bytes=7))
    found = {usage.group: usage for usage in catalog.stub.GetUsage(api.GetUsageRequest())}
    assert sorted(found) == [GROUP, "gws_three", "gws_two"]
    assert found[GROUP] == api.GetUsageResponse(
        group=GROUP, files=3, bytes=9, cache_files=3, cache_bytes=9, tape_files=2, tape_bytes=8
    )
    assert found["gws_three"] == api.GetUsageResponse(group="gws_three", quota_bytes=7)
    assert catalog.usage("gws_two").bytes == 2
    assert list(catalog.stub.GetUsage(api.GetUsageRequest(groups=["unknown"]))) == []


def test_a_quota_is_set_and_lifted(catalog: Catalog) -> None:
    put = catalog.open()
    catalog.stub.SetQuota(api.SetQuotaRequest(group=GROUP, quota_bytes=1, quota_files=1))
    assert (catalog.usage().quota_bytes, catalog.usage().quota_files) == (1, 1)
    assert catalog.register(put, {"/a": a_file(2)}).rejected
    catalog.stub.SetQuota(api.SetQuotaRequest(group=GROUP))
    assert not catalog.register(put, {"/a": a_file(2)}).rejected
    for request in (api.SetQuotaRequest(), api.SetQuotaRequest(group=GROUP, quota_bytes=-1)):
        with refused("INVALID_FIELD"):
            catalog.stub.SetQuota(request)


def test_what_never_got_stored_frees_the_quota_after_a_day(catalog: Catalog) -> None:
    catalog.stub.SetQuota(api.SetQuotaRequest(group=GROUP, quota_files=1))
    catalog.register(catalog.open("one"), {"/a": a_file()})
    later = catalog.open("two")
    assert catalog.register(later, {"/a": a_file()}).rejected
    with catalog.database.connect() as connection:
        connection.execute(text("UPDATE put SET opened_at = now() - interval '25 hours'"))
        connection.commit()
    assert not catalog.register(later, {"/a": a_file()}).rejected


def test_folding_keeps_the_sums_and_drops_the_rows(catalog: Catalog) -> None:
    put = catalog.open()
    blobs = [catalog.store(put, {f"/{n}": b"xy"})[0] for n in range(30)]
    catalog.archive(put, blobs, state=Blob.SAFE)
    before = catalog.usage()
    assert rows(catalog, "usage") == 31
    assert rows(catalog, "reservation") == 60
    catalog.tidy()
    assert rows(catalog, "usage") == 1
    assert rows(catalog, "reservation") == 0
    assert catalog.usage() == before
    assert (before.files, before.bytes, before.tape_files) == (30, 60, 30)
    assert catalog.holdings()[0].bytes == 60
