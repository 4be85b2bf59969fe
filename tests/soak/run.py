"""One run: traffic under faults, then healing, then the check of everything."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager

import grpc
import psycopg2
from botocore.exceptions import BotoCoreError, ClientError

from deploy.local.errors import StackError
from deploy.local.wait import wait_until
from nearline.tape.v1.tape_pb2 import Orphan
from nearline_client import ServiceError
from tests.soak import observe
from tests.soak.checker import Evidence, Violation, check, is_complete, leftovers
from tests.soak.faults import Injector
from tests.soak.history import History
from tests.soak.report import Report
from tests.soak.requests import Request
from tests.soak.rig import Rig
from tests.soak.schedule import QUICK, STEADY, Pace, schedule
from tests.soak.sources import survey
from tests.soak.traffic import STORING, Shelf, User

SHORT = 120.0
"""Runs below this many seconds have short faults in quick succession."""
DRAIN_SECONDS = 300.0
"""Everything has to end within this time once nothing goes wrong any more."""
_USERS = {"alice": "cmip6", "bob": "cmip6", "carol": "cmip6", "dave": "sentinel"}
_SAMPLE_SECONDS = 1.0
_AWAY = (psycopg2.Error, ServiceError, BotoCoreError, ClientError, OSError)


class Run:
    """One run on a rig that is up; several may follow each other."""

    def __init__(
        self,
        rig: Rig,
        seed: int,
        seconds: float,
        history: History,
        drain: float = DRAIN_SECONDS,
    ) -> None:
        self._rig = rig
        self._drain = drain
        self._seed = seed
        self._seconds = seconds
        self._history = history
        self._injector = Injector(rig, history)
        shelf = Shelf()
        self._users = [
            User(rig, name, group, str(seed), shelf, history) for name, group in _USERS.items()
        ]
        self._samples: list[tuple[float, list[int]]] = []
        self._blamed: set[int] = set()

    def run(self) -> Report:
        """Do it all. Raises StackError when the stack does not come back."""
        say = self._history.tell
        say(f"seed {self._seed}, {self._seconds:g} s of faults")
        for user in self._users:
            user.client.identity()
        # What earlier work on this rig has found to be bad is nothing new.
        self._blamed = {blob for blob, _, _ in observe.catalog(self._rig).faults}
        with self._sampled():
            self._traffic_under_faults()
            say("healing")
            self._rig.heal()
            self._settle("everything that was asked for ends and goes to tape", self._unfinished)
            say("reading everything back")
            self._read_back()
            say("removing what has no owner")
            self._reconcile()
        world = self._look_late()
        evidence = self._evidence(world)
        return self._report(check(evidence), evidence)

    # -- phases

    def _traffic_under_faults(self) -> None:
        faults = schedule(self._seed, self._seconds, self._pace)
        stop = threading.Event()
        with ThreadPoolExecutor(len(self._users)) as pool:
            working = [pool.submit(user.work, stop) for user in self._users]
            try:
                self._injector.start(faults)
                # A user who fails is a mistake of this program: then it ends at once.
                wait(working, self._seconds, FIRST_EXCEPTION)
            finally:
                self._injector.stop()
                stop.set()
        for worker in working:
            worker.result()

    @property
    def _pace(self) -> Pace:
        return QUICK if self._seconds < SHORT else STEADY

    def _settle(self, what: str, missing: Callable[[], str | None]) -> None:
        """Wait until nothing is missing; what still is then is for the check to tell."""

        seen: set[str | None] = set()

        def probe() -> str | None:
            for user in self._users:
                user.look()
            try:
                left = missing()
            except _AWAY as error:
                left = str(error)
            if left not in seen:
                self._history.add("settling", left=left)
            seen.add(left)
            return left

        try:
            wait_until(probe, what, self._drain)
        except StackError as error:
            self._history.tell(f"not settled: {str(error)[:400]}")

    def _unfinished(self) -> str | None:
        """What is not over, or not safe on tape."""
        if busy := self._busy():
            return busy
        if unsafe := observe.waiting_for_tape(self._rig):
            return f"{unsafe} blobs are not safe on tape"
        return None

    def _busy(self) -> str | None:
        """Who still waits for what."""
        open_now = [f"{r.action} {r.id}" for user in self._users for r in user.open]
        ledger = observe.ledger(self._rig)
        if not (open_now or ledger.running or ledger.open_tasks):
            return None
        tasks = [f"{task}" for task in ledger.open_tasks]
        return (
            f"{len(open_now)} requests {open_now[:3]}, {len(ledger.running)} transactions,"
            f" {len(tasks)} tasks {tasks[:3]}"
        )

    def _read_back(self) -> None:
        """Get every stored file of every user; half of the holdings from tape."""
        by_holding: defaultdict[tuple[str, int], list[Request]] = defaultdict(list)
        for user in self._users:
            for put in user.requests:
                if put.action in STORING and put.done:
                    by_holding[user.name, put.holding_id].append(put)
        by_name = {user.name: user for user in self._users}
        # Of the odd ones tape copies may be spoilt; carol manages one group only.
        even = {
            number
            for (name, number) in by_holding
            if number % 2 == 0 and _USERS[name] == _USERS["carol"]
        }
        for number in sorted(even):
            by_name["carol"].evict_now(number)
        self._settle("eviction", self._busy)
        for (name, number), puts in by_holding.items():
            by_name[name].read_back(number, puts)
        self._settle("reading back", self._busy)

    def _reconcile(self) -> None:
        """Leave nothing for the reconciler to do; it leaves young things alone."""

        def probe() -> str | None:
            found = [o for o in self._rig.reconcile() if o.action != Orphan.REPORTED]
            for orphan in found:
                self._history.add("orphan", name=orphan.name, why=orphan.why)
            return f"{len(found)} were found" if found else None

        try:
            wait_until(probe, "nothing without an owner", self._drain)
        except (StackError, grpc.RpcError) as error:
            self._history.tell(f"not reconciled: {error}")

    def _look_late(self) -> observe.World:
        """The world once it is quiet, and what cancelled requests may have changed late."""
        for request in self._requests:
            if request.target and request.ending and not is_complete(request):
                request.late = survey(request.target)
        return observe.look(self._rig)

    # -- evidence

    @property
    def _requests(self) -> list[Request]:
        return [request for user in self._users for request in user.requests]

    def _evidence(self, world: observe.World) -> Evidence:
        stored_late = {
            put.id: user.find_stored(put)
            for user in self._users
            for put in user.requests
            if put.stored is not None
        }
        return Evidence(
            self._requests,
            world,
            self._reported_usage(),
            self._samples,
            self._blamed.union(*self._rig.spoilt.values()),
            stored_late,
        )

    def _reported_usage(self) -> dict[str, tuple[int, ...]]:
        return {
            one.group: (
                one.files, one.bytes, one.cache_files, one.cache_bytes, one.tape_files,
                one.tape_bytes,
            )
            for user in self._users
            for one in user.client.usage()
            if one.files
        }  # fmt: skip

    def _report(self, violations: Sequence[Violation], evidence: Evidence) -> Report:
        for violation in violations:
            self._history.add("violation", invariant=violation.invariant, text=violation.text)
        puts = [r for r in evidence.requests if r.action in STORING]
        return Report(
            seed=self._seed,
            minutes=self._seconds / 60,
            transactions=len(evidence.world.ledger.transactions),
            requests=len(evidence.requests),
            files=sum(len(put.done) for put in puts),
            bytes=sum(entry.size for put in puts for entry in put.done.values()),
            events=dict(self._history.counts),
            leftovers=dict(leftovers(evidence.world)),
            missing=dict(self._rig.missing),
            violations=list(violations),
            history=self._history.path,
        )

    @contextmanager
    def _sampled(self) -> Iterator[None]:
        """Look again and again, whatever goes on, whether every file has a copy that counts."""
        stop = threading.Event()

        def sample() -> None:
            while not stop.wait(_SAMPLE_SECONDS):
                try:
                    unsafe = observe.unsafe_files(self._rig)
                except psycopg2.Error:
                    continue  # The database is away.
                self._history.add("sample", unsafe=unsafe[:100])
                self._samples.append((self._history.now(), unsafe))

        sampler = threading.Thread(target=sample)
        sampler.start()
        try:
            yield
        finally:
            stop.set()
            sampler.join()
