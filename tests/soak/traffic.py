"""Users who work all at once: put, get, stage, evict, cancel, retry, and ask the same twice."""

from __future__ import annotations

import os
import random
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from functools import cached_property, partial

from deploy.local.demo import trees
from nearline.type.v1.transaction_pb2 import Transaction
from nearline_client import Client, ServiceError, names
from nearline_client.states import is_final
from tests.soak.history import History
from tests.soak.requests import Request, ending_of
from tests.soak.rig import Rig
from tests.soak.sources import Tree, make_tree, survey

MIB = 1 << 20
MOST_BYTES = 1200 * MIB
"""No more is stored in one run."""
STORING = ("PUT", "RETRY PUT")
"""Requests that store files."""
_MOST_OPEN = 4
_PAUSE = (0.05, 0.6)
_REFUSALS = frozenset({
    "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "FAILED_PRECONDITION",
    "UNIMPLEMENTED", "OUT_OF_RANGE",
})  # fmt: skip


class Shelf:
    """What the users know to be stored: puts that ended well enough, shared by all of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._puts: list[Request] = []
        self.bytes = 0

    def add(self, put: Request) -> None:
        """A put has ended."""
        with self._lock:
            self._puts.append(put)

    def reserve(self, size: int) -> None:
        """Bytes are about to be stored."""
        with self._lock:
            self.bytes += size

    def of_group(self, group: str) -> list[Request]:
        """Puts of a group."""
        with self._lock:
            return [put for put in self._puts if put.group == group]


class User:
    """One test user with requests of one's own; each step does one thing and does not wait."""

    def __init__(
        self, rig: Rig, name: str, group: str, seed: str, shelf: Shelf, history: History
    ) -> None:
        self.name = name
        self.requests: list[Request] = []
        self._rig = rig
        self._group = group
        self._seed = seed.encode()
        self._rng = random.Random(f"{seed}:{name}")
        self._shelf = shelf
        self._history = history
        self._labels: list[str] = []
        self._made = 0
        ways: list[tuple[float, Callable[[], None]]] = [
            (5, self._put), (4, self._get), (1, self._stage), (1, self._cancel),
            (0.7, self._retry), (1, self._repeat),
        ]  # fmt: skip
        if name == "carol":  # the manager of the group
            ways.append((4, self._evict))
        self._weights, self._ways = zip(*ways, strict=True)

    @cached_property
    def client(self) -> Client:
        """The user's client, by way of the link."""
        return self._rig.client(self.name)

    @property
    def open(self) -> list[Request]:
        """Requests whose end is not known yet."""
        return [r for r in self.requests if r.ending is None and not r.refused]

    def work(self, stop: threading.Event) -> None:
        """Ask for this and that until ``stop``."""
        while not stop.wait(self._rng.uniform(*_PAUSE)):
            self.look()
            if len(self.open) < _MOST_OPEN:
                self._rng.choices(self._ways, self._weights)[0]()

    def look(self) -> None:
        """See which requests were accepted and which have ended."""
        for request in self.open:
            try:
                self._look(request)
            except ServiceError as error:
                self._history.add("unanswered", id=request.id, code=error.code, why=error.message)

    def read_back(self, holding_id: int, puts: Iterable[Request]) -> Request:
        """Ask for all that puts of one holding have stored; see the result with `look`."""
        puts = list(puts)
        expected = {path: entry for put in puts for path, entry in put.done.items()}
        roots = [put.root for put in puts]
        request = self._new_get(roots, holding_id, self._new_directory())
        request.action = "READ BACK"
        request.expected = expected
        self._ask(request)
        return request

    def evict_now(self, holding_id: int) -> None:
        """Ask for a holding to be evicted; for the manager of its group."""
        self._ask(self._new("EVICT", str(holding_id), lambda id: self.client.evict(
            holding_id, request_id=id
        )))  # fmt: skip

    def find_stored(self, put: Request) -> frozenset[str]:
        """What find shows of a put now."""
        found = self.client.find(transaction_id=put.id, all_users=True)
        return frozenset(file.path for file in found)

    # -- asking

    def _put(self) -> None:
        if self._shelf.bytes > MOST_BYTES:
            return
        self._made += 1
        with self._acting():
            tree = make_tree(
                os.path.join(self._home, b"put-%b-%d" % (self._seed, self._made)), self._rng
            )
        self._shelf.reserve(tree.bytes)
        label = self._label()
        paths = [tree.root, *self._missing()]
        request = self._new("PUT", label, partial(self._ask_put, paths, label))
        request.expected = dict(tree.entries)
        request.doomed = frozenset(names.encode(path) for path in paths[1:])
        request.expected |= {path: tree.entries[names.encode(tree.root)] for path in request.doomed}
        request.root = tree.root
        self._ask(request)
        if self._rng.random() < 0.08:
            self._lose_sources(request, tree)

    def _ask_put(self, paths: list[bytes], label: str, id: str) -> Transaction:
        return self.client.put(paths, group=self._group, label=label, transaction_id=id)

    def _label(self) -> str:
        """A new holding, or one of the user's own."""
        if self._labels and self._rng.random() < 0.4:
            return self._rng.choice(self._labels)
        self._labels.append(f"{self._seed.decode()}-{self.name}-{len(self._labels)}")
        return self._labels[-1]

    def _missing(self) -> list[bytes]:
        """At times a path that does not exist."""
        return [self._home + b"/no such file"] if self._rng.random() < 0.1 else []

    def _lose_sources(self, request: Request, tree: Tree) -> None:
        """Delete source files while they are being stored."""
        lost = tree.files[:5]
        request.uncertain = request.vanished = frozenset(lost)
        with self._acting():
            for path in lost:
                os.unlink(names.decode(path))
        self._history.add("sources_deleted", id=request.id, paths=lost)

    def _get(self) -> None:
        put = self._stored()
        if put is None:
            return
        on_small_disk = self._rng.random() < 0.2
        directory = self._new_directory(small=on_small_disk)
        wanted = {put.root: put.done}
        files = [path for path, entry in put.done.items() if entry.kind == "file"]
        if files and self._rng.random() < 0.4:
            some = self._rng.sample(files, min(len(files), self._rng.randint(1, 12)))
            wanted = {names.decode(path): {path: put.done[path]} for path in some}
        request = self._new_get(list(wanted), put.holding_id, directory)
        request.expected = {p: entry for part in wanted.values() for p, entry in part.items()}
        request.may_be_full = on_small_disk
        self._ask(request)

    def _new_get(self, paths: list[bytes], holding_id: int, target: bytes) -> Request:
        request = self._new("GET", str(holding_id), lambda id: self.client.get(
            paths, target, holding_id=holding_id, all_users=True, request_id=id
        ))  # fmt: skip
        request.target, request.holding_id = target, holding_id
        return request

    def _stage(self) -> None:
        put = self._stored()
        if put is None:
            return
        root, holding_id = put.root, put.holding_id
        request = self._new("STAGE", str(holding_id), lambda id: self.client.stage(
            [root], holding_id=holding_id, all_users=True, request_id=id
        ))  # fmt: skip
        request.expected, request.holding_id = dict(put.done), holding_id
        self._ask(request)

    def _evict(self) -> None:
        put = self._stored()
        # Of the others tape copies may have been spoilt.
        if put is None or put.holding_id % 2:
            return
        self.evict_now(put.holding_id)

    def _cancel(self) -> None:
        running = [r for r in self.open if r.accepted and r.action != "EVICT"]
        if not running:
            return
        request = self._rng.choice(running)
        request.cancel_asked = True
        self._history.add("cancel", id=request.id)
        try:
            self.client.cancel(request.id)
        except ServiceError as error:
            self._history.add("unanswered", id=request.id, code=error.code, why=error.message)

    def _retry(self) -> None:
        """Run again what failed; that is a transaction of its own."""
        failed = [r for r in self.requests if r.ending and r.ending.state in _WITH_FAILURES]
        failed = [r for r in failed if not r.is_retried and r.action in ("PUT", "GET")]
        if not failed:
            return
        first = self._rng.choice(failed)
        first.is_retried = True
        request = self._new(
            f"RETRY {first.action}", first.id, lambda _: self.client.retry(first.id)
        )
        request.origin, request.root, request.holding_id = first.id, first.root, first.holding_id
        request.expected = {p: e for p, e in first.expected.items() if p in first.failed}
        request.doomed, request.uncertain = first.doomed, frozenset(request.expected)
        request.vanished = first.vanished
        self._ask(request)

    def _repeat(self) -> None:
        ended = [r for r in self.requests if r.ending is not None]
        if not ended:
            return
        request = self._rng.choice(ended)
        try:
            answer = request.ask()
        except ServiceError as error:
            if error.code in _REFUSALS:
                request.repeats.append(f"{error.code} {error.reason}: {error.message}")
            return
        request.repeats.append(ending_of(answer))
        self._history.add("repeated", id=request.id, **asdict(ending_of(answer)))

    def _stored(self) -> Request | None:
        puts = [put for put in self._shelf.of_group(self._group) if put.done]
        return self._rng.choice(puts) if puts else None

    def _new(self, action: str, what: str, ask: Callable[[str], Transaction]) -> Request:
        id = str(uuid.UUID(int=self._rng.getrandbits(128), version=4))
        request = Request(id, self.name, self._group, action, partial(ask, id))
        self.requests.append(request)
        self._history.add("asked", id=id, user=self.name, action=action, of=what)
        return request

    def _ask(self, request: Request) -> None:
        try:
            answer = request.ask()
        except ServiceError as error:
            if error.code in _REFUSALS:
                request.refused = f"{error.code} {error.reason}: {error.message}"
            event = "refused" if request.refused else "unanswered"
            self._history.add(event, id=request.id, code=error.code, why=error.message)
            return
        request.accepted, request.id = True, answer.id
        request.holding_id = answer.holding_id or request.holding_id
        self._history.add("accepted", id=request.id, holding=request.holding_id)

    # -- seeing what came of it

    def _look(self, request: Request) -> None:
        if not request.accepted:
            self._ask(request)
            return
        transaction = self.client.transaction(request.id, failures=False)
        if is_final(transaction.state):
            self._end(request, transaction)

    def _end(self, request: Request, transaction: Transaction) -> None:
        request.failures = [(one.path, one.code) for one in self.client.failures(request.id)]
        if request.action == "PUT" and request.cancel_asked:
            request.stored = self.find_stored(request)
        if request.target:
            request.found = survey(request.target)
        ending = ending_of(transaction)
        self._history.add("ended", id=request.id, **asdict(ending), failures=request.failures[:20])
        request.ending = ending
        self._tidy(request)

    def _tidy(self, request: Request) -> None:
        """Keep sources that are needed again, and targets in which something may still happen."""
        assert request.ending is not None
        if request.action in STORING:
            if request.action == "PUT" and request.failed | request.vanished <= request.doomed:
                self._shelf.add(request)
            if not request.failures:
                trees.remove(request.root)
        elif request.target and request.ending.state == "COMPLETE":
            # A worker that was taken for dead may be writing the same file there once more.
            with suppress(OSError):
                trees.remove(request.target)

    # -- places

    @cached_property
    def _home(self) -> bytes:
        return os.fsencode(self._rig.stack.home(self.name))

    def _new_directory(self, *, small: bool = False) -> bytes:
        parent = os.fsencode(self._rig.target()) if small else self._home
        with self._acting():
            return tempfile.mkdtemp(prefix=b"get-", dir=parent)

    def _acting(self) -> AbstractContextManager[None]:
        return trees.acting_as_user(self.name)


_WITH_FAILURES = frozenset({"COMPLETE_WITH_ERRORS", "FAILED"})
