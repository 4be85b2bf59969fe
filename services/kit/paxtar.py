"""POSIX pax tar, member by member: pure bytes in and out, no I/O of its own.

Headers are what GNU tar and libarchive write: a ustar block, preceded by a pax extended header
only for what ustar cannot hold (nanoseconds, sizes over 8 GiB, long or non-ASCII names, big ids,
xattrs). The same member always gives the same bytes, so the length of a TAR blob is known before
it is made.

Names are raw bytes. Where one is not UTF-8 the header says ``hdrcharset=BINARY``, the pax way to
tell a reader to leave names alone; GNU tar does so anyway and notes that it ignores the keyword.
"""

from __future__ import annotations

import enum
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType

import msgspec

BLOCK = 512
#: Ends an archive: two zero blocks.
END = bytes(2 * BLOCK)

_MAX_NAME = 100
_MAX_OWNER = 31
_MAX_ID = 0o7777777
_MAX_OCTAL_11 = 0o77777777777
_NS = 1_000_000_000
_ZEROS = bytes(BLOCK)
_XATTR = b"SCHILY.xattr."
_NO_XATTRS: Mapping[bytes, bytes] = MappingProxyType({})
# A name every tar accepts and none extracts, the same for each member: bytes stay reproducible.
_PAX_NAME = b"././@PaxHeader"
# Reading: a pax header larger than this is damage or an attack, not metadata.
_MAX_PAX_BYTES = 16 << 20


class TarError(ValueError):
    """A member that tar cannot express, or bytes that are not a tar this module wrote."""


class MemberType(enum.Enum):
    """Type flag of the ustar header."""

    FILE = b"0"
    HARDLINK = b"1"
    SYMLINK = b"2"
    DIRECTORY = b"5"


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One member of a tar.

    ``name``: path without leading or trailing slash, raw bytes. ``size``: bytes of content, 0
    unless FILE. ``link``: target of a SYMLINK, or the name of an earlier member for a HARDLINK.
    ``mtime_ns``: nanoseconds since 1970, may be negative. ``xattrs``: full names such as
    ``user.comment`` to values, both raw.
    """

    name: bytes
    type: MemberType = MemberType.FILE
    size: int = 0
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    uname: bytes = b""
    gname: bytes = b""
    mtime_ns: int = 0
    link: bytes = b""
    xattrs: Mapping[bytes, bytes] = _NO_XATTRS


def padding(size: int) -> bytes:
    """The zeros that follow ``size`` bytes of content up to the next block."""
    return _ZEROS[: -size % BLOCK]


def member_header(member: Member) -> bytes:
    """Everything that precedes the content of a member; a multiple of 512 bytes.

    Raises `TarError` for a member that cannot be written.
    """
    _check(member)
    name = member.name + b"/" if member.type is MemberType.DIRECTORY else member.name
    records = _pax_records(member, name)
    block = _ustar(member, name)
    return _pax_header(records) + block if records else block


def iter_members(
    read: Callable[[int, int], bytes], window: int = 64 * 1024
) -> Iterator[tuple[Member, int, int]]:
    """Yield (member, offset of its content, size of its content) in order, reading headers only.

    ``read(offset, length)`` returns up to ``length`` bytes, fewer only at the end of the archive;
    it is called with at least ``window`` bytes, so small members share a read. The owner of the
    archive reads the contents itself, by the offsets.

    Raises `TarError` naming the offset for a damaged, cut or foreign archive.
    """
    source = _Window(read, window)
    offset = 0
    records: dict[bytes, bytes] = {}
    while True:
        block = source.get(offset, BLOCK)
        if block == _ZEROS:
            return
        flag = _verified_flag(block, offset)
        if flag == b"x":
            size = _octal(block[124:136], offset)
            records = _parse_records(source, offset + BLOCK, size)
            offset += BLOCK + size + -size % BLOCK
            continue
        member = _member(block, records, offset)
        records = {}
        offset += BLOCK
        yield member, offset, member.size
        offset += member.size + -member.size % BLOCK


def _check(member: Member) -> None:
    name = member.name
    if not name or name[0] == 0x2F or name[-1] == 0x2F:
        raise TarError(f"member name {name!r} must not be empty nor begin or end with a slash")
    if b"\0" in name or b"\0" in member.link:
        raise TarError(f"member {name!r} has a NUL byte in its name or link")
    if member.uid < 0 or member.gid < 0:
        raise TarError(f"member {name!r} has a negative owner or group id")
    if member.type is MemberType.FILE:
        if member.size < 0 or member.link:
            raise TarError(f"file {name!r} must have a size of 0 or more and no link target")
    elif member.size:
        raise TarError(f"{member.type.name} {name!r} cannot have content")
    elif not member.link and member.type is not MemberType.DIRECTORY:
        raise TarError(f"{member.type.name} {name!r} needs a link target")


def _ustar(member: Member, name: bytes) -> bytes:
    seconds = member.mtime_ns // _NS
    body = b"".join(
        (
            name[:_MAX_NAME].ljust(_MAX_NAME, b"\0"),
            # Values that do not fit are in the pax header; here 0 stands for them.
            b"%07o\0%07o\0%07o\0%011o\0%011o\0        "
            % (
                member.mode & 0o7777,
                member.uid if member.uid <= _MAX_ID else 0,
                member.gid if member.gid <= _MAX_ID else 0,
                member.size if member.size <= _MAX_OCTAL_11 else 0,
                seconds if 0 <= seconds <= _MAX_OCTAL_11 else 0,
            ),
            member.type.value,
            member.link[:_MAX_NAME].ljust(_MAX_NAME, b"\0"),
            b"ustar\x0000",
            member.uname[:_MAX_OWNER].ljust(32, b"\0"),
            member.gname[:_MAX_OWNER].ljust(32, b"\0"),
        )
    ).ljust(BLOCK, b"\0")
    return _with_checksum(body)


def _with_checksum(block: bytes) -> bytes:
    return b"%b%06o\0 %b" % (block[:148], _sum(block), block[156:])


def _sum(block: bytes) -> int:
    """The sum of a block's bytes. The low half of adler32 is 1 + the sum modulo 65521, which 256
    bytes cannot exceed; this is ten times faster than ``sum``."""
    return (zlib.adler32(block[:256]) & 0xFFFF) + (zlib.adler32(block[256:]) & 0xFFFF) - 2


def _pax_records(member: Member, name: bytes) -> bytes:
    records: list[bytes] = []
    texts = (
        (b"path", name, _MAX_NAME),
        (b"linkpath", member.link, _MAX_NAME),
        (b"uname", member.uname, _MAX_OWNER),
        (b"gname", member.gname, _MAX_OWNER),
    )
    for key, text, limit in texts:
        if len(text) > limit or not text.isascii():
            records.append(_record(key, text))
    if records and not all(_is_utf8(text) for _, text, _ in texts):
        records.insert(0, _record(b"hdrcharset", b"BINARY"))
    seconds, nanos = divmod(member.mtime_ns, _NS)
    if nanos or not 0 <= seconds <= _MAX_OCTAL_11:
        records.append(_record(b"mtime", _timestamp(member.mtime_ns)))
    if member.size > _MAX_OCTAL_11:
        records.append(_record(b"size", b"%d" % member.size))
    for key, number in ((b"uid", member.uid), (b"gid", member.gid)):
        if number > _MAX_ID:
            records.append(_record(key, b"%d" % number))
    for xattr in sorted(member.xattrs):
        records.append(_record(_XATTR + _quote(xattr), member.xattrs[xattr]))
    return b"".join(records)


def _record(key: bytes, value: bytes) -> bytes:
    """``LENGTH KEY=VALUE\\n``, where LENGTH counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) != len(str(rest)):
        length = rest + len(str(length))
    return b"%d %b=%b\n" % (length, key, value)


def _timestamp(ns: int) -> bytes:
    # The sign covers both halves: -0.5 s is "-0.500000000", as GNU tar writes and reads it.
    seconds, nanos = divmod(abs(ns), _NS)
    sign = b"-" if ns < 0 else b""
    return b"%b%d.%09d" % (sign, seconds, nanos) if nanos else b"%b%d" % (sign, seconds)


def _parse_timestamp(text: bytes) -> int:
    whole, _, fraction = text.lstrip(b"-").partition(b".")
    ns = int(whole) * _NS + int(fraction[:9].ljust(9, b"0"))
    return -ns if text.startswith(b"-") else ns


def _quote(xattr: bytes) -> bytes:
    # "=" ends the key of a record; GNU tar escapes it this way.
    return xattr.replace(b"%", b"%25").replace(b"=", b"%3D")


def _unquote(xattr: bytes) -> bytes:
    return xattr.replace(b"%3D", b"=").replace(b"%25", b"%")


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _pax_header(records: bytes) -> bytes:
    return b"%b%b%b" % (_pax_block(len(records)), records, padding(len(records)))


@lru_cache(maxsize=1024)
def _pax_block(size: int) -> bytes:
    if size > _MAX_PAX_BYTES:
        raise TarError(f"{size} bytes of extended attributes are too many for one member")
    block = b"".join(
        (
            _PAX_NAME.ljust(_MAX_NAME, b"\0"),
            b"%07o\0%07o\0%07o\0%011o\0%011o\0        x" % (0o644, 0, 0, size, 0),
            bytes(_MAX_NAME),
            b"ustar\x0000",
        )
    )
    return _with_checksum(block.ljust(BLOCK, b"\0"))


class _Window:
    """The last piece read, so that neighbouring headers cost one call."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read = read
        self._size = size
        self._start = 0
        self._data = b""

    def get(self, offset: int, length: int) -> bytes:
        begin = offset - self._start
        if begin < 0 or begin + length > len(self._data):
            self._data = self._read(offset, max(length, self._size))
            self._start, begin = offset, 0
        piece = self._data[begin : begin + length]
        if len(piece) < length:
            raise TarError(f"the archive ends at {offset + len(piece)}, inside a header")
        return piece


def _verified_flag(block: bytes, offset: int) -> bytes:
    if block[257:262] != b"ustar":
        raise TarError(f"no ustar header at offset {offset}")
    stored = _octal(block[148:156], offset)
    if stored != _sum(block[:148] + b"        " + block[156:]):
        raise TarError(f"the header at offset {offset} is damaged: wrong checksum")
    return block[156:157]


def _octal(field: bytes, offset: int) -> int:
    digits = field.strip(b" \0") or b"0"
    if digits.isdigit() and not digits.strip(b"01234567"):
        return int(digits, 8)
    raise TarError(f"the header at offset {offset} has the number {field!r}")


def _parse_records(source: _Window, offset: int, size: int) -> dict[bytes, bytes]:
    if size > _MAX_PAX_BYTES:
        raise TarError(f"the pax header at offset {offset} claims {size} bytes")
    data = source.get(offset, size)
    records = {}
    position = 0
    while position < size:
        try:
            space = data.index(b" ", position)
            end = position + int(data[position:space])
            key, value = data[space + 1 : end - 1].split(b"=", 1)
        except ValueError:
            raise TarError(f"damaged pax record at offset {offset + position}") from None
        if not space < end <= size or data[end - 1] != 0x0A:
            raise TarError(f"damaged pax record at offset {offset + position}")
        records[key] = value
        position = end
    return records


def _member(block: bytes, records: Mapping[bytes, bytes], offset: int) -> Member:
    def text(key: bytes, start: int, end: int) -> bytes:
        return records[key] if key in records else block[start:end].split(b"\0", 1)[0]

    def number(key: bytes, start: int, end: int) -> int:
        if key not in records:
            return _octal(block[start:end], offset)
        if not records[key].isdigit():
            raise ValueError(f"{key.decode()} is {records[key]!r}")
        return int(records[key])

    try:
        kind = MemberType(block[156:157])
        mtime = records.get(b"mtime")
        return Member(
            name=text(b"path", 0, 100).rstrip(b"/"),
            type=kind,
            size=number(b"size", 124, 136),
            mode=_octal(block[100:108], offset),
            uid=number(b"uid", 108, 116),
            gid=number(b"gid", 116, 124),
            uname=text(b"uname", 265, 297),
            gname=text(b"gname", 297, 329),
            mtime_ns=_parse_timestamp(mtime) if mtime else _octal(block[136:148], offset) * _NS,
            link=text(b"linkpath", 157, 257),
            xattrs={
                _unquote(key[len(_XATTR) :]): value
                for key, value in records.items()
                if key.startswith(_XATTR)
            },
        )
    except ValueError as error:
        raise TarError(f"the member at offset {offset} is not readable: {error}") from None
