"""What goes wrong when, decided by the seed alone. Pure.

Three lanes run side by side: processes, the network, and what lies on disks and in clocks. Within
a lane one fault ends before the next begins. Each lane deals its faults from a shuffled deck, so
that a short run meets every kind before it meets one twice.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from services.kit.crash import POINTS

SERVICES = ("catalog", "monitor", "gateway", "transfer", "tape")
PARTS = ("postgres", "seaweed", "xrootd")
LINKS = ("postgres", "seaweed", "xrootd", "catalog", "monitor", "gateway", "transfer")
DISKS = ("target", "cache", "tape")


class Kind(Enum):
    """What can go wrong, and in which lane."""

    KILL = "kill"
    STOP = "stop"
    CRASH = "crash"
    KILL_ALL = "kill-all"
    CUT = "cut"
    DELAY = "delay"
    FREEZE = "freeze"
    HALF_OPEN = "half-open"
    FLIP_CACHE = "flip-cache"
    FLIP_TAPE = "flip-tape"
    FULL = "disk-full"
    CLOCK = "clock"


@dataclass(frozen=True)
class Fault:
    """One fault: it begins ``at`` seconds, or when the one before it in its ``lane`` is over.

    ``amount``: seconds of a delay or a jump of the clock, visits of a crash point.
    """

    lane: str
    at: float
    seconds: float
    kind: Kind
    victim: str
    amount: float = 0.0

    def __str__(self) -> str:
        amount = f" {self.amount:g}" if self.amount else ""
        return (
            f"{self.at:6.1f} s  {self.lane:8} {self.kind.value} {self.victim}{amount}"
            f" for {self.seconds:.1f} s"
        )


@dataclass(frozen=True)
class Pace:
    """Pauses between faults, and how long they last, in seconds."""

    pause: tuple[float, float]
    lasting: tuple[float, float]


QUICK = Pace((0.3, 1.0), (0.5, 2.0))
STEADY = Pace((1.0, 6.0), (1.0, 10.0))
LONG_STOP = 20.0
"""Longer than a lease lives."""

Card = tuple[Kind, str]

# These wait for their moment: work that comes to a point, a file with two good copies.
_PATIENT = frozenset({Kind.CRASH, Kind.FLIP_CACHE, Kind.FLIP_TAPE})
# Crash points that work comes to all the time.
_BUSY = ("database.", "monitor.", "pack.", "transfer.get.after_", "worker.")

_PROCESSES: tuple[Card, ...] = (
    *((Kind.KILL, name) for name in (*SERVICES, *PARTS)),
    *((Kind.STOP, name) for name in (*SERVICES, *PARTS)),
    *((Kind.CRASH, name) for name in POINTS),
    (Kind.KILL_ALL, "everything"),
)
_NETWORK: tuple[Card, ...] = tuple(
    (kind, name) for kind in (Kind.CUT, Kind.DELAY, Kind.FREEZE, Kind.HALF_OPEN) for name in LINKS
)
_STORAGE: tuple[Card, ...] = (
    *((kind, "a copy") for kind in (Kind.FLIP_CACHE, Kind.FLIP_TAPE) for _ in range(3)),
    *((Kind.FULL, name) for name in DISKS),
    (Kind.CLOCK, "ahead"),
    (Kind.CLOCK, "back"),
)
_LANES = {"process": _PROCESSES, "network": _NETWORK, "storage": _STORAGE}


def schedule(seed: int, seconds: float, pace: Pace) -> list[Fault]:
    """The faults of a run in the order of their beginning; the same for the same arguments."""
    faults = [
        fault
        for lane, cards in _LANES.items()
        for fault in _lane(random.Random(f"{seed}:{lane}"), lane, cards, seconds, pace)
    ]
    return sorted(faults, key=lambda fault: fault.at)


def _lane(
    rng: random.Random, lane: str, cards: Sequence[Card], seconds: float, pace: Pace
) -> Iterator[Fault]:
    at = rng.uniform(*pace.pause)
    for kind, victim in _deal(rng, cards):
        lasting = _lasting(rng, kind, pace)
        if at + lasting > seconds:
            return
        yield Fault(lane, round(at, 1), round(lasting, 1), kind, victim, _amount(rng, kind, victim))
        at += lasting + rng.uniform(*pace.pause)


def _deal(rng: random.Random, cards: Sequence[Card]) -> Iterator[Card]:
    """Cards without end: one of each kind first, then the rest; then all of it anew."""
    while True:
        deck = list(cards)
        rng.shuffle(deck)
        first = [next(card for card in deck if card[0] is kind) for kind in _kinds(cards)]
        rng.shuffle(first)
        yield from first
        yield from (card for card in deck if card not in first)


def _kinds(cards: Sequence[Card]) -> list[Kind]:
    return list(dict.fromkeys(kind for kind, _ in cards))


def _lasting(rng: random.Random, kind: Kind, pace: Pace) -> float:
    if kind in _PATIENT:
        return 2 * pace.lasting[1]
    if kind is Kind.STOP and pace is not QUICK and rng.random() < 0.25:
        return LONG_STOP
    return rng.uniform(*pace.lasting)


def _amount(rng: random.Random, kind: Kind, victim: str) -> float:
    match kind:
        case Kind.DELAY:
            return round(rng.uniform(0.02, 0.4), 2)
        case Kind.CLOCK:
            return float(rng.randint(5, 30))
        case Kind.CRASH if victim.startswith(_BUSY):
            return float(rng.choice((1, 2, 5, 9)))
        case Kind.CRASH:
            return 1.0
    return 0.0
