"""A comparison that would miss a difference proves nothing: each kind is made once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.local.demo.compare import Comparison, compare


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A small tree and an exact copy of it."""
    left = tmp_path / "left"
    (left / "directory").mkdir(parents=True)
    (left / "file").write_bytes(bytes(range(256)) * 5000)
    (left / "other").write_bytes(b"other")
    (left / "link").symlink_to("file")
    os.link(left / "other", left / "directory" / "hard")
    os.setxattr(left / "file", "user.colour", b"green")
    (left / os.fsdecode(b"odd \xff\n")).write_bytes(b"")
    for path in (left / "file", left / "directory", left):
        os.utime(path, ns=(5, 1_234_567_890_123_456_789))
    right = tmp_path / "right"
    _copy(left, right)
    return left, right


def _copy(left: Path, right: Path) -> None:
    shutil.copytree(left, right, symlinks=True)
    (right / "directory" / "hard").unlink()
    os.link(right / "other", right / "directory" / "hard")
    for path in (left / "link", left / "directory", left):
        own = path.lstat()
        times = (own.st_atime_ns, own.st_mtime_ns)
        os.utime(right / path.relative_to(left), ns=times, follow_symlinks=False)


def _compare(pair: tuple[Path, Path]) -> Comparison:
    return compare(*map(os.fsencode, pair))


def test_a_copy_is_the_same(pair: tuple[Path, Path]) -> None:
    outcome = _compare(pair)
    assert outcome.differences == ()
    assert (outcome.entries, outcome.files) == (7, 4)
    assert outcome.bytes == 256 * 5000 + 2 * len(b"other")


def _keep_time(path: Path, change: Callable[[], object]) -> None:
    before = path.stat()
    change()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _change_one_byte(root: Path) -> None:
    content = bytearray((root / "file").read_bytes())
    content[-1] ^= 1
    _keep_time(root / "file", lambda: (root / "file").write_bytes(content))


def _shorten(root: Path) -> None:
    _keep_time(root / "file", lambda: os.truncate(root / "file", 100))


def _change_time(root: Path) -> None:
    before = (root / "file").stat()
    os.utime(root / "file", ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def _change_directory_time(root: Path) -> None:
    os.utime(root / "directory", ns=(5, 5))


def _change_link_time(root: Path) -> None:
    os.utime(root / "link", ns=(5, 5), follow_symlinks=False)


def _change_link(root: Path) -> None:
    before = (root / "link").lstat()
    (root / "link").unlink()
    (root / "link").symlink_to("other")
    times = (before.st_atime_ns, before.st_mtime_ns)
    os.utime(root / "link", ns=times, follow_symlinks=False)
    _restore_root(root)


def _split_hard_link(root: Path) -> None:
    path, before = root / "directory" / "hard", (root / "other").stat()
    path.unlink()
    path.write_bytes(b"other")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.utime(root / "directory", ns=(5, 1_234_567_890_123_456_789))


def _add(root: Path) -> None:
    (root / "new").touch()
    _restore_root(root)


def _remove(root: Path) -> None:
    (root / os.fsdecode(b"odd \xff\n")).unlink()
    _restore_root(root)


def _restore_root(root: Path) -> None:
    os.utime(root, ns=(5, 1_234_567_890_123_456_789))


def _replace_by_directory(root: Path) -> None:
    (root / "link").unlink()
    (root / "link").mkdir()
    _restore_root(root)


@pytest.mark.parametrize(
    ("change", "path", "what"),
    [
        (_change_one_byte, b"file", {"content"}),
        (_shorten, b"file", {"content", "size"}),
        (_change_time, b"file", {"mtime_ns"}),
        (_change_directory_time, b"directory", {"mtime_ns"}),
        (_change_link_time, b"link", {"mtime_ns"}),
        (_change_link, b"link", {"link_target"}),
        (lambda root: (root / "file").chmod(0o4644), b"file", {"mode"}),
        (lambda root: (root / "directory").chmod(0o2755), b"directory", {"mode"}),
        (lambda root: root.chmod(0o711), b".", {"mode"}),
        (lambda root: os.setxattr(root / "file", "user.colour", b"red"), b"file", {"xattrs"}),
        (lambda root: os.setxattr(root / "directory", "user.x", b""), b"directory", {"xattrs"}),
        (lambda root: os.removexattr(root / "file", "user.colour"), b"file", {"xattrs"}),
        (_add, b"new", {"entry"}),
        (_remove, b"odd \xff\n", {"entry"}),
    ],
)
def test_each_kind_of_difference_is_found(
    pair: tuple[Path, Path], change: Callable[[Path], object], path: bytes, what: set[str]
) -> None:
    change(pair[1])
    found = _compare(pair).differences
    assert {(each.path, each.what) for each in found} == {(path, each) for each in what}


def test_another_kind_of_entry(pair: tuple[Path, Path]) -> None:
    _replace_by_directory(pair[1])
    assert (b"link", "kind") in {each[:2] for each in _compare(pair).differences}


def test_a_hard_link_that_became_a_copy(pair: tuple[Path, Path]) -> None:
    _split_hard_link(pair[1])
    found = {each[:2] for each in _compare(pair).differences}
    assert found == {(b"directory/hard", "hard_link"), (b"other", "hard_link")}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_another_owner(pair: tuple[Path, Path]) -> None:
    os.chown(pair[1] / "other", 1, 2)
    found = {each[:2] for each in _compare(pair).differences}
    # Both names are of one inode.
    assert found == {
        (path, what) for path in (b"other", b"directory/hard") for what in ("uid", "gid")
    }


def test_a_difference_tells_where_and_what(pair: tuple[Path, Path]) -> None:
    (pair[1] / "file").chmod(0o600)
    (pair[0] / "file").chmod(0o644)
    (only,) = _compare(pair).differences
    assert str(only) == "b'file': mode is '0600', expected '0644'"
