"""Where the files of a rig are, and what its server exports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

EXPORT = "/tape"

DIRECTORY_FD = 8
EVENTS_FD = 9
"""Descriptors that xrootd inherits: the rig's directory, and where it tells what happened to files.

All its paths begin with ``/proc/self/fd/8``. xrootd looks at files with access(2), which ignores
the capability that lets the server pass through a directory that is closed to others; this way no
such directory is passed. Nor can a path be too long for a socket.
"""


@dataclass(frozen=True)
class Layout:
    """The files below the directory of one rig."""

    directory: Path

    @property
    def run(self) -> Path:
        """Sockets, pipes and pid files of the running server."""
        return self.directory / "run"

    @property
    def data(self) -> Path:
        """The buffer, the tape and the ledger: all that must survive."""
        return self.directory / "data"

    @property
    def config(self) -> Path:
        """The configuration of xrootd."""
        return self.directory / "xrootd.cfg"

    @property
    def settings(self) -> Path:
        """The library's settings."""
        return self.directory / "library.json"

    @property
    def plugin(self) -> Path:
        """The compiled plug-in."""
        return self.directory / "libNearlineTape.so"

    @property
    def server_keytab(self) -> Path:
        """The shared secret as the server reads it."""
        return self.directory / "server.keytab"

    @property
    def client_keytab(self) -> Path:
        """The same for clients, readable by who started the rig."""
        return self.directory / "client.keytab"

    @property
    def authorization(self) -> Path:
        """Who may do what below the export."""
        return self.directory / "authorization"
