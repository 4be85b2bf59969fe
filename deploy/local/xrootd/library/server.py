"""The two ways from xrootd into the library: prepare requests by socket, file events by a pipe."""

from __future__ import annotations

import logging
import os
import re
import socketserver
from pathlib import Path

from deploy.local.xrootd.library.tape_library import TapeLibrary

log = logging.getLogger(__name__)

_EVENT = re.compile(r"\S+ (closew|rm|mv) (/.*)", re.DOTALL)


class PrepareServer(socketserver.ThreadingUnixStreamServer):
    """Listens on ``library.sock`` in the working directory, which may be deeper than sun_path."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, library: TapeLibrary) -> None:
        self.library = library
        Path("library.sock").unlink(missing_ok=True)
        super().__init__("library.sock", _PrepareHandler)


class _PrepareHandler(socketserver.StreamRequestHandler):
    server: PrepareServer

    def handle(self) -> None:
        fields = self.rfile.read().split(b"\0")
        # The last field ends with a NUL too; a request that was cut short does not.
        if len(fields) < 3 or fields[-1]:
            return
        command, request_id, *paths = map(os.fsdecode, fields[:-1])
        code, text = self.server.library.request(command, request_id, paths)
        self.wfile.write(f"{code}\n{text}".encode())


def read_events(pipe: int, library: TapeLibrary) -> None:
    """Pass on the events that xrootd writes to the descriptor ``pipe``, a line each, forever.

    A path with a newline splits its event, and one with a space blurs a rename. So an event is only
    a hint: the library looks at the file itself, and at all files when the hint is not clear.
    """
    with open(pipe, encoding="utf-8", errors="surrogateescape", newline="\n") as stream:
        for line in stream:
            _pass_on(line.removesuffix("\n"), library)


def _pass_on(line: str, library: TapeLibrary) -> None:
    event = _EVENT.fullmatch(line)
    if event is None or event[1] == "mv":
        library.disturbed()
    elif event[1] == "closew":
        library.closed(event[2])
    else:
        library.removed(event[2])
