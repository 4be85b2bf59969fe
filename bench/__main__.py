"""Measures put, get, archive and recall on stacks of their own, beside rclone, xrdcp and cp.

`python -m bench fairness` measures single files of some users beside a million of another one.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import fairness, machine, report, table
from bench.cases import CASES, QUICK, Case
from bench.memory import Sampler, Usage
from bench.ours import USER, Store
from bench.peers import Peers
from bench.stacks import new_stack
from bench.table import Figures
from deploy.local.demo import trees
from deploy.local.demo.make import write, write_large
from deploy.local.errors import StackError
from deploy.local.parts import SERVICES
from deploy.local.stack import Stack
from nearline_client.errors import ServiceError

_RESULTS = Path(__file__).with_name("RESULTS.md")
_COPIES = 12


def main(words: Sequence[str] | None = None) -> int:
    """0 when all was measured, 1 when a service took too much memory, 2 when something failed."""
    words = sys.argv[1:] if words is None else words
    if words[:1] == ["fairness"]:
        return fairness.main(words[1:])
    arguments = _parser().parse_args(words)
    figures = [Figures(case) for case in _chosen(arguments)]
    peaks: dict[str, dict[str, Usage]] = {}
    load = os.getloadavg()[0]
    try:
        for number in range(arguments.runs):
            _say(f"run {number + 1} of {arguments.runs}")
            _one_run(figures, peaks, arguments)
    except (StackError, ServiceError, TimeoutError, subprocess.TimeoutExpired) as error:
        _say(f"error: {error}")
        return 2
    return _finish(figures, peaks, arguments, load)


def _one_run(
    figures: list[Figures], peaks: dict[str, dict[str, Usage]], arguments: argparse.Namespace
) -> None:
    with new_stack(arguments.dir, arguments.tape) as stack:
        sampler = Sampler(_pids(stack))
        for each in figures:
            _check_space(stack.site.directory, each.case)
            _say(f"  {each.case.title}")
            source = _make(stack, each.case)
            peers = Peers(stack, stack.site.homes).run(source) if arguments.peers else {}
            each.add(Store(stack, sampler).run(each.case, source), peers)
        for what, parts in sampler.peaks.items():
            kept = peaks.setdefault(what, {})
            for part, usage in parts.items():
                kept[part] = kept.get(part, Usage()) | usage


def _finish(
    figures: Sequence[Figures],
    peaks: Mapping[str, Mapping[str, Usage]],
    arguments: argparse.Namespace,
    load: float,
) -> int:
    command = shlex.join(("python", "-m", "bench", *sys.argv[1:]))
    text = report.render(machine.describe(command, load), figures, peaks, arguments.runs)
    print(text)
    everything = arguments.peers and not arguments.only and not arguments.quick
    if out := arguments.out or (_RESULTS if everything else None):
        out.write_text(text)
        _say(f"written to {out}")
    excess = table.too_much(peaks, SERVICES)
    for line in excess:
        _say(f"too much memory: {line}")
    return int(bool(excess))


def _make(stack: Stack, case: Case) -> Path:
    source = stack.home(USER) / case.name
    chance = random.Random(case.name)
    with trees.acting_as_user(USER):
        source.mkdir()
        for number in range(case.files):
            path = os.fsencode(source / f"file-{number:05d}")
            if case.files == 1:
                write_large(path, case.size, chance)
            else:
                write(path, chance.randbytes(case.size))
    return source


def _check_space(directory: Path, case: Case) -> None:
    free = shutil.disk_usage(directory).free
    if free < case.bytes * _COPIES:
        raise StackError(
            f"{case.title} needs {case.bytes * _COPIES / 1e9:.0f} GB in {directory}, "
            f"{free / 1e9:.0f} GB are free; choose another --dir, or leave it out with --only"
        )


def _pids(stack: Stack) -> dict[str, int]:
    pids = {name: stack.pid(name) for name in stack.parts()}
    return {name: pid for name, pid in pids.items() if pid is not None and name != "idp"}


def _chosen(arguments: argparse.Namespace) -> list[Case]:
    known = QUICK if arguments.quick else CASES
    return [case for case in known if not arguments.only or case.name in arguments.only]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    add = parser.add_argument
    names = [case.name for case in (*CASES, *QUICK)]
    add("--only", nargs="+", choices=names, metavar="CASE", help=f"of {', '.join(names)}")
    add("--runs", type=int, default=3, metavar="N", help="the median of so many is shown")
    add("--quick", action="store_true", help="small sizes, to see that it works")
    add("--no-peers", dest="peers", action="store_false", help="only the store itself")
    add("--tape", default="auto", help="what tape is: auto, xrootd or directory")
    add("--dir", type=Path, help="where the stack's directory is made (default: $TMPDIR)")
    add("--out", type=Path, help="file to write (default: bench/RESULTS.md, if all is measured)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
