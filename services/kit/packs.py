"""Packs: many small files in one TAR blob, built in memory and written as one object."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zlib_ng import zlib_ng

from nearline.type.v1 import storage_pb2
from nearline_client import names
from services.kit import crash, paxtar
from services.kit.catalogclient import Blob, CatalogClient, Member
from services.kit.objectstore import ObjectStore

if TYPE_CHECKING:
    from typing_extensions import Buffer

Attributes = storage_pb2.Attributes

_TYPES = {
    Attributes.FILE: paxtar.MemberType.FILE,
    Attributes.DIRECTORY: paxtar.MemberType.DIRECTORY,
    Attributes.SYMLINK: paxtar.MemberType.SYMLINK,
}


def member_name(path: str) -> bytes:
    """The name of a path in a tar: without slashes at its ends; the root itself is ``.``."""
    return names.decode(path).strip(b"/") or b"."


def tar_member(path: str, attributes: Attributes) -> paxtar.Member:
    """The tar member of a file: ``path`` and link target in wire form, size from attributes."""
    return paxtar.Member(
        name=member_name(path),
        type=_TYPES[attributes.type],
        size=attributes.size,
        mode=attributes.mode,
        uid=attributes.uid,
        gid=attributes.gid,
        mtime_ns=attributes.mtime_ns,
        link=names.decode(attributes.link_target),
        xattrs={names.decode(key): value for key, value in attributes.xattrs.items()},
    )


@dataclass(frozen=True, slots=True)
class Placed:
    """What became of a blob: files left out because they differ, or are not there any more."""

    blob_id: int
    mismatched: frozenset[int]
    missing: frozenset[int]


class Pack:
    """A tar that fills up in memory; ``capacity`` bytes are the size at which it is full."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._data = bytearray()
        self._members: list[Member] = []

    def __len__(self) -> int:
        return len(self._members)

    @property
    def members(self) -> list[Member]:
        """What was added so far, in order."""
        return self._members

    def fits(self, size: int) -> bool:
        """Whether another file of ``size`` bytes leaves the pack within its capacity."""
        return not self._members or len(self._data) + size + 1024 <= self._capacity

    def add(
        self, file_id: int, path: str, attributes: Attributes, content: "Buffer", *, new: bool
    ) -> Member:
        """Append a file; ``new`` (a PUT): its attributes and digest become the file's."""
        self._data += paxtar.member_header(tar_member(path, attributes))
        offset = len(self._data)
        self._data += content
        self._data += paxtar.padding(len(self._data) - offset)
        return self._append(file_id, offset, attributes, digest_of(attributes, content), new=new)

    def link(self, file_id: int, path: str, attributes: Attributes, first: Member, to: str) -> None:
        """Append another name of the inode whose content is ``first``, stored under ``to``."""
        member = paxtar.Member(
            name=member_name(path),
            type=paxtar.MemberType.HARDLINK,
            link=member_name(to),
            mode=attributes.mode,
            uid=attributes.uid,
            gid=attributes.gid,
            mtime_ns=attributes.mtime_ns,
        )
        self._data += paxtar.member_header(member)
        self._append(file_id, first.offset, attributes, first.digest, new=True)

    def store(
        self,
        catalog: CatalogClient,
        cache: ObjectStore,
        holding_id: int,
        check: Callable[[], None],
    ) -> Placed:
        """Write the pack as one verified object and record it; the pack is empty afterwards.

        ``check`` raises when the work is of no more use: writing may have taken long.
        """
        blob = catalog.allocate(holding_id, Blob.CACHE, Blob.TAR)
        crash.point("pack.allocated")
        self._data += paxtar.END
        cache.put(blob.key, self._data)
        crash.point("pack.stored")
        check()
        checksum = zlib_ng.adler32(self._data)
        placed = record(catalog, cache, blob, self._members, len(self._data), checksum)
        crash.point("pack.recorded")
        self._data, self._members = bytearray(), []
        return placed

    def _append(
        self, file_id: int, offset: int, attributes: Attributes, digest: bytes, *, new: bool
    ) -> Member:
        member = Member(
            file_id=file_id,
            offset=offset,
            length=attributes.size,
            digest=digest,
            attributes=attributes if new else None,
        )
        self._members.append(member)
        return member


def digest_of(attributes: Attributes, content: "Buffer") -> bytes:
    """SHA-256 of a file's content; empty for what has none."""
    if attributes.type != Attributes.FILE:
        return b""
    return hashlib.sha256(content).digest()


def record(
    catalog: CatalogClient,
    cache: ObjectStore,
    blob: Blob,
    members: list[Member],
    size: int,
    adler32: int = 0,
) -> Placed:
    """Make a cache blob known. One that nothing refers to (a repeat was faster) is removed.

    ``adler32`` of a pack: its headers are covered by no file's digest.
    """
    answer = catalog.record(blob.id, members, size=size, state=Blob.STORED, pack_adler32=adler32)
    if answer.unused:
        crash.point("cache.unused.before_delete")
        cache.delete_many([blob.key])
        crash.point("cache.unused.after_delete")
        catalog.set_states([blob.id], Blob.REMOVED)
    mismatched, missing = answer.mismatched_file_ids, answer.missing_file_ids
    return Placed(blob.id, frozenset(mismatched), frozenset(missing))
