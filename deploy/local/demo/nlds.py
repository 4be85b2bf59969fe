"""Runs the `nlds` command as a user does, in a process of its own."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from deploy.local.errors import StackError

_PROGRAM = (sys.executable, "-m", "nearline_client.cli")
_PACKAGES = Path(__file__).parents[3] / "client"


class Nlds:
    """The command with one user's configuration file; `limit` seconds end a run that hangs."""

    def __init__(self, config: Path, limit: float) -> None:
        self._config = config
        self._limit = limit

    def run(
        self, *words: str, stdin: str = "", show: Callable[[str], None] = lambda line: None
    ) -> list[str]:
        """Run it; the lines of its output, each told to `show` when it comes.

        Raises StackError with what it said when it fails or does not end in time.
        """
        return self._run(words, stdin, show, subprocess.STDOUT)

    def json(self, *words: str) -> Iterator[dict[str, Any]]:
        """Run it with --json; each object that it prints. Raises StackError."""
        return map(json.loads, self._run((*words, "--json"), "", lambda line: None, None))

    def _run(
        self, words: tuple[str, ...], stdin: str, show: Callable[[str], None], stderr: int | None
    ) -> list[str]:
        process = subprocess.Popen(
            [*_PROGRAM, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=self._environment(),
            encoding="utf-8",
            errors="backslashreplace",
        )
        expired = threading.Event()
        timer = threading.Timer(self._limit, _end, (process, expired))
        timer.start()
        try:
            lines = list(_converse(process, stdin, show))
        finally:
            timer.cancel()
            _end(process, threading.Event())
        self._check(words, process.returncode, lines, expired.is_set())
        return lines

    def _check(self, words: tuple[str, ...], code: int, lines: list[str], expired: bool) -> None:
        said = "\n".join(lines[-30:])
        if expired:
            raise StackError(f"`{shown(*words)}` did not end in {self._limit:g} s:\n{said}")
        if code:
            raise StackError(f"`{shown(*words)}` ended with {code}:\n{said}")

    def _environment(self) -> dict[str, str]:
        # Settings and tokens of whoever runs the demonstration are not those of the test user.
        own = {name: value for name, value in os.environ.items() if name[:9] != "NEARLINE_"}
        return {**own, "NEARLINE_CONFIG": str(self._config), "PYTHONPATH": str(_PACKAGES)}


def shown(*words: str) -> str:
    """The command line as one would type it."""
    return shlex.join(("nlds", *words))


def _converse(
    process: subprocess.Popen[str], stdin: str, show: Callable[[str], None]
) -> Iterator[str]:
    feed, out = _pipes(process)
    with feed:
        feed.write(stdin)
    for line in out:
        show(line.rstrip("\n"))
        yield line.rstrip("\n")
    process.wait()


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def _end(process: subprocess.Popen[str], expired: threading.Event) -> None:
    if process.poll() is None:
        expired.set()
        process.kill()
        process.wait()
