"""A stack of one's own with a breakable link before each part, and disks that can be full."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import nearline_client
from deploy.local import procfs
from deploy.local.configs import Overrides
from deploy.local.errors import StackError
from deploy.local.stack import Stack
from deploy.local.toml import Table, merged
from deploy.local.xrootd.layout import EXPORT
from deploy.local.xrootd.library.store import COPY
from nearline.tape.v1.tape_pb2 import Orphan, ReconcileRequest
from nearline.tape.v1.tape_pb2_grpc import TapeServiceStub
from nearline.type.v1.storage_pb2 import Blob
from nearline_client import Client
from nearline_client.calls import Timing
from services.kit.channel import sync_channel
from services.kit.config import PeerConfig, SecretFile, TlsConfig
from services.kit.crash import VARIABLE
from tests.fixtures.parts import temporary_directory
from tests.fixtures.stack import QUICK
from tests.fixtures.store import quick_tape
from tests.fixtures.tcpproxy import Link
from tests.soak.schedule import LINKS

MIB = 1 << 20
_PORTS = {"seaweed": "seaweed-s3"}
_SIZES = {"target": 256 * MIB, "cache": 4096 * MIB, "tape": 6144 * MIB}
# So little is left on a full disk.
_ROOM = 64 << 10
_FILL_TRIES = 20
_RECONCILE_SECONDS = 120.0

# A client that is told soon, and asks again by itself: the traffic wants to see what is answered.
_TIMING = Timing(deadline=20.0, opening=5.0, interrupted=5.0)

# What takes minutes in production takes seconds here; the rules are the same.
_SETTINGS: Overrides = {
    **QUICK,
    "monitor": {
        "ledger": {
            "heartbeat_seconds": 1.0,
            "lease_seconds": 5.0,
            "retry_most_seconds": 5.0,
            "cancel_patience_seconds": 30.0,
        }
    },
    "tape": merged(QUICK["tape"], {"archive": {"abandoned_seconds": 10}}),
    "transfer": {"pack": {"pack_bytes": 4 * MIB, "pack_threshold": MIB}},
}


class Disk:
    """A file system of its own, in memory, that can be made full."""

    def __init__(self, place: Path, size: int) -> None:
        """Raises StackError when nothing can be mounted here."""
        self.place = place
        self._size = size
        place.mkdir(parents=True, exist_ok=True)
        _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place))

    def fill(self) -> None:
        """Leave next to no room. Raises StackError when too much is written meanwhile."""
        for tries_left in reversed(range(_FILL_TRIES)):
            info = os.statvfs(self.place)
            used = (info.f_blocks - info.f_bfree) * info.f_frsize
            try:
                _mount("-o", f"remount,size={used + _ROOM}", str(self.place))
                return
            except StackError:
                if not tries_left:
                    raise

    def free(self) -> None:
        """Give all the room back."""
        _mount("-o", f"remount,size={self._size}", str(self.place))


class Rig:
    """The stack below ``directory``; making one starts nothing but the links."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._environment: dict[str, Mapping[str, str]] = {}
        self._overrides: dict[str, Table] = dict(_SETTINGS)
        self.stack = Stack(directory, overrides=self._overrides, environment=self._environment)
        self.links = {name: Link(partial(self._port, name)) for name in LINKS}
        for name, settings in self._through_links().items():
            self._overrides[name] = merged(self._overrides.get(name, {}), settings)
        self.disks: dict[str, Disk] = {}
        self.missing: dict[str, str] = {}
        """What cannot go wrong here, and why."""
        self.spoilt: dict[int, set[int]] = {Blob.CACHE: set(), Blob.TAPE: set()}
        """Numbers of blobs with a bit that was turned over on purpose, by tier."""
        self._make_disks()

    def up(self) -> None:
        """Start all that does not run, and wait until it is well. Raises StackError."""
        self.stack.up()
        self.stack.wait_healthy()
        quick_tape(self.stack)

    def _start_again_what_is_ill(self) -> None:
        """As an operator would, where a part does not get over a full disk by itself."""
        for part in self.stack.status():
            if part.trouble and part.pid:
                self.stack.kill(part.name)

    def client(self, user: str) -> Client:
        """A client of a test user's, by way of the link before the gateway."""
        url = f"https://127.0.0.1:{self.links['gateway'].port}"
        return nearline_client.connect(url, config=self.stack.login(user), timing=_TIMING)

    def target(self) -> Path:
        """A directory for everybody, on a disk that can be full where there is one."""
        place = self.directory / "target"
        place.mkdir(exist_ok=True)
        place.chmod(0o1777)
        return place

    def tape_copy(self, key: str) -> Path:
        """The file that holds what is on tape under ``key``."""
        if "xrootd" not in self.stack.parts():
            return self.directory / "tape" / key
        data = self.stack.site.xrootd.layout.data
        copy = os.getxattr(data / "buffer/tape" / key, COPY).decode().split()[0]
        return data / "tape" / copy

    def signal_all(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a part and to everything it started."""
        pid = self.stack.pid(name)
        if pid is not None:
            for one in (pid, *(info.pid for info in procfs.descendants(pid))):
                procfs.send(one, number)

    def arm(self, name: str, point: str) -> None:
        """Have a service that starts from now on die at a crash point; "" at none."""
        self._environment[name] = {VARIABLE: point} if point else {}

    def armed(self) -> list[str]:
        """Services that are to die."""
        return [name for name, variables in self._environment.items() if variables]

    def heal(self) -> None:
        """Take everything back that was done to the stack, and start what does not run."""
        for link in self.links.values():
            link.heal()
        for disk in self.disks.values():
            disk.free()
        for name in self.armed():
            self.arm(name, "")
        for name in self.stack.parts():
            self.signal_all(name, signal.SIGCONT)
        try:
            self.up()
        except StackError:
            self._start_again_what_is_ill()
            self.up()

    def reconcile(self) -> list[Orphan]:
        """Have what has no owner removed, as an operator would ask when nothing runs."""
        site = self.stack.site
        files = site.authority.credentials("operator")
        tls = TlsConfig(cert=files.certificate, key=SecretFile(files.key), ca=files.authority)
        with sync_channel(PeerConfig(address=site.address("tape"), tls=tls)) as channel:
            answers = TapeServiceStub(channel).Reconcile(
                ReconcileRequest(grace_seconds=1), timeout=_RECONCILE_SECONDS
            )
            return [orphan for answer in answers for orphan in answer.orphans]

    def close(self) -> None:
        """Close the links."""
        for link in self.links.values():
            link.close()

    def _port(self, name: str) -> int:
        ports = self.stack.site.ports
        return ports.get(_PORTS.get(name, name))

    def _through_links(self) -> Overrides:
        at = {name: f"127.0.0.1:{link.port}" for name, link in self.links.items()}
        database: Table = {"database": {"port": self.links["postgres"].port}}
        cache: Table = {"cache": {"endpoint": f"http://{at['seaweed']}"}}
        workers = {**cache, **_peers(at, "catalog", "monitor")}
        tape: Table = {}
        if "xrootd" in self.stack.parts():
            tape = {"endpoint": {"url": f"root://{at['xrootd']}/{EXPORT}"}}
        return {
            "catalog": database,
            "monitor": database,
            "gateway": _peers(at, "catalog", "monitor", "transfer"),
            "transfer": workers,
            "tape": {**workers, **tape},
        }

    def _make_disks(self) -> None:
        site = self.stack.site
        has_server = "xrootd" in self.stack.parts()
        tape = site.xrootd.layout.data if has_server else self.directory / "tape"
        places = {"target": self.target(), "cache": site.seaweed.directory, "tape": tape}
        for name, place in places.items():
            try:
                self.disks[name] = Disk(place, _SIZES[name])
            except StackError as error:
                self.missing[f"a full {name}"] = str(error)


def _peers(at: Mapping[str, str], *names: str) -> Table:
    return {name: {"address": at[name]} for name in names}


def _mount(*words: str) -> None:
    if os.geteuid() != 0:
        raise StackError("only root may mount a small disk")
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise StackError(f"cannot mount a small disk: {done.stderr.strip()}")


@contextmanager
def running_rig() -> Iterator[Rig]:
    """A rig that is up; everything of it is gone afterwards, even if this program is killed."""
    with temporary_directory("soak") as directory:
        rig = Rig(directory)
        try:
            rig.up()
            yield rig
        finally:
            rig.close()
