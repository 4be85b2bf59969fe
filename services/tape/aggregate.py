"""What an aggregate is made of: layout and manifest, computed before a byte is written. Pure.

An aggregate is one pax tar: the manifest, then of each source either the members region of a pack
(its bytes without the end blocks) or one file behind a header made here, then the end blocks.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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

    ``start`` is the first of these bytes in the object; ``slices`` are the files to verify, by
    their offset from there. ``adler32``: of a whole pack, end blocks included; 0: not known.
    """

    blob_id: int
    key: str
    header: bytes
    length: int
    start: int = 0
    adler32: int = 0
    slices: list[tuple[int, Placed]] = field(default_factory=list)

    @property
    def end(self) -> int:
        """First byte of the object behind the section's."""
        return self.start + self.length

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
    holding: Mapping[str, object],
    sources: Sequence[Blob],
    members: Iterable[SourceMember],
    loose: Collection[int] = (),
) -> Layout:
    """The aggregate of ``sources``, in their order, given all their members by offset.

    ``holding``: what the manifest says of the holding. Sources that have no members are left out.
    Packs whose numbers are in ``loose`` contribute their members one by one, behind new headers.
    """
    by_source: dict[int, list[SourceMember]] = {source.id: [] for source in sources}
    for member in members:
        by_source[member.blob_id].append(member)
    sections: list[Section] = []
    lines: list[bytes] = []
    at = 0
    for source in sources:
        found = by_source[source.id]
        apart = [[member] for member in found] if source.id in loose else [found]
        for together in filter(None, apart):
            section = _section(source, together, at, source.id in loose)
            at += section.size
            sections.append(section)
            files = zip(together, section.slices, strict=True)
            lines += [_line(member.file, placed) for member, (_, placed) in files]
    return Layout(_manifest(holding, lines), sections)


def _section(source: Blob, members: Sequence[SourceMember], at: int, is_loose: bool) -> Section:
    if source.format == Blob.TAR and not is_loose:
        length = source.size - len(paxtar.END)
        section = Section(source.id, source.key, b"", length, adler32=source.adler32)
    else:
        member = members[0]
        file = member.file
        header = paxtar.member_header(tar_member(file.path, file.attributes))
        section = Section(source.id, source.key, header, file.attributes.size, member.offset)
    for member in members:
        section.slices.append(_slice(section, member, at))
    return section


def _slice(section: Section, member: SourceMember, at: int) -> tuple[int, Placed]:
    file, offset = member.file, member.offset - section.start
    place = at + len(section.header) + offset
    return offset, Placed(file.id, place, file.attributes.size, file.digest, file.path)


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
