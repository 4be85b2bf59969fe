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

from deploy.local.xrootd.layout import EVENTS, EXPORT, Layout
from deploy.local.xrootd.library.ledger import Ledger
from deploy.local.xrootd.library.server import PrepareServer, read_events
from deploy.local.xrootd.library.settings import SettingsFile
from deploy.local.xrootd.library.store import Store
from deploy.local.xrootd.library.tape_library import TapeLibrary


def main(directory: Path) -> int:
    """Run until xrootd ends; returns its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s library %(message)s")
    layout = Layout(directory)
    os.chdir(layout.run)
    library = TapeLibrary(
        Store(layout.data, EXPORT),
        Ledger(layout.data / "ledger.sqlite"),
        SettingsFile(layout.settings).read,
    )
    receiver, sender = os.pipe()
    library.resume()
    for target in (
        PrepareServer(library).serve_forever,
        lambda: read_events(receiver, library),
        library.run_drive,
        library.run_agenda,
    ):
        threading.Thread(target=target, daemon=True).start()
    return _serve(layout, sender)


def _serve(layout: Layout, events: int) -> int:
    os.dup2(events, EVENTS)
    # SIGKILL of this process must not leave a server that nobody supervises.
    xrootd = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "xrootd", "-n", "tape", "-c", str(layout.config)],
        pass_fds=[EVENTS],
    )
    signal.signal(signal.SIGTERM, lambda *_: xrootd.terminate())
    return xrootd.wait()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
