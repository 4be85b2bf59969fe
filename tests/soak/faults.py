"""Makes a schedule of faults happen, and takes each back when its time is over."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
from botocore.exceptions import BotoCoreError, ClientError

from deploy.local.errors import StackError
from nearline.type.v1.storage_pb2 import Blob
from tests.soak.history import History
from tests.soak.rig import Rig
from tests.soak.schedule import Fault, Kind

_START_SECONDS = 120.0
_OWNERS = {
    "cache": ("transfer", "tape"),
    "pack": ("transfer", "tape"),
    "worker": ("transfer", "tape"),
    "database": ("catalog", "monitor"),
}
# A blob of one tier all of whose files have a good copy in the other, so that one of the two may be
# spoilt. Holdings with even numbers lose cache copies, those with odd ones tape copies, and only
# the even ones are evicted: never are both copies of a file spoilt.
_SPOILABLE = """
SELECT b.id, b.key FROM blob b
WHERE b.tier = %(tier)s AND b.state = %(state)s AND b.holding_id %% 2 = %(odd)s AND b.size > 0
  AND NOT b.id = ANY(%(spoilt)s)
  AND EXISTS (SELECT FROM location l WHERE l.blob_id = b.id)
  AND NOT EXISTS (
    SELECT FROM location l WHERE l.blob_id = b.id AND NOT EXISTS (
      SELECT FROM location o JOIN blob x ON x.id = o.blob_id
      WHERE o.file_id = l.file_id AND x.tier = %(other)s AND x.state = %(other_state)s))
"""
# What a database whose clock jumps would see: every moment on record is further away or nearer.
_JUMP = """
UPDATE worker SET seen_at = seen_at - %(by)s * interval '1 second';
UPDATE task SET not_before = not_before - %(by)s * interval '1 second',
    failing_since = failing_since - %(by)s * interval '1 second'
WHERE ended_at IS NULL;
"""


class Skipped(Exception):
    """The fault cannot happen here and now; the text says why."""


class Injector:
    """Runs the lanes of a schedule side by side, each in a thread."""

    def __init__(self, rig: Rig, history: History) -> None:
        self._rig = rig
        self._history = history
        self._stop = threading.Event()
        self._lanes: list[threading.Thread] = []
        self._act: dict[Kind, Callable[[Fault], None]] = {
            Kind.KILL: self._kill,
            Kind.STOP: self._freeze_process,
            Kind.CRASH: self._crash,
            Kind.KILL_ALL: self._kill_all,
            Kind.CUT: self._network,
            Kind.DELAY: self._network,
            Kind.FREEZE: self._network,
            Kind.HALF_OPEN: self._network,
            Kind.FLIP_CACHE: self._flip_in_cache,
            Kind.FLIP_TAPE: self._flip_on_tape,
            Kind.FULL: self._fill,
            Kind.CLOCK: self._jump,
        }

    def start(self, faults: Sequence[Fault]) -> None:
        """Begin; the times of the faults count from now."""
        begun = time.monotonic()
        lanes: defaultdict[str, list[Fault]] = defaultdict(list)
        for fault in faults:
            lanes[fault.lane].append(fault)
        for name, lane in lanes.items():
            thread = threading.Thread(target=self._run, args=(begun, lane), name=name)
            thread.start()
            self._lanes.append(thread)

    def wait(self) -> None:
        """Wait until every fault is over."""
        for lane in self._lanes:
            lane.join()

    def stop(self) -> None:
        """End the lanes early, and wait for them."""
        self._stop.set()
        self.wait()

    def _run(self, begun: float, faults: Sequence[Fault]) -> None:
        for fault in faults:
            if self._stop.wait(max(0.0, begun + fault.at - time.monotonic())):
                return
            self._one(fault)

    def _one(self, fault: Fault) -> None:
        facts = {"kind": fault.kind.value, "victim": fault.victim, "amount": fault.amount}
        self._history.add("fault", **facts)
        try:
            self._act[fault.kind](fault)
            self._history.counts[f"fault {fault.kind.value}"] += 1
            self._history.add("healed", **facts)
        except (Skipped, StackError, psycopg2.Error, BotoCoreError, ClientError, OSError) as error:
            self._history.add("skipped", why=str(error), **facts)

    # -- processes

    def _kill(self, fault: Fault) -> None:
        if self._rig.stack.pid(fault.victim):
            self._rig.stack.kill(fault.victim)
        self._stop.wait(fault.seconds)
        self._start(fault.victim)

    def _kill_all(self, fault: Fault) -> None:
        for name in filter(self._rig.stack.pid, self._rig.stack.parts()):
            self._rig.stack.kill(name)
        self._start(*self._rig.stack.parts())

    def _freeze_process(self, fault: Fault) -> None:
        self._rig.signal_all(fault.victim, signal.SIGSTOP)
        try:
            self._stop.wait(fault.seconds)
        finally:
            self._rig.signal_all(fault.victim, signal.SIGCONT)

    def _crash(self, fault: Fault) -> None:
        first = fault.victim.partition(".")[0]
        name = random.Random(str(fault)).choice(_OWNERS.get(first, (first,)))
        log = self._rig.stack.log_path(name)
        seen = log.stat().st_size
        self._rig.arm(name, f"{fault.victim}:{fault.amount:.0f}")
        try:
            if self._rig.stack.pid(name):
                self._rig.stack.kill(name)
            self._start(name, once=True)
            self._wait_crashed(log, seen, fault)
        finally:
            self._rig.arm(name, "")
            if self._rig.stack.pid(name):
                self._rig.stack.kill(name)
            self._start(name)

    def _wait_crashed(self, log: Path, seen: int, fault: Fault) -> None:
        end = time.monotonic() + fault.seconds
        while time.monotonic() < end and not self._stop.wait(0.1):
            if _has_crashed(log, seen):
                self._history.add("crashed", point=fault.victim)
                return
        raise Skipped("nothing came to this point in time")

    def _start(self, *names: str, once: bool = False) -> None:
        """Start parts, again and again while others that they need are away."""
        end = time.monotonic() + _START_SECONDS
        while True:
            try:
                self._rig.stack.up(names)
                return
            except StackError as error:
                self._history.add("start_failed", parts=names, why=str(error)[:300])
                if once:
                    return
                if time.monotonic() > end:
                    raise

    # -- the network

    def _network(self, fault: Fault) -> None:
        link = self._rig.links[fault.victim]
        open_now = link.connections
        match fault.kind:
            case Kind.CUT:
                link.cut()
            case Kind.DELAY:
                link.delay(fault.amount)
            case Kind.FREEZE:
                link.freeze()
            case _:
                link.half_open()
        self._history.counts["connections cut or held"] += open_now
        try:
            self._stop.wait(fault.seconds)
        finally:
            link.heal()

    # -- what lies on disks and in clocks

    def _fill(self, fault: Fault) -> None:
        disk = self._rig.disks.get(fault.victim)
        if disk is None:
            raise Skipped(self._rig.missing[f"a full {fault.victim}"])
        disk.fill()
        try:
            self._stop.wait(fault.seconds)
        finally:
            disk.free()
        if fault.victim == "cache":
            # The index of SeaweedFS refuses writes until it is started anew, as operators know.
            if self._rig.stack.pid("seaweed"):
                self._rig.stack.kill("seaweed")
            self._start("seaweed")

    def _jump(self, fault: Fault) -> None:
        by = fault.amount if fault.victim == "ahead" else -fault.amount
        with self._administration("monitor") as connection, connection.cursor() as cursor:
            cursor.execute(_JUMP, {"by": by})

    def _flip_in_cache(self, fault: Fault) -> None:
        blob, key = self._spoilable(fault, Blob.CACHE)
        store = self._rig.stack.site.seaweed.store
        content = bytearray(store.client.get_object(Bucket=store.bucket, Key=key)["Body"].read())
        content[random.Random(str(fault)).randrange(len(content))] ^= 0x10
        self._rig.spoilt[Blob.CACHE].add(blob)
        store.client.put_object(Bucket=store.bucket, Key=key, Body=bytes(content))
        if not self._is(blob, Blob.STORED):  # Evicted meanwhile: this would be an orphan of ours.
            store.client.delete_object(Bucket=store.bucket, Key=key)
        self._history.add("flipped", tier="CACHE", blob=blob)

    def _flip_on_tape(self, fault: Fault) -> None:
        blob, key = self._spoilable(fault, Blob.TAPE)
        self._rig.spoilt[Blob.TAPE].add(blob)
        path = self._rig.tape_copy(key)
        with open(path, "r+b") as stream:
            at = random.Random(str(fault)).randrange(path.stat().st_size)
            stream.seek(at)
            value = stream.read(1)[0]
            stream.seek(at)
            stream.write(bytes([value ^ 0x10]))
        self._history.add("flipped", tier="TAPE", blob=blob)

    def _spoilable(self, fault: Fault, tier: Blob.Tier.ValueType) -> tuple[int, str]:
        cache = tier == Blob.CACHE
        wanted = {
            "tier": tier,
            "other": Blob.TAPE if cache else Blob.CACHE,
            "state": Blob.STORED if cache else Blob.SAFE,
            "other_state": Blob.SAFE if cache else Blob.STORED,
            "odd": 0 if cache else 1,
            "spoilt": list(self._rig.spoilt[tier]),
        }
        end = time.monotonic() + fault.seconds
        with self._administration("catalog") as connection, connection.cursor() as cursor:
            while True:
                cursor.execute(_SPOILABLE, wanted)
                if found := sorted(cursor.fetchall()):
                    blob, key = random.Random(str(fault)).choice(found)
                    return int(blob), str(key)
                if time.monotonic() > end or self._stop.wait(0.3):
                    raise Skipped("no file has two good copies that may be spoilt")

    def _is(self, blob: int, state: Blob.State.ValueType) -> bool:
        with self._administration("catalog") as connection, connection.cursor() as cursor:
            cursor.execute("SELECT state FROM blob WHERE id = %s", (blob,))
            return bool(cursor.fetchone()[0] == state)

    def _administration(self, database: str) -> Any:
        server = self._rig.stack.site.postgres.superuser(database)
        connection = psycopg2.connect(server.url, connect_timeout=5)
        connection.autocommit = True
        return closing(connection)


def _has_crashed(log: Path, seen: int) -> bool:
    with log.open("rb") as stream:
        stream.seek(seen)
        return b'"crash_point"' in stream.read()
