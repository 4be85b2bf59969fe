"""A worker process: takes leases, reports, reconnects with what it holds, drains, freezes, dies."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from nearline.monitor.v1 import monitor_pb2 as pb
from tests.simulation.model import ANYTHING
from tests.simulation.plan import Plans
from tests.simulation.rows import Appetite, Lease, Leased
from tests.simulation.server import HEARTBEAT, Hello, Replica
from tests.simulation.world import Link, Process, World


class Mesh(Protocol):
    """What a worker knows of the world."""

    world: World
    plans: Plans

    def replica(self) -> Replica | None:
        """One that answers."""

    def paths(self, task: Leased) -> int:
        """How many paths the chunk of a task has."""

    def replace(self, worker: WorkerProcess) -> None:
        """Start another process in the place of one that ended."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker process is there for."""

    kinds: tuple[int, ...]
    slots: int = 2
    appetite: Appetite = ANYTHING


@dataclass(slots=True, eq=False)
class Run:
    """One lease, until its end is acknowledged."""

    task: Leased
    unacked: deque[pb.WorkRequest] = field(default_factory=deque)
    busy: bool = True
    stop: bool = False
    lost: bool = False


class WorkerProcess(Process):
    """Follows services.kit.worker, without threads."""

    def __init__(self, mesh: Mesh, name: str, job: Job) -> None:
        super().__init__(mesh.world, name)
        self.mesh, self.job = mesh, job
        self.draining = False
        self._runs: dict[Lease, Run] = {}
        self._link: Link | None = None
        self._out: Link | None = None
        self._later(self.world.random.uniform(0, 1), self._connect)
        self._later(HEARTBEAT, self._beat)

    # Faults

    def die(self, noticed: bool = True) -> None:
        """End at once; not noticed when its host is gone, too."""
        if self.alive:
            self.world.say("worker {} dies with {}", self.name, sorted(self._runs))
            self.alive = False
            if self._link is not None:
                self._link.cut(server_notices=0.05 if noticed else 40.0)
            self.mesh.replace(self)

    def drain(self) -> None:
        """Stop as after SIGTERM: connect anew without credit, hand back what takes too long."""
        if self.alive and not self.draining:
            self.world.say("worker {} drains", self.name)
            self.draining = True
            self._hang_up()
            self._later(10.0, self._stop_all)
            self._later(15.0, self._leave)

    def _stop_all(self) -> None:
        for run in list(self._runs.values()):
            if run.busy:
                run.stop = True
                self._end(run, _hand_back(run.task))

    def _leave(self) -> None:
        if self._runs and self.world.now < self.world.calm + 60:
            self._later(5.0, self._leave)
        else:
            self.die()

    # The stream

    def receive(self, link: Link, message: Any) -> None:
        """A message of the ledger."""
        self.when_read(self._receive, link, message)

    def hung_up(self, link: Link) -> None:
        """The ledger is gone, or can no longer be heard."""
        self.when_read(self._hung_up, link)

    def _connect(self) -> None:
        replica = self.mesh.replica()
        if replica is None or self._link is not None:
            if self._link is None:
                self._later(2.0, self._connect)
            return
        self._link = Link(self.world, self, replica)
        held = tuple(sorted(self._runs))
        self._link.up(("hello", Hello(self.name, self.job.kinds, held, self.job.appetite)))
        self._later(10.0, self._expect_welcome, self._link)

    def _expect_welcome(self, link: Link) -> None:
        if link is self._link and self._out is None:
            link.cut()

    def _hung_up(self, link: Link) -> None:
        if link is self._link:
            self._link = self._out = None
            self._later(self.world.random.uniform(0.1, 3), self._connect)

    def _hang_up(self) -> None:
        if self._out is not None:
            self._out.up(("goodbye", None))
            self._out = None

    def _receive(self, link: Link, message: Any) -> None:
        name, body = message
        if link is self._link:
            getattr(self, f"_{name}")(body)

    def _welcome(self, held: list[Lease]) -> None:
        assert self._link is not None
        self._out = self._link
        for lease, run in self._runs.items():
            if lease not in held:
                run.stop = True
            for request in run.unacked:
                self._out.up(("report", request))
        self._give_credit(self.job.slots - sum(run.busy for run in self._runs.values()))

    def _assignment(self, task: Leased) -> None:
        run = self._runs[task.task_id, task.token] = Run(task)
        if self.draining:
            self._end(run, _hand_back(task))
            return
        seconds = self.world.random.expovariate(1 / self.world.random.choice((0.5, 2.0, 15.0)))
        if self.mesh.plans.is_down(task, self.world.now):
            seconds = 0.1
        self._later(seconds, self._work, run)

    def _ack(self, body: tuple[Lease, bool]) -> None:
        lease, accepted = body
        run = self._runs.get(lease)
        if run is None or not run.unacked:
            return
        run.unacked.popleft()
        if not accepted:
            run.lost = run.stop = True
            run.unacked.clear()
        self._forget(run)

    def _revoke(self, lease: Lease) -> None:
        if run := self._runs.get(lease):
            run.stop = True

    def _drain(self, _: None) -> None:
        self._hang_up()

    def _beat(self) -> None:
        if self._out is not None:
            self._out.up(("beat", None))
        self._later(HEARTBEAT, self._beat)

    def _give_credit(self, tasks: int) -> None:
        if self._out is not None and tasks > 0 and not self.draining:
            self._out.up(("credit", tasks))

    # Work

    def _work(self, run: Run) -> None:
        if not run.busy:
            return
        if run.stop:
            self._end(run, _hand_back(run.task))
            return
        said = self.mesh.plans.attempt(run.task, self.mesh.paths(run.task), self.world.now)
        if said is None:
            self.die()
            return
        self._say_all(run, said)

    def _say_all(self, run: Run, said: Iterator[pb.WorkRequest]) -> None:
        for request in said:
            if request.WhichOneof("message") != "failures":
                self._end(run, request)
                return
            self._post(run, request)
            if self.world.chance(0.05):
                self.freeze(self.world.random.choice((5.0, 20.0, 45.0)))
                self.when_thawed(self._go_on, run, said)
                return

    def _go_on(self, run: Run, said: Iterator[pb.WorkRequest]) -> None:
        """Say the rest, as if no time had passed; but not what was handed back meanwhile."""
        if run.busy:
            self._say_all(run, said)

    def _end(self, run: Run, request: pb.WorkRequest) -> None:
        run.busy = False
        self._post(run, request)
        self._give_credit(1)

    def _post(self, run: Run, request: pb.WorkRequest) -> None:
        if run.lost:
            self._forget(run)
            return
        run.unacked.append(request)
        if self._out is not None:
            self._out.up(("report", request))
        if self.world.chance(0.1) and (replica := self.mesh.replica()):
            self.world.after(
                self.world.random.uniform(0, 60), replica.when_read, replica.stray, request
            )

    def _forget(self, run: Run) -> None:
        if not run.busy and not run.unacked:
            self._runs.pop((run.task.task_id, run.task.token), None)

    def _later(self, delay: float, call: Callable[..., None], *args: Any) -> None:
        self.world.after(delay, self.when_thawed, call, *args)


def _hand_back(task: Leased) -> pb.WorkRequest:
    lease = pb.Lease(task_id=task.task_id, token=task.token)
    return pb.WorkRequest(hand_back=pb.WorkRequest.HandBack(lease=lease))
