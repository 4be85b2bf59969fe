"""Free loopback ports, chosen once and kept, so that a restarted part keeps its address."""

from __future__ import annotations

import json
import random
import socket
from pathlib import Path

from deploy.local.errors import StackError
from deploy.local.files import write_atomic

# Below the kernel's ephemeral range: no outgoing connection takes the port of a stopped part.
_RANGE = range(10_000, 22_000)
_TRIES = 200


def is_free(port: int) -> bool:
    """Whether nothing listens on this loopback port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def choose(taken: frozenset[int], companions: tuple[int, ...] = ()) -> int:
    """Pick a free port outside ``taken`` whose ``companions`` (offsets) are free too.

    Raises StackError when no port is found.
    """
    for _ in range(_TRIES):
        port = random.choice(_RANGE)
        wanted = {port, *(port + offset for offset in companions)}
        if not wanted & taken and all(map(is_free, wanted)):
            return port
    raise StackError(f"no free port between {_RANGE.start} and {_RANGE.stop} on 127.0.0.1")


class Ports:
    """The ports of one stack by name, in a JSON file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ports: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, name: str, companions: tuple[int, ...] = ()) -> int:
        """Return the port of ``name``, chosen at the first call."""
        if name not in self._ports:
            self._ports[name] = choose(self._taken(), companions)
            self._save()
        return self._ports[name]

    def names(self) -> list[str]:
        """Names of all ports chosen so far."""
        return list(self._ports)

    def of(self, part: str) -> dict[str, int]:
        """The ports of one part: those called like it, and its others by what they are for."""
        return {
            name.partition("-")[2] or "main": port
            for name, port in self._ports.items()
            if name.partition("-")[0] == part
        }

    def replace_if_taken(self, name: str) -> None:
        """Forget the port of a part that is not running when another program took it."""
        if name in self._ports and not is_free(self._ports[name]):
            del self._ports[name]
            self._save()

    def _taken(self) -> frozenset[int]:
        return frozenset(self._ports.values())

    def _save(self) -> None:
        write_atomic(self._path, json.dumps(self._ports, indent=1).encode())
