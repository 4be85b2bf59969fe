"""``python -m deploy.local.xrootd.library DIRECTORY``: the library, and xrootd as its child.

Neither outlives the other: one process to supervise, and no server without a library behind it.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from deploy.local.xrootd.layout import DIRECTORY_FD, EVENTS_FD, EXPORT, Layout
from deploy.local.xrootd.library.ledger import Ledger
from deploy.local.xrootd.library.server import PrepareServer, read_events
from deploy.local.xrootd.library.settings import SettingsFile
from deploy.local.xrootd.library.store import Store
from deploy.local.xrootd.library.tape_library import TapeLibrary


def main(directory: Path) -> int:
    """Run until xrootd ends; returns its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s library %(message)s")
    layout = Layout(directory)
    events = _open_inheritance(layout)
    os.chdir(layout.run)
    library = TapeLibrary(
        Store(layout.data, EXPORT),
        Ledger(layout.data / "ledger.sqlite"),
        SettingsFile(layout.settings).read,
    )
    library.resume()
    for target in (
        PrepareServer(library).serve_forever,
        lambda: read_events(events, library),
        library.run_drive,
        library.run_agenda,
    ):
        threading.Thread(target=target, daemon=True).start()
    return _serve()


def _open_inheritance(layout: Layout) -> int:
    """Open what xrootd inherits, before anything else can take these numbers.

    Returns the end of the pipe that its events are read from.
    """
    receiver, sender = os.pipe()
    os.dup2(sender, EVENTS_FD)
    os.dup2(os.open(layout.directory, os.O_PATH | os.O_DIRECTORY), DIRECTORY_FD)
    return receiver


def _serve() -> int:
    config = Layout(Path(f"/proc/self/fd/{DIRECTORY_FD}")).config
    # SIGKILL of this process must not leave a server that nobody supervises.
    xrootd = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "xrootd", "-n", "tape", "-c", str(config)],
        pass_fds=[DIRECTORY_FD, EVENTS_FD],
    )
    signal.signal(signal.SIGTERM, lambda *_: xrootd.terminate())
    return xrootd.wait()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
