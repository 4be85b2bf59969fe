"""The stack that something is measured on."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.local.configs import Overrides
from deploy.local.stack import Stack
from deploy.local.watchdog import Watchdog

# Archives when told to, and asks the endpoint often.
_SETTINGS: Overrides = {
    "tape": {
        "archive": {
            "every_seconds": 86_400.0,
            "min_age_seconds": 0,
            "flush_seconds": 0.001,
            "confirm_seconds": 0.2,
        },
        "recall": {"poll_seconds": 0.2},
    }
}


@contextmanager
def new_stack(parent: Path | None, tape: str) -> Iterator[Stack]:
    """A running stack in a new directory below ``parent``; its logs are kept if this fails."""
    directory = Path(tempfile.mkdtemp(prefix="nearline-bench-", dir=parent))
    watchdog = Watchdog(directory)
    try:
        stack = Stack(directory, tape=tape, overrides=_SETTINGS)
        if "xrootd" in stack.parts():
            stack.site.xrootd.configure(migrate_delay=0.0, mount=0.0, seek=0.0)
        stack.up()
        yield stack
    except BaseException:
        kept = tempfile.mkdtemp(prefix="nearline-bench-logs-")
        shutil.copytree(directory / "logs", kept, dirs_exist_ok=True)
        print(f"logs are in {kept}", file=sys.stderr, flush=True)
        raise
    finally:
        watchdog.finish()
