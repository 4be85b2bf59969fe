"""One simulated history: clients, workers and replicas meet faults, then all must end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from random import Random

from nearline.monitor.v1 import monitor_pb2 as pb
from nearline.type.v1.task_pb2 import Task
from services.kit.errors import FailedPrecondition, ResourceExhausted
from services.monitor.config import LedgerConfig
from services.monitor.rules import Limits
from tests.simulation.checks import CheckedLedger, require
from tests.simulation.plan import TAPE, TRANSFER, USERS, Plans, Request
from tests.simulation.rows import Appetite, Leased
from tests.simulation.server import SWEEP, Replica
from tests.simulation.worker import Job, WorkerProcess
from tests.simulation.world import Outage, World

LIMITS = Limits(retry_first=1.0, retry_most=40.0, give_up_after=200.0, most_lost=6)
CALM = 90.0
"""Seconds of faults."""
JOBS = (
    Job(TRANSFER),
    Job(TRANSFER, slots=3, appetite=Appetite(most_of_one=2)),
    Job(TRANSFER, appetite=Appetite(most_of_one=1, small_only=True)),
    Job(TAPE),
)
PATIENCE = 3600.0
"""Seconds after which all must have ended."""


def _config(chance: Random) -> LedgerConfig:
    """How much is taken in at a time: little, or whatever comes."""
    return LedgerConfig(
        running_per_user=chance.choice((1, 2, 1000)), running_per_group=chance.choice((3, 1000)),
        tasks_per_user=chance.choice((3, 20, 1000)), tasks_per_group=chance.choice((10, 1000)),
        paths_per_user=chance.choice((3, 1000)), paths_per_group=chance.choice((10, 1000)),
        busy_retry_seconds=5.0, submission_seconds=120.0,
    )  # fmt: skip


class Simulation:
    """Runs to its end by :meth:`run`. Raises checks.Violation."""

    def __init__(self, seed: int, trace: Callable[[str], None] | None = None) -> None:
        self.world = world = World(seed, CALM, trace)
        self.plans = Plans(world.random)
        self._config = _config(world.random)
        self.ledger = CheckedLedger(world, LIMITS, self._config, self._told)
        self.ledger.declare("plan", Task.PLAN_ARCHIVE, 60.0)
        self.replicas = [Replica(world, self.ledger, f"r{n}") for n in range(2)]
        self._processes = 0
        self.workers: list[WorkerProcess] = []
        for job in JOBS:
            self._start(job)
        self._pending = 0
        self._hinted: set[int] = set()
        self._ask()
        self._fault()

    def run(self, most_steps: int | None = None) -> None:
        """Go on until everything has ended, or for some steps only."""
        world = self.world
        if most_steps is not None:
            world.run(lambda: world.steps >= most_steps, PATIENCE, self.ledger.verify)
            return
        ended = world.run(self._over, PATIENCE, self.ledger.verify)
        waiting = [t.book.id for t in self.ledger.transactions.values() if not t.book.finished]
        require(ended, "after {} s this has not ended: {}", PATIENCE, waiting)
        self.ledger.verify_all()

    def _over(self) -> bool:
        return (
            not self._pending
            and not self.world.troubled
            and len(self.ledger.finished) == len(self.ledger.transactions)
        )

    # The mesh

    def replica(self) -> Replica | None:
        """One that answers."""
        up = [replica for replica in self.replicas if replica.alive]
        return self.world.random.choice(up) if up else None

    def paths(self, task: Leased) -> int:
        """How many paths the chunk of a task has."""
        if task.chunk is None or task.txn is None:
            return 0
        return len(self.ledger.transactions[task.txn].chunks[task.chunk])

    def replace(self, worker: WorkerProcess) -> None:
        """Start another process in the place of one that ended."""
        self.workers.remove(worker)
        self.world.after(self.world.random.uniform(1, 10), self._start, worker.job)

    def _start(self, job: Job) -> None:
        self._processes += 1
        self.workers.append(WorkerProcess(self, f"w{self._processes}", job))

    def _told(self, kinds: set[int]) -> None:
        """Notify the replicas, as far as the news gets through."""
        if not self._hinted:
            self.world.after(0.01, self._notify)
        self._hinted |= kinds

    def _notify(self) -> None:
        kinds, self._hinted = self._hinted, set()
        for replica in self.replicas:
            if not self.world.chance(0.1):
                replica.hint(kinds)

    # Clients

    def _ask(self) -> None:
        world = self.world
        for _ in range(world.random.randint(3, 6)):
            user = world.random.choice(USERS)
            request = self.plans.request(user, world.random.randint(1, 3))
            self._later(world.random.uniform(0, CALM), self._submit, request)
        if world.random.random() < 0.1:
            self._crowd()

    def _crowd(self) -> None:
        """One asks for much, one gives up on as much, one comes late; others want little."""
        world, plans = self.world, self.plans
        plans.down_until = world.random.choice((0.0, 40.0, 60.0))
        self._later(0.5, self._submit, plans.crowd("hog", world.random.randint(100, 200)))
        other = plans.crowd("boar", 100)
        self._later(1.0, self._submit, other)
        self._later(world.random.uniform(5, 20), self._cancel, other)
        self._later(world.random.uniform(20, 60), self._submit, plans.crowd("newt", 50))
        for user in (*USERS, *USERS, "boar", "boar"):
            request = plans.single(user)
            self._later(world.random.uniform(20, CALM), self._submit, request)

    def _later(self, delay: float, step: Callable[[Request], None], request: Request) -> None:
        self._pending += 1
        self.world.after(delay, self._run, step, request)

    def _run(self, step: Callable[[Request], None], request: Request) -> None:
        self._pending -= 1
        try:
            step(request)
        except Outage:
            self._later(1.0, step, request)
        except ResourceExhausted:
            self._come_again(step, request)
        except FailedPrecondition:
            self._later(1.0, self._submit, request)

    def _come_again(self, step: Callable[[Request], None], request: Request) -> None:
        """Later, as it was told; or not at all."""
        world = self.world
        world.say("{} is refused", request.spec.id)
        self._later(self._config.busy_retry_seconds * world.random.uniform(1, 1.5), step, request)
        if world.random.random() < 0.1:
            self._later(1.0, self._cancel, request)

    def _reach(self) -> Replica:
        """One that answers. Raises Outage."""
        if (replica := self.replica()) is None:
            raise Outage
        return replica

    def _submit(self, request: Request) -> None:
        """Announce a request; its paths follow, unless its client is never heard of again."""
        self._reach().database(self.ledger.arrive, request.spec)
        self._later(self.world.random.expovariate(1), self._send, request)

    def _send(self, request: Request) -> None:
        replica, spec = self._reach(), request.spec
        stored = replica.database(self.ledger.store, spec.id, 0)
        if stored is not None:
            missing = sum(map(len, request.chunks)) - stored
            replica.database(self.ledger.store, spec.id, missing)
        if stored is None or not self.world.chance(0.03):
            self._later(self.world.random.expovariate(1), self._commit, request)

    def _commit(self, request: Request) -> None:
        world, replica = self.world, self._reach()
        kind = Task.SCAN if request.chunks else 0
        replica.database(self.ledger.accept, request.spec, request.tasks, request.chunks, kind)
        world.say("{} is accepted", request.spec.id)
        if world.chance(0.2):
            self._later(world.random.uniform(0, 30), self._submit, request)
        if world.random.random() < 0.25:
            self._later(world.random.expovariate(1 / 15), self._cancel, request)
        elif world.random.random() < 0.2:
            self._later(CALM / 2, self._retry, request)

    def _cancel(self, request: Request) -> None:
        replica, ledger = self._reach(), self.ledger
        if request.spec.id not in ledger.numbers.keys() | ledger.arriving.keys():
            return  # Nobody knows it: its client has been told so.
        replica.database(ledger.cancel, request.spec.id)
        self.world.say("{} is cancelled", request.spec.id)
        if not self.world.chance(0.1):
            self.world.after(0.01, lambda: [each.check() for each in self.replicas])
        if self.world.random.random() < 0.3:
            again = self.plans.request(request.spec.identity.user, 1)
            self._later(1.0, self._submit, again)

    def _retry(self, request: Request) -> None:
        """Once the request has ended, have what failed run again; perhaps twice."""
        world, id_ = self.world, request.spec.id
        if self.ledger.numbers[id_] not in self.ledger.finished:
            self._later(10.0, self._retry, request)
            return
        replica = self._reach()
        with suppress(FailedPrecondition):
            met = pb.NewTask(kind=Task.SCAN)
            again = replica.database(self.ledger.retry, id_, Task.SCAN, met, 3)
            world.say("{} is retried as {}", id_, again)
            if world.random.random() < 0.3:
                self._later(1.0, self._retry, request)

    # Faults

    def _fault(self) -> None:
        """Let something go wrong every few seconds."""
        world = self.world
        if world.troubled:
            world.after(world.random.expovariate(1 / 6), self._fault)
            fault = world.random.choice((
                self._kill_worker, self._freeze_worker, self._drain_worker, self._stop_replica,
                self._database_outage, self._jump, self._lose_host, self._freeze_worker,
                self._freeze_replica,
            ))  # fmt: skip
            fault()

    def _any_worker(self) -> WorkerProcess | None:
        return self.world.random.choice(self.workers) if self.workers else None

    def _kill_worker(self) -> None:
        if worker := self._any_worker():
            worker.die()

    def _lose_host(self) -> None:
        if worker := self._any_worker():
            worker.die(noticed=False)

    def _freeze_worker(self) -> None:
        if worker := self._any_worker():
            self.ledger.seen["workers stopped"] += 1
            worker.freeze(self.world.random.choice((2.0, 12.0, 20.0, 45.0)))

    def _drain_worker(self) -> None:
        if worker := self._any_worker():
            worker.when_thawed(worker.drain)

    def _freeze_replica(self) -> None:
        world = self.world
        self.ledger.seen["replicas stopped"] += 1
        world.random.choice(self.replicas).freeze(world.random.choice((2.0, 12.0, 20.0, 45.0)))

    def _stop_replica(self) -> None:
        world = self.world
        replica = world.random.choice(self.replicas)
        if replica.alive:
            replica.stop(graceful=world.random.random() < 0.3)
            world.after(world.random.uniform(2.5, 25), replica.start)

    def _database_outage(self) -> None:
        self.world.say("the database goes away")
        world = self.world
        seconds = world.random.choice((1.0, 5.0, 20.0))
        world.database_down_until = max(world.database_down_until, world.now + seconds)
        if seconds > SWEEP:
            world.outage_until = world.database_down_until

    def _jump(self) -> None:
        jumps = (-600.0, -60.0, -5.0, -1.0, 1.0, 5.0, 20.0, 60.0, 600.0)
        self.ledger.seen["jumps of the clock"] += 1
        self.world.jump(self.world.random.choice(jumps))
