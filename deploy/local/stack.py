"""The whole stack of one machine: starts, stops and describes all parts of one directory."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import nearline_client
from deploy.local import people
from deploy.local.configs import Overrides
from deploy.local.errors import StackError
from deploy.local.files import exclusive, make_directory
from deploy.local.parts import BACKENDS, PARTS, SERVICES, Parts
from deploy.local.process import Supervisor
from deploy.local.site import Site
from deploy.local.wait import wait_until
from nearline_client import Client
from nearline_client.auth import Credentials
from nearline_client.auth_errors import AuthError
from nearline_client.config import ClientConfig, save_config


@dataclass(frozen=True)
class PartStatus:
    """How one part is: its pid (None: it does not run), its ports, and what is wrong with it."""

    name: str
    pid: int | None
    ports: dict[str, int]
    trouble: str | None


class Stack:
    """All parts below one directory. Making one starts nothing."""

    def __init__(
        self,
        directory: Path,
        *,
        tape: str = "auto",
        overrides: Overrides | None = None,
        environment: Mapping[str, Mapping[str, str]] | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """``tape`` is "xrootd", "directory" or "auto"; ``overrides`` change services' settings by
        service name, as their TOML files would hold them; ``environment`` has more variables for
        services by name, read at each start; ``say`` is told about progress."""
        self.site = Site(directory)
        self.supervisor = Supervisor(self.site.directory)
        self._parts = Parts(
            self.site, tape, overrides or {}, {} if environment is None else environment, say
        )
        self._say = say

    def up(self, names: Sequence[str] = PARTS) -> None:
        """Start what does not run or whose settings changed, and wait until all is healthy.

        Raises StackError when a part cannot be started; what runs by then keeps running.
        """
        with self._lock():
            self._clear_the_ground()
            self.site.authority.issue()
            people.make_homes(self.site.homes)
            self._start([name for name in self._used(BACKENDS) if name in names])
            services = [name for name in SERVICES if name in names]
            self._parts.prepare_databases([name for name in services if not self.pid(name)])
            self._start(services)

    def down(self) -> None:
        """Stop everything, users' side first. Raises StackError when something cannot be ended."""
        with self._lock():
            started = self.supervisor.names()
            for name in [part for part in reversed(PARTS) if part in started]:
                self._say(f"stopping {name}")
                self.supervisor.stop(name)

    def restart(self, name: str) -> None:
        """Stop one part and start it again on the same ports; wait until it is healthy."""
        with self._lock():
            self.supervisor.stop(self._known(name))
            self._start([name])

    def stop(self, name: str) -> None:
        """Stop one part in good order."""
        with self._lock():
            self.supervisor.stop(self._known(name))

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to one part and, when it is deadly, wait until the part is gone."""
        self.supervisor.kill(self._known(name), number)
        if number == signal.SIGKILL:
            self.supervisor.wait_gone(name)

    def pid(self, name: str) -> int | None:
        """The pid of a part; None when it does not run."""
        return self.supervisor.pid(self._known(name))

    def status(self) -> list[PartStatus]:
        """How each part is, in the order of their start."""
        return [self._status(name) for name in self.parts()]

    def wait_healthy(self, timeout: float = 60.0) -> None:
        """Wait until every part runs and is healthy. Raises StackError with what is not."""

        def probe() -> str | None:
            ill = [f"{part.name}: {part.trouble}" for part in self.status() if part.trouble]
            return "; ".join(ill) or None

        wait_until(probe, "the stack", timeout)

    def parts(self) -> list[str]:
        """Names of the parts of this stack, in the order of their start."""
        return self._used(PARTS)

    def log_path(self, name: str) -> Path:
        """The log of a part."""
        return self.supervisor.log_path(self._known(name))

    def environment(self) -> dict[str, str]:
        """Variables by which `nlds` finds this stack. Raises StackError if it never was up."""
        if not self.site.authority.certificate.exists():
            raise StackError(f"no stack was ever up in {self.site.directory}; run `make up`")
        return {
            "NEARLINE_URL": f"https://{self.site.address('gateway')}",
            "NEARLINE_CA": str(self.site.authority.certificate),
            "NEARLINE_ISSUER": self.site.idp.issuer,
        }

    def login(self, user: str) -> Path:
        """Log a test user in and return the configuration file that `nlds` is to use.

        Raises StackError for an unknown name or when the provider does not answer.
        """
        clients = make_directory(self.site.directory / "clients", 0o700)
        file = make_directory(clients / self._user(user), 0o700) / "config.toml"
        config = ClientConfig(
            url=f"https://{self.site.address('gateway')}",
            ca_file=self.site.authority.certificate,
            issuer=self.site.idp.issuer,
            user=user,
        )
        save_config(config, file)
        try:
            # The password of a test user is the name.
            Credentials(config, config_file=file, environ={}).login_with_password(user, user)
        except AuthError as error:
            raise StackError(f"{user} cannot be logged in: {error}") from error
        return file

    def client(self, user: str) -> Client:
        """A Python client that is logged in as a test user; use it in a ``with`` statement."""
        return nearline_client.connect(config=self.login(user))

    def home(self, user: str) -> Path:
        """The home directory of a test user. Raises StackError for an unknown name."""
        return self.site.homes / self._user(user)

    def _start(self, names: Sequence[str]) -> None:
        if names:
            self._say(f"starting {', '.join(names)}")
        self.supervisor.start(*map(self._parts.spec, names))

    def _clear_the_ground(self) -> None:
        """End what dead parts left, and give up ports that other programs took meanwhile."""
        self.supervisor.sweep()
        for port_name in self.site.ports.names():
            if self.supervisor.pid(port_name.partition("-")[0]) is None:
                self.site.ports.replace_if_taken(port_name)

    def _used(self, names: Sequence[str]) -> list[str]:
        unused = set() if self._parts.tape_driver() == "xrootd" else {"xrootd"}
        return [name for name in names if name not in unused]

    def _status(self, name: str) -> PartStatus:
        ports = self.site.ports.of(name)
        pid = self.supervisor.pid(name)
        trouble = "not running" if pid is None else self._parts.trouble(name)
        return PartStatus(name, pid, ports, trouble)

    def _user(self, name: str) -> str:
        if name not in people.posix_ids():
            raise StackError(f"no test user {name}; there are {', '.join(people.posix_ids())}")
        return name

    def _known(self, name: str) -> str:
        if name not in PARTS:
            raise StackError(f"no part {name}; there are {', '.join(PARTS)}")
        return name

    def _lock(self) -> AbstractContextManager[None]:
        return exclusive(self.site.directory / "lock")
