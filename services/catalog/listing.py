"""Streams that a client may take slowly: page by page, no connection held in between."""

from collections.abc import AsyncIterator, Sequence

from sqlalchemy import Connection, text

from nearline.catalog.v1 import catalog_pb2 as api
from nearline.type.v1.storage_pb2 import StoredFile
from services.catalog import archive, blobs, cursors, holdings, ranges, rules
from services.catalog.filerows import COLUMNS, stored_files
from services.catalog.ranges import Range
from services.catalog.scope import check_selector
from services.kit.db import Database

PAGE = 1000
_MOST_ARCHIVABLE = 100_000

_FILES = text(f"""
    SELECT f.*
    FROM unnest(CAST(:firsts AS bigint[]), CAST(:lasts AS bigint[])) AS r (first, last)
    CROSS JOIN LATERAL (
        SELECT {COLUMNS} FROM file f JOIN directory d ON d.id = f.dir_id
        WHERE f.id BETWEEN r.first AND r.last OFFSET 0
    ) AS f
    ORDER BY f.id
""")


async def list_holdings(
    database: Database, request: api.ListHoldingsRequest
) -> AsyncIterator[api.ListHoldingsResponse]:
    """Holdings that match, with counts, in batches with cursors."""
    check_selector(request.selector, "selector")
    left = rules.check_number(request.limit, "limit") or None
    asked = cursors.fingerprint(request.selector, request.descending)
    place = cursors.decode(request.cursor, asked)
    behind = place and place[0]
    while left != 0:
        limit = holdings.PAGE if left is None else min(holdings.PAGE, left)
        found = await database.read(holdings.page, request, behind, limit)
        if found:
            behind = found[-1].id
            left = None if left is None else left - len(found)
            cursor = cursors.encode(asked, behind)
            yield api.ListHoldingsResponse(holdings=found, cursor=cursor)
        if len(found) < limit:
            return


async def get_files(
    database: Database, request: api.GetFilesRequest
) -> AsyncIterator[api.GetFilesResponse]:
    """Files by ascending number, with their copies."""
    for piece in ranges.pieces(ranges.merged(request.files, "files"), PAGE):
        files = await database.read(_files, piece)
        if files:
            yield api.GetFilesResponse(files=files)


async def list_members(
    database: Database, request: api.ListMembersRequest
) -> AsyncIterator[api.ListMembersResponse]:
    """Members of blobs in the order asked for, and by offset."""
    rules.check_number(len(request.blob_ids), "blob_ids", most=blobs.MOST_BLOBS)
    for window in await database.read(blobs.windows, request.blob_ids):
        behind: blobs.Position | None = (-1, 0)
        while behind is not None:
            members, behind = await database.read(blobs.members, window, behind)
            if members:
                yield api.ListMembersResponse(members=members)


async def list_blobs(
    database: Database, request: api.ListBlobsRequest
) -> AsyncIterator[api.ListBlobsResponse]:
    """Blobs by ascending number."""
    after = rules.check_number(request.after, "after")
    rules.check_number(request.holding_id, "holding_id")
    left = request.limit or None
    while left != 0:
        limit = blobs.PAGE if left is None else min(blobs.PAGE, left)
        found = await database.read(blobs.listed, request, after, limit)
        if found:
            yield api.ListBlobsResponse(blobs=found)
            after = found[-1].id
        if len(found) < limit:
            return
        left = None if left is None else left - len(found)


async def list_archivable(
    database: Database, request: api.ListArchivableRequest
) -> AsyncIterator[api.ListArchivableResponse]:
    """Cache blobs that wait for archiving, by holding and number."""
    left = min(request.limit or _MOST_ARCHIVABLE, _MOST_ARCHIVABLE)
    behind = (0, 0)
    while left > 0:
        found = await database.read(
            archive.archivable, behind, request.min_age_seconds, min(left, archive.PAGE)
        )
        for answer in found:
            yield answer
        last = found[-1] if found else None
        if last is None:
            return
        behind = (last.holding.id, last.blobs[-1].id)
        left -= sum(len(answer.blobs) for answer in found)


def _files(connection: Connection, piece: Sequence[Range]) -> list[StoredFile]:
    wanted = {"firsts": [first for first, _ in piece], "lasts": [last for _, last in piece]}
    return stored_files(connection, connection.execute(_FILES, wanted).all())[0]
