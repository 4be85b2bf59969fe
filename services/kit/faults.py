"""Copies that cannot be read: looked at twice before they are given up, and explained to users.

A store that lost its disk or its bucket says of every object that it does not exist. So a copy is
missing only when the store shows others of the same age: whole losses wait for a person.
"""

import random
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC

from nearline.catalog.v1 import catalog_pb2 as api
from nearline.type.v1 import storage_pb2
from services.kit.catalogclient import Blob, CatalogClient, in_batches
from services.kit.errors import NotFound, Unavailable
from services.kit.jobs import PathFailure
from services.kit.objecterrors import (
    LENGTH,
    OBJECT_STORE_FAILED,
    OBJECT_STORE_UNREACHABLE,
    OFFSET,
)
from services.kit.objectstore import HEALTH_KEY, ObjectStore

_SECOND_LOOK_SECONDS = 1.0
_RETRY_SECONDS = 60.0
_READ_AGAIN_SECONDS = 5.0
_THIRD_LOOK_SECONDS = 5.0
_NEIGHBOURS, _WITNESSES = 500, 8
_BATCH = 1000
_READABLE = {
    Blob.CACHE: [Blob.STORED],
    Blob.TAPE: [Blob.WRITTEN, Blob.SAFE],
}
OBJECT_UNREADABLE = "OBJECT_UNREADABLE"
_FAILED_READS = frozenset({OBJECT_STORE_FAILED, OBJECT_STORE_UNREACHABLE})
_PLACES = {Blob.CACHE: "the cache copy (object {})", Blob.TAPE: "the tape copy (file {})"}
_ADVICE = "ask the operators, who see it as a fault"


@dataclass(frozen=True, slots=True)
class Gone:
    """What is left of an object: ``size`` bytes of it, 0 when it is missing."""

    reason: str
    size: int


def gone(catalog: CatalogClient, cache: ObjectStore, blob_id: int, key: str, end: int) -> Gone:
    """How bytes up to ``end`` of an object that were not found are missing, after a second look.

    Unavailable when they are there after all, or when the store shows no other object that it
    should have.
    """
    time.sleep(_SECOND_LOOK_SECONDS)
    size = _listed_size(cache, key)
    if size is not None and size >= end:
        raise Unavailable(
            "OBJECT_FLICKERS",
            f"object {key} was missing and is there again; it is read once more",
            retry_after=_SECOND_LOOK_SECONDS,
            key=key,
        )
    others = witnesses(catalog, Blob.CACHE, blob_id)
    if others and not any(_exists(cache, other) for other in others):
        raise Unavailable(
            "OBJECT_STORE_EMPTY",
            f"the object store has neither {key} nor any of {len(others)} others that it should"
            " have; look whether it is the right bucket and its disks are there",
            retry_after=_RETRY_SECONDS,
            key=key,
        )
    if size is None:
        return Gone("its object is missing", 0)
    return Gone(f"its object was cut to {size} bytes", size)


def unreadable(
    catalog: CatalogClient, cache: ObjectStore, blob_id: int, error: Unavailable
) -> Unavailable:
    """What is wrong with one object, whose read failed with ``error`` while others can be read.

    Raises ``error`` when that is not known: it may be the store as a whole that does not work.
    """
    if error.reason not in _FAILED_READS:
        raise error
    others = witnesses(catalog, Blob.CACHE, blob_id) or [HEALTH_KEY]
    if not any(can_read(cache, other) for other in others):
        raise error
    key = error.metadata.get("key", "")
    return Unavailable(
        OBJECT_UNREADABLE,
        f"the object store reads other objects, but not {key}: {error.message}",
        retry_after=_READ_AGAIN_SECONDS,
        key=key,
    )


def require_unreadable(
    catalog: CatalogClient, cache: ObjectStore, blob_id: int, error: Unavailable
) -> None:
    """Return when the read that failed with ``error`` fails again later, and only that.

    Raises Unavailable otherwise: the network, or a part of the store, may be coming back.
    """
    time.sleep(_THIRD_LOOK_SECONDS)
    of = error.metadata
    try:
        cache.get_range(of["key"], int(of[OFFSET]), int(of[LENGTH]))
    except Unavailable as again:
        unreadable(catalog, cache, blob_id, again)
    else:
        raise error


def can_read(cache: ObjectStore, key: str) -> bool:
    """Whether an object's first byte can be read.

    Raises Unavailable when the store does not answer at all: asking for more would take minutes.
    """
    try:
        cache.get_range(key, 0, 1)
    except NotFound:
        return False
    except Unavailable as error:
        if error.reason != OBJECT_STORE_FAILED:
            raise
        return False
    return True


def witnesses(catalog: CatalogClient, tier: Blob.Tier.ValueType, blob_id: int) -> list[str]:
    """Keys of a few other blobs that the tier must have, of about the same age."""
    request = _neighbours(tier, blob_id)
    keys = [blob.key for blob in catalog.blobs(request) if blob.id != blob_id]
    return random.sample(keys, min(len(keys), _WITNESSES))


def no_copy(
    catalog: CatalogClient, files: Iterable[storage_pb2.StoredFile]
) -> Iterator[PathFailure]:
    """A failure for each of the files, which have no readable copy, that says what happened."""
    for batch in in_batches(files, _BATCH):
        found = defaultdict(list)
        for fault in catalog.faults(file_ids=[file.id for file in batch]):
            found[fault.file_id].append(fault)
        for file in batch:
            yield file.path, "NO_COPY", explained(found[file.id])


def explained(faults: Sequence[api.Fault]) -> str:
    """What is known about copies of one file, none of which can be read. Pure."""
    told = "; ".join(map(_told, faults)) or "none is on record"
    return f"no readable copy is left in the cache or on tape: {told}; {_ADVICE}"


def _told(fault: api.Fault) -> str:
    place = _PLACES[fault.tier].format(fault.key)
    when = fault.reported_at.ToDatetime(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"{place} was found bad on {when}: {fault.reason}"


def _neighbours(tier: Blob.Tier.ValueType, blob_id: int) -> api.ListBlobsRequest:
    return api.ListBlobsRequest(
        tier=tier,
        states=_READABLE[tier],
        after=max(blob_id - _NEIGHBOURS, 0),
        limit=2 * _NEIGHBOURS,
    )


def _listed_size(cache: ObjectStore, key: str) -> int | None:
    """The object's size by the bucket's own listing: unlike a 404 it shows that the bucket is."""
    try:
        return next((found.size for found in cache.list_objects(key) if found.key == key), None)
    except NotFound as error:
        raise Unavailable(
            "OBJECT_BUCKET_MISSING",
            "the object store does not list the configured bucket; look whether it is there",
            retry_after=_RETRY_SECONDS,
        ) from error


def _exists(cache: ObjectStore, key: str) -> bool:
    try:
        cache.head(key)
    except NotFound:
        return False
    return True
