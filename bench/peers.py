"""Other programs that move the same files to and from the same servers."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from bench import cases
from bench.machine import program
from deploy.local.errors import StackError
from deploy.local.stack import Stack

_LIMIT_SECONDS = 600
_TUNING = (
    "--transfers=16", "--checkers=16", "--s3-upload-concurrency=8", "--s3-chunk-size=32M",
    "--multi-thread-streams=4", "--s3-no-check-bucket", "--quiet",
)  # fmt: skip
_HOUR = 3600.0


class Peers:
    """Copies a directory with each peer.

    What that leaves on disk goes with the stack: ext4 makes files many times slower for some
    seconds after many were removed.
    """

    def __init__(self, stack: Stack, scratch: Path) -> None:
        self._stack = stack
        self._scratch = scratch
        self._with_xrootd = "xrootd" in stack.parts()

    def run(self, source: Path) -> dict[str, float]:
        """Seconds of each peer by its name. Raises StackError when one fails."""
        seconds = {cases.CP: self._cp(source), **self._rclone(source)}
        if self._with_xrootd:
            seconds |= self._xrdcp(source)
        return seconds

    def _cp(self, source: Path) -> float:
        target = self._scratch / f"cp-{source.name}"
        return self._timed(["cp", "-r", str(source), str(target)], {})

    def _rclone(self, source: Path) -> dict[str, float]:
        store, target = self._stack.site.seaweed.store, self._scratch / f"rclone-{source.name}"
        environment = {
            "RCLONE_CONFIG": "/dev/null",
            "RCLONE_CONFIG_CACHE_TYPE": "s3",
            "RCLONE_CONFIG_CACHE_PROVIDER": "Other",
            "RCLONE_CONFIG_CACHE_ENDPOINT": store.endpoint,
            "RCLONE_CONFIG_CACHE_ACCESS_KEY_ID": store.access_key,
            "RCLONE_CONFIG_CACHE_SECRET_ACCESS_KEY": store.secret_key,
        }
        bucket = f"bench-{source.name}"
        store.client.create_bucket(Bucket=bucket)
        copy, remote = [program("rclone"), "copy", *_TUNING], f"cache:{bucket}"
        up = self._timed([*copy, str(source), remote], environment)
        down = self._timed([*copy, remote, str(target)], environment)
        return {cases.RCLONE_UP: up, cases.RCLONE_DOWN: down}

    def _xrdcp(self, source: Path) -> dict[str, float]:
        rig, target = self._stack.site.xrootd, self._scratch / f"xrdcp-{source.name}"
        environment = {"XrdSecPROTOCOL": "sss", "XrdSecSSSKT": str(rig.keytab)}
        # What is copied by the way is not to occupy the simulated library.
        before = rig.layout.settings.read_bytes()
        rig.configure(migrate_delay=_HOUR)
        copy = ["xrdcp", "--nopbar", "--silent", "--recursive", "--parallel", "4"]
        remote = f"{rig.url}/bench-{source.name}/"
        server, _, directory = remote.rpartition("//")
        self._timed(["xrdfs", server, "mkdir", f"/{directory}"], environment)
        target.mkdir()
        up = self._timed([*copy, str(source), remote], environment)
        down = self._timed([*copy, remote, str(target)], environment)
        rig.layout.settings.write_bytes(before)
        return {cases.XRDCP_UP: up, cases.XRDCP_DOWN: down}

    def _timed(self, command: list[str], environment: Mapping[str, str]) -> float:
        settle()
        start = time.monotonic()
        done = subprocess.run(
            command,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=_LIMIT_SECONDS,
            check=False,
        )
        took = time.monotonic() - start
        if done.returncode:
            said = (done.stdout + done.stderr)[-1000:]
            raise StackError(f"{' '.join(command)} ended with {done.returncode}:\n{said}")
        return took


def settle() -> None:
    """Have the kernel write out what it still holds, so that nobody pays for somebody else."""
    os.sync()
