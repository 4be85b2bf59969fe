import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit.paxtar import (
    BLOCK,
    END,
    Member,
    MemberType,
    TarError,
    iter_members,
    member_header,
    padding,
)

ODD_NAMES = [
    b"plain.txt",
    b"with space",
    b"new\nline",
    b'tab\t and \\ backslash and "quotes" \'',
    b"-rf",
    b"= equals = 12 path=x\n",
    b"\x01\x7f\x1b[31m",
    "naïve 日本語 𝄞".encode(),
    b"latin-1 caf\xe9",
    bytes(sorted(set(range(1, 256)) - {0x2F})),
    b"\xed\xa0\x80 surrogate",
    b"n" * 255,
    b"\xff" * 255,
    "é".encode() * 127,
    b"d" * 200 + b"/" + b"e" * 200,
    b"/".join([b"deep" * 50] * 20)[:4000],
    b"n" * 100,
    b"n" * 101,
]


def archive(members: Sequence[tuple[Member, bytes]]) -> bytes:
    parts = [b"".join((member_header(m), data, padding(len(data)))) for m, data in members]
    return b"".join([*parts, END])


def read_back(data: bytes, window: int = 4096) -> list[tuple[Member, bytes]]:
    found = iter_members(lambda offset, length: data[offset : offset + length], window)
    return [(member, data[start : start + size]) for member, start, size in found]


def extract(tool: str, data: bytes, target: Path, *options: str) -> None:
    (target.parent / "a.tar").write_bytes(data)
    subprocess.run(
        [tool, "-x", "-p", "-f", str(target.parent / "a.tar"), "-C", str(target), *options],
        check=True,
        capture_output=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )


def tree(top: Path) -> set[bytes]:
    base = os.fsencode(top)
    return {
        os.path.relpath(os.path.join(folder, name), base)
        for folder, _, names in os.walk(base)
        for name in names
    }


@pytest.fixture(params=["tar", "bsdtar"])
def tool(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    return name


def test_every_name_is_restored_byte_for_byte(tool: str, tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.mkdir()
    members = [
        (
            Member(name=n, size=3 + i, mode=0o640, mtime_ns=1_600_000_000_123_456_789 + i),
            b"a" * (3 + i),
        )
        for i, n in enumerate(ODD_NAMES)
    ]
    extract(tool, archive(members), target)
    assert tree(target) == set(ODD_NAMES)
    for member, data in members:
        # A path over PATH_MAX would need a walk; these stay below it.
        path = os.path.join(os.fsencode(target), member.name)
        info = os.lstat(path)
        assert (info.st_mtime_ns, info.st_mode & 0o7777) == (member.mtime_ns, member.mode)
        with open(path, "rb") as file:
            assert file.read() == data


def test_types_are_restored(tool: str, tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.mkdir()
    links = [b"dangling", b"\xff\n" * 60, "é".encode(), b"/abs/" + b"t" * 200]
    symlinks = [
        Member(name=b"d/link%d" % i, type=MemberType.SYMLINK, link=link, mode=0o777)
        for i, link in enumerate(links)
    ]
    first = Member(name=b"d/caf\xe9", size=5, mode=0o4751)
    hard = Member(name=b"d/hard", type=MemberType.HARDLINK, link=first.name, mode=0o4751)
    folder = Member(
        name=b"d/empty", type=MemberType.DIRECTORY, mode=0o2750, mtime_ns=1_234_567_890_000_000_001
    )
    members = [folder, first, hard, *symlinks]
    data = archive([(m, b"hello"[: m.size]) for m in members])
    extract(tool, data, target)
    assert os.stat(target / "d/empty").st_mtime_ns == folder.mtime_ns
    assert (target / "d/empty").stat().st_mode & 0o7777 == folder.mode
    assert (target / "d/hard").stat().st_ino == os.stat(os.fsencode(target) + b"/d/caf\xe9").st_ino
    assert (target / "d/hard").stat().st_nlink == 2
    for i, link in enumerate(links):
        assert os.readlink(os.fsencode(target) + b"/d/link%d" % i) == link
    assert [m for m, _ in read_back(data)] == members


@pytest.mark.skipif(os.geteuid() != 0, reason="restoring owners needs root")
def test_owner_and_xattrs_are_restored_by_gnu_tar(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.mkdir()
    big = Member(name=b"big", uid=4_000_000_000, gid=3_000_000_000, uname=b"", gname=b"")
    attrs = {b"user.a=b%3D%25": b"\x00\xff\nvalue", b"user.empty": b"", b"user.\xe9": b"x" * 600}
    named = Member(name=b"named", uid=1, gid=1, uname=b"root", gname=b"root", xattrs=attrs)
    data = archive([(big, b""), (named, b"")])
    extract("tar", data, target, "--xattrs", "--xattrs-include=*", "--same-owner")
    info = os.stat(target / "big")
    assert (info.st_uid, info.st_gid) == (big.uid, big.gid)
    assert os.stat(target / "named").st_uid == 0
    restored = {
        os.fsencode(name): os.getxattr(target / "named", name)
        for name in os.listxattr(target / "named")
    }
    assert restored == attrs
    assert [m for m, _ in read_back(data)] == [big, named]


def test_python_tarfile_agrees() -> None:
    members = [
        (Member(name=n, size=2, uid=7, gid=8, uname=b"u", gname="gé".encode(), mtime_ns=i), b"ab")
        for i, n in enumerate(ODD_NAMES)
    ]
    with tarfile.open(fileobj=io.BytesIO(archive(members)), encoding="utf-8") as tar:
        infos = tar.getmembers()
        assert [info.name.encode("utf-8", "surrogateescape") for info in infos] == ODD_NAMES
        for (member, data), info in zip(members, infos, strict=True):
            file = tar.extractfile(info)
            assert file is not None
            assert file.read() == data
            assert (info.uid, info.gid, info.uname, info.gname) == (7, 8, "u", "gé")
            if member.mtime_ns:
                assert info.pax_headers["mtime"] == f"0.{member.mtime_ns:09d}"


@pytest.mark.parametrize("size", [0o77777777777, 0o77777777777 + 1, 5 * 2**40, 2**63 - 1])
def test_huge_sizes(size: int) -> None:
    header = member_header(Member(name=b"huge", size=size))
    assert tarfile_info(header).size == size
    member, start, length = next(iter_members(lambda at, n: header[at : at + n], 512))
    assert (member.size, start, length) == (size, len(header), size)


def tarfile_info(header: bytes) -> tarfile.TarInfo:
    with tarfile.open(fileobj=io.BytesIO(header + END), ignore_zeros=True) as tar:
        info = tar.next()
    assert info is not None
    return info


@pytest.mark.parametrize(
    "mtime_ns",
    [0, -1, -1_500_000_000, -(10**9), 1, 10**9 - 1, 8_589_934_591 * 10**9, 2**33 * 10**9, 2**62],
)
def test_times_before_1970_and_after_2242(mtime_ns: int, tmp_path: Path) -> None:
    data = archive([(Member(name=b"t", mtime_ns=mtime_ns), b"")])
    assert read_back(data)[0][0].mtime_ns == mtime_ns
    target = tmp_path / "x"
    target.mkdir()
    extract("tar", data, target)
    assert (target / "t").stat().st_mtime_ns == mtime_ns


names = st.binary(min_size=1, max_size=300).filter(
    lambda n: b"\0" not in n and n[:1] != b"/" and n[-1:] != b"/"
)
files = st.builds(
    Member,
    name=names,
    size=st.integers(0, 1200),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32 - 1),
    gid=st.integers(0, 2**32 - 1),
    uname=st.text("aé", max_size=40).map(str.encode),
    gname=st.binary(max_size=40).filter(lambda n: b"\0" not in n),
    mtime_ns=st.integers(-(2**62), 2**62),
    xattrs=st.dictionaries(
        st.binary(min_size=1, max_size=20).filter(lambda n: b"\0" not in n).map(b"user.".__add__),
        st.binary(max_size=100),
        max_size=3,
    ),
)
others = st.builds(
    Member,
    name=names,
    type=st.sampled_from([MemberType.SYMLINK, MemberType.HARDLINK]),
    link=st.binary(min_size=1, max_size=300).filter(lambda n: b"\0" not in n),
) | st.builds(Member, name=names, type=st.just(MemberType.DIRECTORY))


@given(st.lists(files | others, max_size=6), st.sampled_from([512, 1024, 65536]))
def test_reader_gives_back_what_was_written(members: list[Member], window: int) -> None:
    written = [(m, bytes([i + 1]) * m.size) for i, m in enumerate(members)]
    assert read_back(archive(written), window) == written


@given(files)
def test_headers_are_whole_blocks_and_repeatable(member: Member) -> None:
    again = Member(**{f: getattr(member, f) for f in member.__struct_fields__})
    header = member_header(member)
    assert len(header) % BLOCK == 0
    assert header == member_header(again)


def test_plain_member_costs_one_block() -> None:
    assert len(member_header(Member(name=b"a" * 100, mtime_ns=10**18))) == BLOCK


@pytest.mark.parametrize(
    "member",
    [
        Member(name=b""),
        Member(name=b"/abs"),
        Member(name=b"dir/", type=MemberType.DIRECTORY),
        Member(name=b"a\0b"),
        Member(name=b"a", size=-1),
        Member(name=b"a", uid=-1),
        Member(name=b"a", link=b"b"),
        Member(name=b"a", type=MemberType.SYMLINK),
        Member(name=b"a", type=MemberType.DIRECTORY, size=1),
        Member(name=b"a", xattrs={b"user.x": b"v" * (17 << 20)}),
    ],
)
def test_impossible_members_are_refused(member: Member) -> None:
    with pytest.raises(TarError):
        member_header(member)


@given(st.integers(0, 2047), st.integers(1, 255))
def test_a_damaged_header_is_noticed(position: int, flip: int) -> None:
    member = Member(name=b"caf\xe9", size=7, mtime_ns=1, xattrs={b"user.a": b"b"})
    data = bytearray(archive([(member, b"content")]))
    data[position] ^= flip
    in_records = BLOCK <= position < 2 * BLOCK
    if in_records or position >= 3 * BLOCK:
        return  # covered by the digest of the blob, not by tar
    with pytest.raises(TarError):
        read_back(bytes(data))


@pytest.mark.parametrize("cut", [0, 100, 512, 700, 1024, 1600])
def test_a_cut_archive_is_noticed(cut: int) -> None:
    data = archive([(Member(name=b"caf\xe9", size=7), b"content")])
    with pytest.raises(TarError, match="ends at"):
        read_back(data[:cut])


@given(st.binary(min_size=1, max_size=60))
def test_hostile_records_never_hang_the_reader(junk: bytes) -> None:
    header = bytearray(member_header(Member(name=b"\xff", size=7)))
    header[BLOCK : BLOCK + len(junk)] = junk
    try:
        read_back(bytes(header) + b"content".ljust(BLOCK, b"\0") + END)
    except TarError:
        return
