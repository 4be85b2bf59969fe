"""What an aggregate is made of: layout and manifest, computed before a byte is written. Pure.

An aggregate is one pax tar: the manifest, then of each source either the members region of a pack
(its bytes without the end blocks) or one file behind a header made here, then the end blocks.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from nearline.catalog.v1 import catalog_pb2 as catalog
from nearline.type.v1 import storage_pb2
from services.kit import paxtar
from services.kit.packs import tar_member

Blob = storage_pb2.Blob
Attributes = storage_pb2.Attributes
SourceMember = catalog.ListMembersResponse.Member

FORMAT = "nearline-aggregate/1"
MANIFEST = b".nearline/manifest.jsonl"
# Wide enough for any offset, so that the first line's length is known before its values are.
_OFFSET_WIDTH = 15


@dataclass(frozen=True, slots=True)
class Placed:
    """One file in the aggregate; ``offset`` of its data in bytes from the body's start."""

    file_id: int
    offset: int
    length: int
    digest: bytes
    path: str


@dataclass(slots=True)
class Section:
    """What one source contributes: ``header``, ``length`` bytes of the object ``key``, padding.

    ``slices`` are the files to verify, by their offset in the object.
    """

    blob_id: int
    key: str
    header: bytes
    length: int
    slices: list[tuple[int, Placed]] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes in the aggregate."""
        return len(self.header) + self.length + len(paxtar.padding(self.length))


@dataclass(frozen=True, slots=True)
class Layout:
    """A whole aggregate. Offsets of `Placed` count from ``body_offset``."""

    head: bytes
    """Manifest with its header and padding."""
    sections: Sequence[Section]

    @property
    def body_offset(self) -> int:
        """First byte after the manifest."""
        return len(self.head)

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.head) + sum(section.size for section in self.sections) + len(paxtar.END)

    def placed(self) -> Iterator[Placed]:
        """Every file of the aggregate."""
        for section in self.sections:
            for _, placed in section.slices:
                yield placed


def lay_out(
    holding: Mapping[str, object], sources: Sequence[Blob], members: Iterable[SourceMember]
) -> Layout:
    """The aggregate of ``sources``, in their order, given all their members by offset.

    ``holding``: what the manifest says of the holding. Sources that have no members are left out.
    """
    by_source: dict[int, list[SourceMember]] = {source.id: [] for source in sources}
    for member in members:
        by_source[member.blob_id].append(member)
    sections: list[Section] = []
    lines: list[bytes] = []
    at = 0
    for source in sources:
        if found := by_source[source.id]:
            section = _section(source, found, at)
            at += section.size
            sections.append(section)
            files = zip(found, section.slices, strict=True)
            lines += [_line(member.file, placed) for member, (_, placed) in files]
    return Layout(_manifest(holding, lines), sections)


def _section(source: Blob, members: Sequence[SourceMember], at: int) -> Section:
    if source.format == Blob.TAR:
        section = Section(source.id, source.key, b"", source.size - len(paxtar.END))
    else:
        file = members[0].file
        header = paxtar.member_header(tar_member(file.path, file.attributes))
        section = Section(source.id, source.key, header, source.size)
    start = at + len(section.header)
    for member in members:
        file = member.file
        length = file.attributes.size
        placed = Placed(file.id, start + member.offset, length, file.digest, file.path)
        section.slices.append((member.offset, placed))
    return section


def _manifest(holding: Mapping[str, object], lines: Sequence[bytes]) -> bytes:
    first = {"format": FORMAT, **holding, "members": len(lines)}
    length = len(_first_line(first, 0)) + sum(map(len, lines))
    member = paxtar.Member(name=MANIFEST, size=length, mode=0o644)
    header = paxtar.member_header(member)
    body_offset = len(header) + length + len(paxtar.padding(length))
    return b"".join((header, _first_line(first, body_offset), *lines, paxtar.padding(length)))


def _first_line(first: Mapping[str, object], body_offset: int) -> bytes:
    text = json.dumps(first, ensure_ascii=False, separators=(",", ":"))
    return f'{{"body_offset":{body_offset:{_OFFSET_WIDTH}d},{text[1:]}\n'.encode()


def _line(file: storage_pb2.StoredFile, placed: Placed) -> bytes:
    attributes = file.attributes
    line: dict[str, object] = {
        "path": file.path,
        "type": Attributes.Type.Name(attributes.type),
        "size": attributes.size,
        "digest": file.digest.hex(),
        "offset": placed.offset,
        "mode": attributes.mode,
        "uid": attributes.uid,
        "gid": attributes.gid,
        "mtime_ns": attributes.mtime_ns,
    }
    if attributes.link_target:
        line["link_target"] = attributes.link_target
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
