"""What the demonstration does, step by step, through the `nlds` command and real services."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nearline_client
from deploy.local.demo import trees
from deploy.local.demo.compare import Comparison, compare
from deploy.local.demo.make import Plan, make_tree
from deploy.local.demo.nlds import Nlds, shown
from deploy.local.demo.screen import MB, Screen, amount
from deploy.local.demo.tapemeter import TapeMeter
from deploy.local.demo.whereabouts import Whereabouts, count
from deploy.local.errors import StackError
from deploy.local.files import make_directory
from deploy.local.stack import Stack
from nearline.type.v1.transaction_pb2 import Transaction

USER, MANAGER, GROUP = "alice", "carol", "cmip6"
_POLL_SECONDS = 1.0
# Source, cache, the buffer of tape, tape, cache again, and what comes back.
_COPIES = 6


@dataclass(frozen=True)
class Options:
    """What to make, and how many seconds each wait may take."""

    plan: Plan
    limit: float


class Demo:
    """One run on a stack that is up; its files are in a new directory of the user's home."""

    def __init__(self, stack: Stack, screen: Screen, options: Options) -> None:
        self._stack = stack
        self._screen = screen
        self._options = options
        self._work = _new_directory(stack.home(USER))
        self.label = os.path.basename(self._work).decode()
        self._source = os.path.join(self._work, b"data")
        self._logins = make_directory(stack.site.directory / "clients" / self.label, 0o700)

    def run(self) -> Comparison:
        """All steps. Raises StackError when one cannot be done, OSError of the file system."""
        self._make()
        self._log_in()
        self._put()
        with self._tape_keeps_no_copy_on_disk():
            self._archive()
        self._evict()
        self._get_one()
        self._get_all()
        return self._compare()

    def clean(self) -> None:
        """Remove the files on disk and the logins; what the store keeps stays in the store."""
        trees.remove(self._work)
        shutil.rmtree(self._logins, ignore_errors=True)

    # -- steps -----------------------------------------------------------------------------------

    def _make(self) -> None:
        with self._screen.step(f"making a directory as {USER}"):
            plan = self._options.plan
            self._check_space(plan.expected_bytes())
            with trees.acting_as_user(USER):
                make_tree(self._source, plan)
            self._screen.say(os.fsdecode(self._source))

    def _check_space(self, size: int) -> None:
        free = shutil.disk_usage(self._work).free
        if free < size * _COPIES:
            raise StackError(
                f"{free / MB:,.0f} MB are free in {os.fsdecode(self._work)}, about "
                f"{size * _COPIES / MB:,.0f} MB are needed; make less with --large and --files, "
                "or choose another --dir"
            )

    def _log_in(self) -> None:
        with self._screen.step(f"logging in as {USER} at the OpenID provider"):
            where = self._stack.environment()
            for user in (USER, MANAGER):
                words = (
                    "init", "--url", where["NEARLINE_URL"], "--ca", where["NEARLINE_CA"],
                    "--issuer", where["NEARLINE_ISSUER"], "--user", user, "--group", GROUP,
                    "--password-stdin",
                )  # fmt: skip
                self._type(self._nlds(user), *words, stdin=user)

    def _put(self) -> None:
        with self._screen.step("putting it into the cache"):
            self._type(self._user, "put", "--wait", "--label", self.label, self._path(self._source))
            self._show_where()

    def _archive(self) -> None:
        with self._screen.step("waiting until all of it is safe on tape"):
            where = self._wait_until_safe()
            self._screen.say(f"$ {shown('find', '--label', self.label)}")
            self._screen.say(str(where))

    def _evict(self) -> None:
        with (
            self._screen.step(f"evicting it from the cache, as {MANAGER}, manager of {GROUP}"),
            self._client(MANAGER) as client,
        ):
            ended = client.wait(client.evict(self._holding).id, self._options.limit)
            if ended.state != Transaction.COMPLETE:
                raise StackError(f"the eviction ended otherwise than COMPLETE:\n{ended}")
            where = self._show_where()
            if where.on_tape_only != where.files:
                raise StackError(f"{where.in_cache} files are still in the cache")

    def _get_one(self) -> None:
        with self._screen.step("getting one small file that is only on tape, among many"):
            meter = TapeMeter(self._stack)
            path, target = self._one_small_file(), os.path.join(self._work, b"one")
            before = meter.read_bytes()
            words = ("--label", self.label, "--target", self._new(target), self._path(path))
            self._type(self._user, "get", "--wait", *words)
            size = os.path.getsize(path)
            self._screen.say(
                f"the file has {size:,} bytes; the tape side read "
                f"{meter.read_bytes() - before:,} bytes for it, sockets included"
            )
            self._same(path, target + path)
            self._show_where()

    def _get_all(self) -> None:
        with self._screen.step("getting everything to a new place"):
            words = ("--label", self.label, "--target", self._new(self._restored))
            self._type(self._user, "get", "--wait", *words, self._path(self._source))
            self._show_where()

    def _compare(self) -> Comparison:
        with self._screen.step("comparing every byte and attribute"):
            return compare(self._source, self._restored + self._source)

    # -- parts of steps --------------------------------------------------------------------------

    @property
    def _restored(self) -> bytes:
        return os.path.join(self._work, b"restored")

    @cached_property
    def _user(self) -> Nlds:
        return self._nlds(USER)

    def _nlds(self, user: str) -> Nlds:
        return Nlds(self._login(user), self._options.limit)

    def _login(self, user: str) -> Path:
        return make_directory(self._logins / user, 0o700) / "config.toml"

    def _client(self, user: str) -> nearline_client.Client:
        return nearline_client.connect(config=self._login(user))

    @cached_property
    def _holding(self) -> int:
        return int(next(self._user.json("list", "--label", self.label))["id"])

    def _type(self, nlds: Nlds, *words: str, stdin: str = "") -> None:
        self._screen.say(f"$ {shown(*words)}")
        nlds.run(*words, stdin=stdin, show=lambda line: self._screen.say(f"  {line}"))

    def _show_where(self) -> Whereabouts:
        words = ("find", "--label", self.label)
        where = count(self._user.json(*words))
        self._screen.say(f"$ {shown(*words)}")
        self._screen.say(f"  {amount(where.files, where.bytes)}: {where}")
        return where

    def _wait_until_safe(self) -> Whereabouts:
        deadline = time.monotonic() + self._options.limit
        before = ""
        while True:
            where = count(self._user.json("find", "--label", self.label))
            if str(where) != before:
                before = str(where)
                self._screen.say(before)
            if where.safe == where.files:
                return where
            if time.monotonic() > deadline:
                raise StackError(
                    f"not everything is on tape after {self._options.limit:g} s: {where}\n"
                    + "\n".join(self._user.run("stat", "--label", self.label, "--groupall"))
                )
            time.sleep(_POLL_SECONDS)

    def _one_small_file(self) -> bytes:
        runs = os.path.join(self._source, b"runs")
        directory, _, names = next(each for each in os.walk(runs) if each[2])
        return os.path.join(directory, sorted(names)[len(names) // 2])

    def _same(self, one: bytes, other: bytes) -> None:
        if Path(os.fsdecode(one)).read_bytes() != Path(os.fsdecode(other)).read_bytes():
            raise StackError(f"{os.fsdecode(other)} differs from {os.fsdecode(one)}")

    def _new(self, directory: bytes) -> str:
        with trees.acting_as_user(USER):
            os.mkdir(directory)
        return self._path(directory)

    @staticmethod
    def _path(path: bytes) -> str:
        return os.fsdecode(path)

    @contextmanager
    def _tape_keeps_no_copy_on_disk(self) -> Iterator[None]:
        """Have the simulated library drop a file from its disk buffer once it is on tape."""
        if "xrootd" not in self._stack.parts():
            yield
            return
        rig = self._stack.site.xrootd
        settings = rig.layout.settings
        before = settings.read_bytes()
        rig.configure(evict_after_migrate=True)
        try:
            yield
        finally:
            settings.write_bytes(before)


def _new_directory(home: Path) -> bytes:
    try:
        with trees.acting_as_user(USER):
            return tempfile.mkdtemp(prefix=b"demo-", dir=os.fsencode(home))
    except PermissionError as error:
        raise StackError(
            f"{USER} cannot write to {home}: let others pass through the directories above it "
            "(chmod o+x), or choose another --dir"
        ) from error
