"""Users' files through the kernel's eyes: odd names, races, denials, restored metadata."""

from __future__ import annotations

import errno
import os
import random
import resource
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.kit import crash
from services.kit.errors import PermissionDenied
from services.transfer import userfs
from services.transfer.credentials import Credentials
from services.transfer.entries import Entry, Kind, Metadata, Unreadable, Unvisited
from services.transfer.filefailures import FileCode, FileError, from_os_error
from services.transfer.userfs import NewFile, UserFiles, UserFs

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="serving other users needs root")
ROOT = os.geteuid() == 0
USER = Credentials(20001, 20001, (20001, 30001)) if ROOT else Credentials(os.geteuid(), os.getgid())
OTHER = Credentials(20002, 20002, (20002,))
ODD_NAMES = [
    b"with space",
    b"new\nline",
    b"-rf *",
    b"caf\xe9 \xff\xfe",
    "日本".encode(),
    b"n" * 255,
    b"\xff" * 255,
    b"\x01\x1b[31m\x7f",
    b"...",
]


@pytest.fixture
def top() -> Iterator[Path]:
    """A directory that every user may pass; pytest closes its own to all but this one."""
    top = Path(tempfile.mkdtemp(prefix="nearline-userfs-"))
    top.chmod(0o711)
    yield top
    # Python's own removal gives up on deep trees.
    subprocess.run(["rm", "-rf", top], check=True)


@pytest.fixture
def home(top: Path) -> bytes:
    """A directory of the user."""
    return folder(os.fsencode(top) + b"/home")


@pytest.fixture
def files(home: bytes) -> Iterator[UserFiles]:
    with UserFs([home]).serving(USER) as served:
        yield served


def give(path: bytes, user: Credentials = USER) -> bytes:
    if ROOT:
        os.chown(path, user.uid, user.gid, follow_symlinks=False)
    return path


def make(path: bytes, data: bytes = b"", mode: int = 0o644) -> bytes:
    with open(path, "wb") as file:
        file.write(data)
    give(path)
    os.chmod(path, mode)
    return path


def folder(path: bytes, mode: int = 0o755) -> bytes:
    os.mkdir(path)
    os.chmod(path, mode)
    return give(path)


def walked(files: UserFiles, path: bytes) -> dict[bytes, Entry | FileCode]:
    found: dict[bytes, Entry | FileCode] = {}
    for item in files.walk(path):
        assert item.path not in found
        found[item.path] = item.failure.code if isinstance(item, Unreadable) else item
    return found


def code_of(caught: pytest.ExceptionInfo[FileError]) -> FileCode:
    return caught.value.failure.code


def read_all(files: UserFiles, path: bytes) -> bytes:
    parts = []
    buffer = bytearray(7)
    with files.open_read(path) as source:
        while count := source.read_into(buffer):
            parts.append(bytes(buffer[:count]))
        source.check_unchanged()
    return b"".join(parts)


class TestWalk:
    def test_all_kinds_and_their_attributes(self, home: bytes, files: UserFiles) -> None:
        folder(home + b"/d", 0o2750)
        make(home + b"/d/f", b"12345", 0o4640)
        os.utime(home + b"/d/f", ns=(1, 1_600_000_000_123_456_789))
        os.setxattr(home + b"/d/f", "user.note", b"\x00\xff")
        os.link(home + b"/d/f", home + b"/d/hard")
        os.symlink(b"caf\xe9/nowhere", home + b"/d/link")
        folder(home + b"/d/empty")
        found = walked(files, home)
        assert set(found) == {
            home + name for name in (b"", b"/d", b"/d/f", b"/d/hard", b"/d/link", b"/d/empty")
        }
        file, hard, link = (found[home + b"/d/" + n] for n in (b"f", b"hard", b"link"))
        assert isinstance(file, Entry)
        assert isinstance(hard, Entry)
        assert isinstance(link, Entry)
        assert (file.kind, file.size, file.mode) == (Kind.FILE, 5, 0o4640)
        assert (file.uid, file.gid, file.nlink) == (USER.uid, USER.gid, 2)
        assert file.mtime_ns == 1_600_000_000_123_456_789
        assert file.xattrs == {b"user.note": b"\x00\xff"}
        assert (hard.dev, hard.ino) == (file.dev, file.ino)
        assert (link.kind, link.size, link.link_target) == (Kind.SYMLINK, 0, b"caf\xe9/nowhere")
        directory = found[home + b"/d"]
        assert isinstance(directory, Entry)
        assert (directory.kind, directory.size, directory.mode) == (Kind.DIRECTORY, 0, 0o2750)

    @pytest.mark.parametrize("name", ODD_NAMES)
    def test_odd_names(self, home: bytes, files: UserFiles, name: bytes) -> None:
        folder(home + b"/" + name)
        make(home + b"/" + name + b"/" + name, b"x")
        path = home + b"/" + name + b"/" + name
        assert set(walked(files, home)) == {home, home + b"/" + name, path}
        assert files.stat(path).size == 1
        assert read_all(files, path) == b"x"

    def test_a_directory_comes_before_its_content(self, home: bytes, files: UserFiles) -> None:
        os.makedirs(home + b"/a/b/c")
        make(home + b"/a/b/c/f")
        order = [item.path for item in files.walk(home)]
        assert order == sorted(order, key=len)

    def test_single_file_and_link(self, home: bytes, files: UserFiles) -> None:
        make(home + b"/f", b"x")
        os.symlink(b"/etc", home + b"/l")
        assert list(walked(files, home + b"/f")) == [home + b"/f"]
        link = walked(files, home + b"/l")[home + b"/l"]
        assert isinstance(link, Entry)
        assert link.link_target == b"/etc"

    def test_special_files_are_reported(self, home: bytes, files: UserFiles) -> None:
        os.mkfifo(home + b"/pipe")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(home + b"/sock")
            found = walked(files, home)
        assert found[home + b"/pipe"] is FileCode.UNSUPPORTED_TYPE
        assert found[home + b"/sock"] is FileCode.UNSUPPORTED_TYPE
        with pytest.raises(FileError) as caught:
            files.open_read(home + b"/pipe")
        assert code_of(caught) is FileCode.UNSUPPORTED_TYPE

    def test_unreadable_directories_do_not_end_the_walk(
        self, home: bytes, files: UserFiles
    ) -> None:
        make(folder(home + b"/closed") + b"/f")
        make(home + b"/open")
        os.chmod(home + b"/closed", 0o300)
        found = walked(files, home)
        os.chmod(home + b"/closed", 0o700)
        assert found[home + b"/closed"] is FileCode.PERMISSION_DENIED
        assert isinstance(found[home + b"/open"], Entry)
        assert len(found) == 3

    def test_a_directory_without_search_right(self, home: bytes, files: UserFiles) -> None:
        make(folder(home + b"/d") + b"/f")
        os.chmod(home + b"/d", 0o400)
        found = walked(files, home)
        os.chmod(home + b"/d", 0o700)
        assert found[home + b"/d"] is FileCode.PERMISSION_DENIED

    def test_what_vanishes_meanwhile_is_reported(self, home: bytes, files: UserFiles) -> None:
        for name in (b"/a", b"/b"):
            make(folder(home + name) + b"/f")
        walk = files.walk(home)
        next(walk)
        first = next(walk).path
        assert first in (home + b"/a", home + b"/b")
        for name in (b"/a", b"/b"):
            os.unlink(home + name + b"/f")
            os.rmdir(home + name)
        rest = {
            item.path: item.failure.code if isinstance(item, Unreadable) else item.path
            for item in walk
        }
        other = home + (b"/b" if first.endswith(b"/a") else b"/a")
        assert rest[other] is FileCode.VANISHED

    @pytest.mark.parametrize("target", [b"/etc", b"inside"])
    def test_a_directory_swapped_for_a_link_is_not_followed(
        self, home: bytes, files: UserFiles, target: bytes
    ) -> None:
        make(folder(home + b"/inside") + b"/secret")
        make(folder(home + b"/top") + b"/f")
        folder(home + b"/top/d")
        walk = files.walk(home + b"/top")
        assert [next(walk).path, next(walk).path] == [home + b"/top", home + b"/top/f"]
        os.rmdir(home + b"/top/d")
        os.symlink(b"../" + target if target == b"inside" else target, home + b"/top/d")
        assert [(i.path, i.failure.code) for i in walk if isinstance(i, Unreadable)] == [
            (home + b"/top/d", FileCode.CHANGED)
        ]

    def test_missing(self, home: bytes, files: UserFiles) -> None:
        assert walked(files, home + b"/no") == {home + b"/no": FileCode.NOT_FOUND}
        assert walked(files, home + b"/no/no") == {home + b"/no/no": FileCode.NOT_FOUND}

    def test_deep_trees_need_no_recursion_and_few_descriptors(
        self, home: bytes, files: UserFiles
    ) -> None:
        path, depth = home, 0
        while len(path) < 4090:
            path += b"/d"
            depth += 1
            folder(path)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        opened = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 60, hard))
        try:
            found = walked(files, home)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert len(found) == depth + 1
        assert all(isinstance(item, Entry) for item in found.values())

    def test_paths_that_are_too_long_are_reported(self, home: bytes, files: UserFiles) -> None:
        here = os.open(home, os.O_PATH)
        for _ in range(20):
            os.mkdir(b"n" * 250, dir_fd=here)
            below = os.open(b"n" * 250, os.O_PATH, dir_fd=here)
            if ROOT:
                os.chown(b"n" * 250, USER.uid, USER.gid, dir_fd=here)
            os.close(here)
            here = below
        os.close(here)
        codes = [item.failure.code for item in files.walk(home) if isinstance(item, Unreadable)]
        assert codes == [FileCode.NAME_TOO_LONG]

    def test_many_entries_in_one_directory(self, home: bytes, files: UserFiles) -> None:
        for number in range(1203):
            make(home + b"/%d" % number)
        assert len(walked(files, home)) == 1204

    def test_a_walk_can_be_dealt_out(self, home: bytes, files: UserFiles) -> None:
        for number in range(5):
            make(folder(home + b"/d%d" % number) + b"/f")
        met: list[bytes] = []
        rest = [home]
        walks = 0
        while rest:
            begun = len(met)
            walks += 1
            for found in files.walk(rest.pop(), lambda begun=begun: len(met) - begun >= 3):
                (rest if isinstance(found, Unvisited) else met).append(found.path)
        assert walks > 1
        assert sorted(met) == sorted(walked(files, home))

    def test_leaving_early_leaks_nothing(self, home: bytes) -> None:
        folder(home + b"/d")
        before = len(os.listdir("/proc/self/fd"))
        with UserFs([home]).serving(USER) as files:
            next(files.walk(home))
        assert len(os.listdir("/proc/self/fd")) == before

    @needs_root
    def test_identity_is_held_only_while_needed(self, home: bytes, files: UserFiles) -> None:
        for number in range(600):
            make(home + b"/%d" % number)
        for _ in files.walk(home):
            status = Path("/proc/thread-self/status").read_text()
            assert "\nUid:\t0\t0\t0\t0\n" in status


class TestRoots:
    def test_outside_is_refused(self, home: bytes, top: Path, files: UserFiles) -> None:
        outside = os.fsencode(top) + b"/outside"
        folder(outside)
        make(outside + b"/f")
        give_back = Metadata(mode=0o600, mtime_ns=0)
        for call in (
            lambda: files.open_read(outside + b"/f"),
            lambda: files.stat(outside),
            lambda: files.atomic_write(outside + b"/new"),
            lambda: files.make_dirs(outside + b"/a/b"),
            lambda: files.make_symlink(outside + b"/l", b"x", give_back),
            lambda: files.set_dir_metadata(outside, give_back),
            lambda: files.make_hardlink(outside + b"/f", home + b"/f"),
            lambda: files.stat(home + b"-sibling"),
            lambda: files.stat(b"/"),
        ):
            with pytest.raises(FileError) as caught:
                call()
            assert code_of(caught) is FileCode.OUTSIDE_ROOTS
        assert walked(files, outside) == {outside: FileCode.OUTSIDE_ROOTS}
        assert os.listdir(outside) == [b"f"]

    def test_a_link_leads_out_or_stays_in(self, home: bytes, top: Path, files: UserFiles) -> None:
        make(folder(home + b"/in") + b"/f", b"in")
        os.symlink(b"in", home + b"/inner")
        os.symlink(b"/etc", home + b"/outer")
        assert read_all(files, home + b"/inner/f") == b"in"
        assert len(walked(files, home + b"/inner")) == 1
        with pytest.raises(FileError) as caught:
            files.open_read(home + b"/outer/passwd")
        assert code_of(caught) is FileCode.OUTSIDE_ROOTS
        with pytest.raises(FileError) as caught:
            files.atomic_write(home + b"/outer/x")
        assert code_of(caught) is FileCode.OUTSIDE_ROOTS

    def test_walk_below_a_link_shows_the_paths_asked_for(
        self, home: bytes, files: UserFiles
    ) -> None:
        make(folder(folder(home + b"/real") + b"/d") + b"/f")
        os.symlink(b"real", home + b"/alias")
        assert set(walked(files, home + b"/alias/d")) == {
            home + b"/alias/d",
            home + b"/alias/d/f",
        }

    def test_the_root_directory_may_be_a_root(self, home: bytes) -> None:
        make(home + b"/f", b"x")
        with UserFs([b"/"]).serving(USER) as files:
            assert read_all(files, home + b"/f") == b"x"
            assert next(files.walk(b"/")).path == b"/"
            assert files.stat(b"/").kind is Kind.DIRECTORY

    def test_swapping_links_never_leads_out(self, home: bytes, top: Path) -> None:
        """One thread swaps a directory for a link to the outside as fast as it can."""
        outside = os.fsencode(top) + b"/outside"
        folder(outside, 0o777)
        make(outside + b"/f", b"secret")
        make(folder(home + b"/real") + b"/f", b"mine")
        os.symlink(outside, home + b"/evil")
        os.rename(home + b"/real", home + b"/d")
        stop = threading.Event()

        def swap() -> None:
            while not stop.is_set():
                os.rename(home + b"/d", home + b"/real")
                os.rename(home + b"/evil", home + b"/d")
                os.rename(home + b"/d", home + b"/evil")
                os.rename(home + b"/real", home + b"/d")

        thread = threading.Thread(target=swap)
        thread.start()
        outcomes = set()
        try:
            for _ in range(1500):
                with UserFs([home]).serving(USER) as files:
                    outcomes.add(attempt_swapped(files, home + b"/d"))
        finally:
            stop.set()
            thread.join()
        assert os.listdir(outside) == [b"f"]
        assert outcomes <= {b"mine", *FileCode}
        assert b"mine" in outcomes

    def test_low_ids_are_refused(self, home: bytes) -> None:
        with pytest.raises(PermissionDenied) as caught:
            UserFs([home], min_uid=1000).serving(Credentials(33, 33))
        assert caught.value.reason == "UID_REFUSED"
        with pytest.raises(PermissionDenied) as caught:
            UserFs([home], min_uid=1000).serving(Credentials(0, 0))
        assert caught.value.reason == "ROOT_REFUSED"


def attempt_swapped(files: UserFiles, path: bytes) -> bytes | FileCode:
    try:
        with files.atomic_write(path + b"/new") as new:
            new.write(b"x")
            new.commit(Metadata(mode=0o600, mtime_ns=0))
        return read_all(files, path + b"/f")
    except FileError as error:
        return error.failure.code


class TestRead:
    def test_a_changing_file_is_noticed(self, home: bytes, files: UserFiles) -> None:
        path = make(home + b"/f", b"before")
        for change in (
            lambda: make(path, b"longer than before"),
            lambda: os.truncate(path, 1),
            lambda: os.chmod(path, 0o600),
            lambda: rewrite_and_hide(path),
        ):
            with files.open_read(path) as source:
                source.check_unchanged()
                change()
                with pytest.raises(FileError) as caught:
                    source.check_unchanged()
                assert code_of(caught) is FileCode.CHANGED

    def test_refusals(self, home: bytes, files: UserFiles) -> None:
        make(home + b"/closed", mode=0o000)
        os.symlink(b"closed", home + b"/link")
        for name, code in (
            (b"/closed", FileCode.PERMISSION_DENIED),
            (b"/link", FileCode.CHANGED),
            (b"/none", FileCode.NOT_FOUND),
            (b"/closed/x", FileCode.NOT_A_DIRECTORY),
            (b"/" + b"n" * 256, FileCode.NAME_TOO_LONG),
            (b"", FileCode.IS_A_DIRECTORY),
        ):
            with pytest.raises(FileError) as caught:
                files.open_read(home + name)
            assert code_of(caught) is code
            assert not caught.value.failure.transient
            assert "/" not in caught.value.failure.reason

    @needs_root
    def test_another_users_files_are_refused(self, home: bytes) -> None:
        make(home + b"/private", b"x", 0o600)
        folder(home + b"/shared", 0o700)
        make(home + b"/shared/f", b"x", 0o644)
        with UserFs([home]).serving(OTHER) as files:
            for name in (b"/private", b"/shared/f"):
                with pytest.raises(FileError) as caught:
                    files.open_read(home + name)
                assert code_of(caught) is FileCode.PERMISSION_DENIED
            assert walked(files, home)[home + b"/shared"] is FileCode.PERMISSION_DENIED
            with pytest.raises(FileError) as caught:
                files.atomic_write(home + b"/new")
            assert code_of(caught) is FileCode.PERMISSION_DENIED

    @needs_root
    def test_files_of_others_that_may_be_read_are(self, home: bytes) -> None:
        make(home + b"/public", b"x", 0o644)
        with UserFs([home]).serving(OTHER) as files:
            assert read_all(files, home + b"/public") == b"x"

    def test_reading_leaves_the_access_time(self, home: bytes, files: UserFiles) -> None:
        path = make(home + b"/f", b"x")
        os.utime(path, ns=(5, 10**18))
        assert read_all(files, path) == b"x"
        assert os.stat(path).st_atime_ns == 5


def rewrite_and_hide(path: bytes) -> None:
    """Write the same number of bytes and set the modification time back."""
    info = os.stat(path)
    with open(path, "r+b") as file:
        file.write(b"B" * info.st_size)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


class TestWrite:
    @pytest.mark.parametrize("name", [b"plain", *ODD_NAMES])
    def test_bytes_and_metadata_come_back(self, home: bytes, files: UserFiles, name: bytes) -> None:
        data = random.Random(1).randbytes(300_000)
        metadata = Metadata(
            mode=0o4551,
            mtime_ns=-1_500_000_000,
            gid=USER.gid,
            xattrs={b"user.caf\xe9": b"\x00\xff", b"user.b": b""},
        )
        with files.atomic_write(home + b"/" + name) as new:
            for start in range(0, len(data), 70_000):
                new.write(memoryview(data)[start : start + 70_000])
            assert not os.path.lexists(home + b"/" + name)
            assert new.commit(metadata) == ()
        entry = files.stat(home + b"/" + name)
        assert (entry.mode, entry.mtime_ns, entry.xattrs) == (
            0o4551,
            -(3 * 10**9) // 2,
            metadata.xattrs,
        )
        assert (entry.uid, entry.gid) == (USER.uid, USER.gid)
        assert read_all(files, home + b"/" + name) == data
        assert os.listdir(home) == [name]

    def test_an_old_file_is_replaced_at_once(self, home: bytes, files: UserFiles) -> None:
        make(home + b"/f", b"old")
        with files.atomic_write(home + b"/f") as new:
            new.write(b"new")
            assert read_all(files, home + b"/f") == b"old"
            new.commit(Metadata(mode=0o600, mtime_ns=1))
        assert read_all(files, home + b"/f") == b"new"

    def test_nothing_is_left_without_commit(self, home: bytes, files: UserFiles) -> None:
        descriptors = os.listdir("/proc/self/fd")

        def fail() -> None:
            with files.atomic_write(home + b"/f") as new:
                new.write(b"x")
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail()
        assert os.listdir(home) == []
        assert len(os.listdir("/proc/self/fd")) <= len(descriptors) + 1  # the open directory

    def test_bad_targets_fail_before_a_byte_is_written(self, home: bytes, files: UserFiles) -> None:
        folder(home + b"/d")
        make(home + b"/f")
        folder(home + b"/closed", 0o500)
        for name, code in (
            (b"/d", FileCode.IS_A_DIRECTORY),
            (b"/none/f", FileCode.NOT_FOUND),
            (b"/f/f", FileCode.NOT_A_DIRECTORY),
            (b"/closed/f", FileCode.PERMISSION_DENIED),
            (b"/" + b"n" * 256, FileCode.NAME_TOO_LONG),
        ):
            with pytest.raises(FileError) as caught:
                files.atomic_write(home + name)
            assert code_of(caught) is code

    def test_a_directory_made_meanwhile_is_not_harmed(self, home: bytes, files: UserFiles) -> None:
        with files.atomic_write(home + b"/f") as new:
            folder(home + b"/f")
            with pytest.raises(FileError) as caught:
                new.commit(Metadata(mode=0o600, mtime_ns=1))
        assert code_of(caught) is FileCode.IS_A_DIRECTORY
        assert os.listdir(home) == [b"f"]

    @needs_root
    def test_a_full_disk_is_permanent_and_leaves_nothing(self, home: bytes) -> None:
        small = folder(home + b"/small")
        options = f"size=1m,uid={USER.uid},gid={USER.gid}"
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", small]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("this machine does not allow mounts")

        def fill(new: NewFile) -> None:
            for _ in range(300):
                new.write(bytes(10_000))

        try:
            with UserFs([home]).serving(USER) as files:
                with files.atomic_write(small + b"/f") as new, pytest.raises(FileError) as caught:
                    fill(new)
                assert os.listdir(small) == []
        finally:
            subprocess.run(["umount", small], check=True)
        assert code_of(caught) is FileCode.NO_SPACE
        assert not caught.value.failure.transient

    @needs_root
    def test_what_may_not_be_restored_is_told(self, home: bytes, files: UserFiles) -> None:
        with files.atomic_write(home + b"/f") as new:
            lost = new.commit(
                Metadata(mode=0o644, mtime_ns=1, gid=12345, xattrs={b"trusted.x": b"1"})
            )
        assert lost == ("xattrs", "group")
        with files.atomic_write(home + b"/g") as new:
            assert new.commit(Metadata(mode=0o2755, mtime_ns=1, gid=30001)) == ()
        assert files.stat(home + b"/g").gid == 30001
        os.chown(folder(home + b"/others"), OTHER.uid, OTHER.gid)
        assert files.set_dir_metadata(
            home + b"/others", Metadata(mode=0o700, mtime_ns=1, gid=30001)
        ) == ("group", "mode", "mtime")

    @needs_root
    def test_a_program_of_another_user_comes_back_without_setuid(
        self, home: bytes, files: UserFiles
    ) -> None:
        def restored(name: bytes, **recorded: int) -> tuple[int, tuple[str, ...]]:
            with files.atomic_write(home + name) as new:
                new.write(b"#!/bin/sh")
                lost = new.commit(Metadata(mode=0o6755, mtime_ns=1, **recorded))
            return files.stat(home + name).mode, lost

        assert restored(b"/own", uid=USER.uid, gid=30001) == (0o6755, ())
        assert restored(b"/theirs", uid=OTHER.uid, gid=30001) == (0o755, ("mode",))
        assert restored(b"/group", uid=USER.uid, gid=OTHER.gid) == (0o4755, ("group", "mode"))

    def test_links_below_the_target_lead_nowhere(self, home: bytes) -> None:
        private, target = folder(home + b"/private"), folder(home + b"/target")
        os.symlink(private, target + b"/evil")
        os.symlink(target, home + b"/alias")
        for top in (target, home + b"/alias"):
            with UserFs([home]).serving(USER, top) as files:
                for attempt in (
                    lambda path: files.atomic_write(path + b"/evil/keys"),
                    lambda path: files.make_dirs(path + b"/evil/sub"),
                    lambda path: files.make_symlink(
                        path + b"/evil/link", b"x", Metadata(mode=0o777, mtime_ns=1)
                    ),
                    lambda path: files.set_dir_metadata(
                        path + b"/evil", Metadata(mode=0o777, mtime_ns=1)
                    ),
                ):
                    with pytest.raises(FileError) as caught:
                        attempt(top)
                    assert code_of(caught) is FileCode.NOT_A_DIRECTORY
                # The user chose what is above: links in the way to the target are fine.
                files.make_dirs(top + b"/a/b")
                files.make_dirs(top + b"/a/b/c")
                with files.atomic_write(top + b"/a/b/c/f") as new:
                    new.commit(Metadata(mode=0o644, mtime_ns=1))
        assert os.listdir(private) == []
        assert os.listdir(target + b"/a/b/c") == [b"f"]

    def test_directories(self, home: bytes, files: UserFiles) -> None:
        files.make_dirs(home + b"/a/caf\xe9/c")
        files.make_dirs(home + b"/a/caf\xe9/c")
        files.make_dirs(home)
        entry = files.stat(home + b"/a/caf\xe9/c")
        assert (entry.kind, entry.uid) == (Kind.DIRECTORY, USER.uid)
        metadata = Metadata(mode=0o1300, mtime_ns=7, xattrs={b"user.d": b"1"})
        assert files.set_dir_metadata(home + b"/a", metadata) == ()
        info = files.stat(home + b"/a")
        assert (info.mode, info.mtime_ns) == (0o1300, 7)
        os.chmod(home + b"/a", 0o755)
        assert os.getxattr(home + b"/a", "user.d") == b"1"
        make(home + b"/f")
        os.symlink(b"nowhere", home + b"/broken")
        for name, code in (
            (b"/f/x", FileCode.NOT_A_DIRECTORY),
            (b"/f", FileCode.NOT_A_DIRECTORY),
            (b"/broken/x", FileCode.NOT_FOUND),
            (b"/" + b"n" * 256, FileCode.NAME_TOO_LONG),
        ):
            with pytest.raises(FileError) as caught:
                files.make_dirs(home + name)
            assert code_of(caught) is code

    def test_thousand_directories_deep(self, home: bytes, files: UserFiles) -> None:
        path = home + b"/d" * ((4090 - len(home)) // 2)
        files.make_dirs(path)
        assert files.stat(path).kind is Kind.DIRECTORY

    def test_links(self, home: bytes, files: UserFiles) -> None:
        metadata = Metadata(mode=0o777, mtime_ns=123_456_789, gid=USER.gid)
        make(home + b"/old")
        for target in (b"caf\xe9", b"/etc/passwd", b"t" * 4000):
            assert files.make_symlink(home + b"/old", target, metadata) == ()
            entry = files.stat(home + b"/old")
            assert (entry.link_target, entry.mtime_ns) == (target, 123_456_789)
            assert entry.uid == USER.uid
        make(home + b"/one", b"1")
        files.make_hardlink(home + b"/one", home + b"/two")
        files.make_hardlink(home + b"/one", home + b"/two")
        assert files.stat(home + b"/two").ino == files.stat(home + b"/one").ino
        folder(home + b"/d")
        for call in (
            lambda: files.make_symlink(home + b"/d", b"x", metadata),
            lambda: files.make_hardlink(home + b"/one", home + b"/d"),
        ):
            with pytest.raises(FileError) as caught:
                call()
            assert code_of(caught) is FileCode.IS_A_DIRECTORY
        assert sorted(os.listdir(home)) == [b"d", b"old", b"one", b"two"]

    def test_operations_may_share_one_identity(self, home: bytes, files: UserFiles) -> None:
        with files.acting():
            with files.atomic_write(home + b"/f") as new:
                new.write(b"x")
                new.commit(Metadata(mode=0o600, mtime_ns=1))
            assert read_all(files, home + b"/f") == b"x"
            if ROOT:
                assert f"\t{USER.uid}\n" in Path("/proc/thread-self/status").read_text()
        if ROOT:
            assert "\nUid:\t0\t0\t0\t0\n" in Path("/proc/thread-self/status").read_text()


@pytest.mark.parametrize(
    ("number", "code", "transient"),
    [
        (errno.EACCES, FileCode.PERMISSION_DENIED, False),
        (errno.ENOENT, FileCode.NOT_FOUND, False),
        (errno.ENOSPC, FileCode.NO_SPACE, False),
        (errno.EDQUOT, FileCode.QUOTA_EXCEEDED, False),
        (errno.EROFS, FileCode.READ_ONLY, False),
        (errno.EIO, FileCode.FILESYSTEM_UNAVAILABLE, True),
        (errno.ESTALE, FileCode.FILESYSTEM_UNAVAILABLE, True),
        (errno.ETIMEDOUT, FileCode.FILESYSTEM_UNAVAILABLE, True),
        (errno.EMFILE, FileCode.FILESYSTEM_UNAVAILABLE, True),
        (errno.EDOM, FileCode.READ_ERROR, False),
    ],
)
def test_errors_of_the_system(number: int, code: FileCode, transient: bool) -> None:
    failure = from_os_error(OSError(number, "text", "/secret/path"))
    assert (failure.code, failure.transient) == (code, transient)
    assert errno.errorcode[number] in failure.reason
    assert "secret" not in failure.reason


def test_absence_of_what_was_seen() -> None:
    assert from_os_error(FileNotFoundError(errno.ENOENT, ""), seen=True).code is FileCode.VANISHED


def test_a_killed_attempt_leaves_nothing(home: bytes) -> None:
    program = f"""
import os
from services.transfer.credentials import Credentials
from services.transfer.userfs import UserFs
with UserFs([{home!r}]).serving(Credentials({USER.uid}, {USER.gid}, {USER.gids})) as files:
    files.atomic_write({home + b"/a"!r}).write(b"half")
    os._exit(9)
"""
    killed = subprocess.run([sys.executable, "-c", program], check=False)
    assert killed.returncode == 9
    assert os.listdir(home) == []


@pytest.mark.parametrize("old", [False, True])
def test_only_what_is_replaced_has_a_temporary_name_for_a_moment(
    home: bytes, files: UserFiles, monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    seen: list[list[bytes]] = []
    if old:
        make(home + b"/f", b"old")
    monkeypatch.setattr(crash, "point", lambda _: seen.append(sorted(os.listdir(home))))
    with files.atomic_write(home + b"/f") as new:
        new.write(b"new")
        new.commit(Metadata(mode=0o600, mtime_ns=1))
    assert read_all(files, home + b"/f") == b"new"
    assert seen[-1] == [b"f"]
    assert [len(names) for names in seen[:-1]] == ([2] if old else [])


def test_a_killed_attempt_leaves_nothing_to_its_next(
    home: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on file systems that have no files without a name.
    monkeypatch.setattr(userfs, "_NAMELESS", os.O_WRONLY | os.O_DIRECTORY)
    users = UserFs([home])
    with users.serving(USER, task=7) as killed, users.serving(USER, task=8) as other:
        killed.atomic_write(home + b"/a").write(b"half")
        with other.atomic_write(home + b"/b") as unfinished:
            with users.serving(USER, task=7) as repeat:
                repeat.remove_leftovers(home)
            unfinished.write(b"whole")
            unfinished.commit(Metadata(mode=0o600, mtime_ns=0))
    assert os.listdir(home) == [b"b"]
