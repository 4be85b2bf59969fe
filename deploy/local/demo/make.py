"""Makes the directory of the demonstration: the same bytes and names for the same seed."""

from __future__ import annotations

import errno
import math
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass

from deploy.local.demo.names import ODD_NAMES

MB = 1_000_000
_BLOCK = 1 << 20
_MEDIAN_BYTES = 6 * 1024
_SPREAD = 1.4
_MOST_BYTES = 1 << 20
_FILES_A_DIRECTORY = 60
_DEPTH = 80
_SECOND = 1_000_000_000
_TIMES = (
    -1,  # the last nanosecond before 1970
    -86_400 * 365 * _SECOND - 987_654_321,
    1,
    1_700_000_000 * _SECOND + 123_456_789,
    4_102_444_800 * _SECOND + 999_999_999,  # the year 2100
)
_TIMED = (b"file", b"link", b"directory")
_FILE_MODES = (0o400, 0o440, 0o600, 0o644, 0o664, 0o750, 0o777, 0o4711, 0o2755)
_DIRECTORY_MODES = (0o500, 0o555, 0o700, 0o750, 0o1777, 0o2750, 0o2775)


@dataclass(frozen=True)
class Plan:
    """What to make: a number of small files, and the sizes of large ones in bytes."""

    files: int
    large: tuple[int, ...]
    seed: int = 1

    def expected_bytes(self) -> int:
        """About how many bytes there will be."""
        mean = _MEDIAN_BYTES * math.exp(_SPREAD**2 / 2)
        return int(self.files * mean) + sum(self.large)


def make_tree(root: bytes, plan: Plan) -> None:
    """Make ``root`` and everything in it as the user that this thread acts as. Raises OSError."""
    os.mkdir(root)
    chance = random.Random(plan.seed)
    many = make_many(root, plan.files, chance)
    _make_large(root, plan.large, chance)
    _make_odd_names(root, chance)
    _make_links(root, many)
    _make_empty(root)
    _make_deep(root, chance)
    _make_attributes(root, chance)
    # Last: whatever is made in a directory changes its time.
    _make_times(root)


def make_many(root: bytes, count: int, chance: random.Random) -> list[bytes]:
    """Small files of log-normal sizes in a tree as a model run leaves it; their paths."""
    paths = []
    for number in range(count):
        run, month = divmod(number // _FILES_A_DIRECTORY, 12)
        directory = os.path.join(root, b"runs", b"r%02d" % run, b"%02d" % (month + 1))
        if number % _FILES_A_DIRECTORY == 0:
            os.makedirs(directory)
        path = os.path.join(directory, b"tas_day_r%02di1p1_%05d.nc" % (run, number))
        write(path, chance.randbytes(_small_size(chance)))
        paths.append(path)
    return paths


def write_large(path: bytes, size: int, chance: random.Random) -> None:
    """A file of ``size`` bytes, no two blocks of it alike, from one block of random bytes."""
    block = chance.randbytes(_BLOCK) * 2
    with open(path, "xb", buffering=0) as stream:
        for number, start in enumerate(range(0, size, _BLOCK)):
            at = number * 4099 % _BLOCK
            stream.write(memoryview(block)[at : at + min(_BLOCK, size - start)])


def write(path: bytes, content: bytes) -> None:
    """A new file with this content."""
    with open(path, "xb", buffering=0) as stream:
        stream.write(content)


def _small_size(chance: random.Random) -> int:
    return min(1 + int(chance.lognormvariate(math.log(_MEDIAN_BYTES), _SPREAD)), _MOST_BYTES)


def _make_large(root: bytes, sizes: Sequence[int], chance: random.Random) -> None:
    directory = _directory(root, b"large")
    for number, size in enumerate(sizes, 1):
        write_large(os.path.join(directory, b"scene_%d.zarr.zip" % number), size, chance)


def _make_odd_names(root: bytes, chance: random.Random) -> None:
    files, directories = _directory(root, b"odd files"), _directory(root, b"odd \xff directories")
    for name in ODD_NAMES:
        write(os.path.join(files, name), chance.randbytes(100))
        inner = _directory(directories, name)
        write(os.path.join(inner, name), chance.randbytes(10))


def _make_links(root: bytes, many: Sequence[bytes]) -> None:
    directory = _directory(root, b"links")
    targets = {
        b"relative": b"../large",
        b"absolute": os.path.join(root, b"runs"),
        b"dangling": b"nowhere/at all",
        b"to itself": b"to itself",
        b"outside": b"/etc/hostname",
        b"bytes \xff": b"target \xfe\nof bytes",
        b"long": b"x/" * 500 + b"y",
        **{b"file %d" % number: path for number, path in enumerate(many[:20])},
    }
    for name, target in targets.items():
        os.symlink(target, os.path.join(directory, name))
    _make_hard_links(directory, many)


def _make_hard_links(directory: bytes, many: Sequence[bytes]) -> None:
    own = os.path.join(directory, b"hard 0")
    write(own, b"one inode, three names\n")
    os.link(own, os.path.join(directory, b"hard 1"))
    os.link(own, os.path.join(_directory(directory, b"elsewhere"), b"hard 2"))
    for number, path in enumerate(many[:5]):
        os.link(path, os.path.join(directory, b"hard link of a small file %d" % number))


def _make_empty(root: bytes) -> None:
    directory = _directory(root, b"empty")
    for number in range(20):
        write(os.path.join(directory, b"empty file %d" % number), b"")
        _directory(directory, b"empty directory %d" % number)


def _make_deep(root: bytes, chance: random.Random) -> None:
    directory = _directory(root, b"deep")
    for level in range(_DEPTH):
        directory = _directory(directory, b"level %02d" % level)
    write(os.path.join(directory, b"bottom"), chance.randbytes(1000))


def _make_attributes(root: bytes, chance: random.Random) -> None:
    directory = _directory(root, b"attributes")
    for mode in _FILE_MODES:
        path = os.path.join(directory, b"file %04o" % mode)
        write(path, chance.randbytes(500))
        _set_xattrs(path, chance)
        os.chmod(path, mode)
    for mode in _DIRECTORY_MODES:
        inner = _directory(directory, b"directory %04o" % mode)
        write(os.path.join(inner, b"inside"), chance.randbytes(50))
        _set_xattrs(inner, chance)
        os.chmod(inner, mode)


def _set_xattrs(path: bytes, chance: random.Random) -> None:
    values = {
        b"user.nearline.text": "grün".encode(),
        b"user.nearline.bytes": b"\x00\xff" + chance.randbytes(100),
        b"user.nearline.empty": b"",
        "user.nearline.ключ".encode(): b"a key of other letters",
    }
    try:
        for name, value in values.items():
            os.setxattr(path, name, value)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise


def _make_times(root: bytes) -> None:
    directory = _directory(root, b"times")
    wanted: dict[bytes, int] = {}
    for number, time in enumerate(_TIMES):
        file, link, inner = (directory + b"/%b %d" % (kind, number) for kind in _TIMED)
        write(file, b"a time of its own\n")
        os.symlink(b"file", link)
        os.mkdir(inner)
        wanted |= dict.fromkeys((file, link, inner), time)
    for number, each in enumerate(sorted(path for path, _, _ in os.walk(root))):
        _set_time(each, 1_600_000_000 * _SECOND + number * 1_000_000_007)
    for path, time in wanted.items():
        _set_time(path, time)


def _set_time(path: bytes, time: int) -> None:
    try:
        os.utime(path, ns=(time, time), follow_symlinks=False)
    except OSError as error:
        # Not every file system keeps times before 1970 or after 2038.
        if error.errno not in (errno.EINVAL, errno.EOVERFLOW):
            raise


def _directory(parent: bytes, name: bytes) -> bytes:
    path = os.path.join(parent, name)
    os.mkdir(path)
    return path
