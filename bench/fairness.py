"""Single files of two users, alone and beside a million files that another user puts."""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import machine
from bench.stacks import new_stack
from deploy.local.demo import trees
from deploy.local.errors import StackError
from deploy.local.stack import Stack
from deploy.local.wait import wait_until
from nearline.type.v1.transaction_pb2 import Transaction
from nearline_client import Client, ServiceError
from nearline_client.states import is_final

BUSY, SINGLE = "alice", ("bob", "carol")
GROUP = "cmip6"
TARGET = 2.0
"""Singles may take so many times as long as on the idle system, at the median and at p95."""
_RESULTS = Path(__file__).with_name("FAIRNESS.md")
_IN_DIRECTORY = 1000
_LIMIT_SECONDS = 300.0
_WARM_UP = 2

Seconds = Mapping[str, Sequence[float]]
"""By operation."""


@dataclass(frozen=True)
class Latency:
    """Seconds from a request to its end."""

    p50: float
    p95: float

    @staticmethod
    def of(samples: Sequence[float]) -> Latency:
        """Of at least two samples."""
        cuts = statistics.quantiles(samples, n=20, method="inclusive")
        return Latency(statistics.median(samples), cuts[-1])


@dataclass(frozen=True)
class Progress:
    """What the large put did while single files were measured."""

    files: int
    seconds: float


def main(words: Sequence[str]) -> int:
    """0 when singles stay within the target, 1 when they do not, 2 when something failed."""
    arguments = _parser().parse_args(words)
    load = os.getloadavg()[0]
    try:
        with new_stack(arguments.dir, arguments.tape) as stack:
            idle, busy, progress = _measure(
                stack, arguments.files, arguments.rounds, arguments.after
            )
    except (StackError, ServiceError, TimeoutError) as error:
        _say(f"error: {error}")
        return 2
    command = shlex.join(("python", "-m", "bench", "fairness", *words))
    facts = [f"- {name}: {value}" for name, value in machine.describe(command, load)]
    lines = ["# Results of `make bench-fairness`", "", *facts, "", *render(idle, busy, progress)]
    text = "\n".join([*lines, ""])
    print(text)
    arguments.out.write_text(text)
    return int(max(ratios(idle, busy)) > TARGET)


def render(idle: Seconds, busy: Seconds, progress: Progress) -> Iterator[str]:
    """The table. Pure."""
    yield "| single file | idle p50 | p95 | busy p50 | p95 | ratio p50 | p95 |"
    yield "|---|---|---|---|---|---|---|"
    for name in idle:
        alone, beside = Latency.of(idle[name]), Latency.of(busy[name])
        p50, p95 = beside.p50 / alone.p50, beside.p95 / alone.p95
        yield (
            f"| {name} | {_ms(alone.p50)} | {_ms(alone.p95)} | {_ms(beside.p50)} |"
            f" {_ms(beside.p95)} | {p50:.1f} | {p95:.1f} |"
        )
    rate = progress.files / progress.seconds
    yield ""
    yield (
        f"Meanwhile the other user's put stored {progress.files:,} files in"
        f" {progress.seconds:.0f} s ({rate:,.0f} files/s)."
    )


def ratios(idle: Seconds, busy: Seconds) -> list[float]:
    """Busy against idle, the median and p95 of each operation. Pure."""
    pairs = [(Latency.of(idle[name]), Latency.of(busy[name])) for name in idle]
    return [ratio for a, b in pairs for ratio in (b.p50 / a.p50, b.p95 / a.p95)]


def _measure(
    stack: Stack, files: int, rounds: int, after: int
) -> tuple[Seconds, Seconds, Progress]:
    _say(f"making {files:,} files")
    source = _make(stack.home(BUSY) / "many", files)
    with ExitStack() as clients:
        singles = [_Single(stack, clients.enter_context(stack.client(u)), u) for u in SINGLE]
        other = clients.enter_context(stack.client(BUSY))
        _run(singles, _WARM_UP)
        _say("single files on the idle system")
        idle = _run(singles, rounds)
        with _putting(other, source, after) as done:
            _say("single files beside the put")
            before, start = done(), time.monotonic()
            busy = _run(singles, rounds)
            progress = Progress(done() - before, time.monotonic() - start)
    return idle, busy, progress


@contextmanager
def _putting(client: Client, source: Path, after: int) -> Iterator[Callable[[], int]]:
    """A put that runs throughout the block; gives the number of files it has stored.

    The block begins when that is ``after``.
    """
    put = client.put([str(source)], label="many", group=GROUP)
    wait_until(
        lambda: None if client.transaction(put.id).files_done >= after else "too little is stored",
        "the large put",
        _LIMIT_SECONDS,
    )
    yield lambda: client.transaction(put.id).files_done
    if is_final(client.transaction(put.id).state):
        raise StackError("the large put has ended too soon; take more --files or fewer --rounds")
    client.cancel(put.id)


class _Single:
    """A user who puts a single file and gets it back, again and again."""

    def __init__(self, stack: Stack, client: Client, user: str) -> None:
        self._client = client
        self._user = user
        self._home = stack.home(user)

    def round(self, turn: threading.Barrier) -> dict[str, float]:
        """Seconds by operation. Both users ask at the same time."""
        path, target = self._new_file()
        turn.wait(_LIMIT_SECONDS)
        label = path.name
        return {
            "put": self._time(lambda: self._client.put([str(path)], label=label, group=GROUP)),
            "get": self._time(
                lambda: self._client.get([str(path)], str(target), label=label, group=GROUP)
            ),
        }

    def _new_file(self) -> tuple[Path, Path]:
        path = self._home / f"single-{uuid.uuid4().hex}"
        target = path.with_suffix(".back")
        with trees.acting_as_user(self._user):
            path.write_bytes(os.urandom(10_000))
            target.mkdir()
        return path, target

    def _time(self, ask: Callable[[], Transaction]) -> float:
        start = time.monotonic()
        ended = self._client.wait(ask().id, _LIMIT_SECONDS)
        took = time.monotonic() - start
        if ended.state != Transaction.COMPLETE:
            raise StackError(f"a single file did not complete:\n{ended}")
        return took


def _run(singles: Iterable[_Single], rounds: int) -> Seconds:
    users = list(singles)
    turn = threading.Barrier(len(users))
    found: defaultdict[str, list[float]] = defaultdict(list)
    with ThreadPoolExecutor(len(users)) as pool:
        for _ in range(rounds):
            for seconds in pool.map(lambda user: user.round(turn), users):
                for name, value in seconds.items():
                    found[name].append(value)
    return found


def _make(directory: Path, files: int) -> Path:
    with trees.acting_as_user(BUSY):
        for start in range(0, files, _IN_DIRECTORY):
            below = directory / f"{start // _IN_DIRECTORY:04d}"
            below.mkdir(parents=True)
            for number in range(start, min(start + _IN_DIRECTORY, files)):
                (below / f"{number:07d}").write_bytes(b"%d" % number)
    return directory


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench fairness", description=__doc__)
    add = parser.add_argument
    add("--files", type=int, default=1_000_000, metavar="N", help="files of the large put")
    add("--rounds", type=int, default=60, metavar="N", help="single files of each user")
    add("--after", type=int, default=1, metavar="N", help="begin when it has stored so many")
    add("--tape", default="auto", help="what tape is: auto, xrootd or directory")
    add("--dir", type=Path, help="where the stack's directory is made (default: $TMPDIR)")
    add("--out", type=Path, default=_RESULTS, help="file to write (default: bench/FAIRNESS.md)")
    return parser
