"""The arithmetic of the fairness benchmark."""

from __future__ import annotations

import pytest

from bench import fairness
from bench.fairness import Latency, Progress


def test_the_table_compares_medians_and_tails() -> None:
    idle = {"put": [0.1, 0.1, 0.1, 0.2], "get": [0.05, 0.05]}
    busy = {"put": [0.2, 0.2, 0.2, 0.2], "get": [0.2, 0.2]}
    assert fairness.ratios(idle, busy) == pytest.approx([2.0, 200 / 185, 4.0, 4.0])
    table = list(fairness.render(idle, busy, Progress(files=50_000, seconds=10.0)))
    assert table[2] == "| put | 100 ms | 185 ms | 200 ms | 200 ms | 2.0 | 1.1 |"
    assert table[3] == "| get | 50 ms | 50 ms | 200 ms | 200 ms | 4.0 | 4.0 |"
    assert "50,000 files in 10 s (5,000 files/s)" in table[-1]


def test_the_tail_is_the_95th_percentile() -> None:
    assert Latency.of([float(n) for n in range(101)]) == Latency(50.0, 95.0)
