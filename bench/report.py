"""Writes `RESULTS.md`. Pure but for the file itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bench import table
from bench.memory import LIMIT_BYTES, Usage
from bench.table import Figures

_OWN = (
    "files", "operation", "seconds", "command", "CPU s", "rate", "against cp -r", "against peer",
    "NLDS", "against NLDS",
)  # fmt: skip
_PEER = ("files", "peer", "seconds", "rate")

_READING = """\
Seconds are medians of {runs} run(s), each on a stack of its own, with sources in the page cache and
with the kernel's dirty pages written out before each measurement. What else the machine did shows
in the load at the start: peers of the same run had it too, the figures of NLDS had not.
"seconds" is from the transaction's acceptance to its end, "command" from the start of the `nlds`
program to its end, "CPU s" what the five services used of the cores. Ratios above 1 mean that
Nearline is that many times as fast. Every byte that came back was compared with its source, and so
were mode, times, owner and links.

- "archive" counts until every file is recorded at the tape endpoint, its Adler-32 verified with the
  server; "archive until safe" until the endpoint has reported all of it on tape. The simulated
  library mounts and seeks in no time here; copying to its own disk is its part.
- "recall to cache" is `nlds stage`, "get from tape" is `nlds get` of files that are only on tape.
  The endpoint still has them in its buffer, so no time of a robot is in either.
- `rclone copy` has 16 transfers and talks to the same SeaweedFS, `xrdcp` to the same XRootD server
  with 4 files at once. Neither records a catalog, digests or metadata, or packs files.
- NLDS: the best figure of the existing NLDS 1.0.20 on a machine of this size, from the client's
  command to COMPLETE, where one was measured."""


def render(
    machine: Iterable[tuple[str, str]],
    figures: Sequence[Figures],
    peaks: Mapping[str, Mapping[str, Usage]],
    runs: int,
) -> str:
    """The whole document."""
    parts = (
        "# Results of `make bench`",
        "\n".join(f"- {name}: {value}" for name, value in machine),
        "## The store",
        table.markdown(_OWN, (row for each in figures for row in table.own_rows(each))),
        _READING.format(runs=runs),
        "## Peers",
        table.markdown(_PEER, (row for each in figures for row in table.peer_rows(each))),
        *(_memory(peaks) if peaks else ()),
    )
    return "\n\n".join(parts) + "\n"


def _memory(peaks: Mapping[str, Mapping[str, Usage]]) -> tuple[str, ...]:
    names = list(next(iter(peaks.values())))
    return (
        "## Memory",
        "Peaks of each part with all its processes in MB: proportional set size, in brackets"
        f" resident set size. The five services must stay below {LIMIT_BYTES / 1e6:.0f} MB.",
        table.markdown(("during", *names), table.memory_rows(peaks)),
    )
