"""The figures of the benchmark: medians, rates, ratios and limits."""

from __future__ import annotations

from bench import cases, table
from bench.cases import Case
from bench.memory import LIMIT_BYTES, Usage
from bench.ours import Timing
from bench.report import render
from bench.table import Figures

SMALL = Case("small", "100 × 1 KiB", 100, 1024, {cases.PUT: 10.0})
LARGE = Case("large", "1 × 100 MB", 1, 100_000_000)


def _figures(case: Case = SMALL) -> Figures:
    figures = Figures(case)
    for seconds in (1.0, 2.0, 9.0):
        ours = {cases.PUT: Timing(command=seconds + 0.5, transaction=seconds, cpu=seconds / 2)}
        figures.add(ours, {cases.CP: seconds * 2, cases.RCLONE_UP: seconds * 5})
    return figures


def test_rates_are_of_files_or_of_bytes() -> None:
    assert SMALL.rate(0.5) == "200 files/s"
    assert LARGE.rate(0.5) == "200 MB/s"


def test_medians_and_ratios() -> None:
    (row,) = table.own_rows(_figures())
    assert row == (
        "100 × 1 KiB", "put", "2.00", "2.50", "1.0", "50 files/s", "2.00×", "5.00× rclone up",
        "10 files/s", "5.00×",
    )  # fmt: skip


def test_what_was_not_measured_is_left_empty() -> None:
    figures = Figures(LARGE)
    figures.add({cases.PUT: Timing(1.0, 1.0, 1.0)}, {})
    (row,) = table.own_rows(figures)
    assert row[-4:] == ("", "", "", "")
    assert not list(table.peer_rows(figures))


def test_peers_have_rows_in_their_order() -> None:
    rows = list(table.peer_rows(_figures()))
    assert [row[1:3] for row in rows] == [("cp -r", "4.00"), ("rclone up", "10.00")]


def test_only_services_above_the_limit_are_told() -> None:
    peaks = {
        "put": {
            "tape": Usage(LIMIT_BYTES + 1),
            "catalog": Usage(LIMIT_BYTES),
            "seaweed": Usage(10**10),
        }
    }
    assert table.too_much(peaks, ("catalog", "tape")) == ["tape took 300 MB during put"]


def test_usage_keeps_the_larger_of_each() -> None:
    assert Usage(1, 5) | Usage(2, 3) == Usage(2, 5)


def test_the_document_is_markdown() -> None:
    text = render(
        [("date", "today")], [_figures()], {"put": {"tape": Usage(5_000_000, 9_000_000)}}, 3
    )
    lines = text.splitlines()
    assert "- date: today" in lines
    assert "medians of 3 run(s)" in text
    assert any(line.startswith("| put ") and "5 (9)" in line for line in lines)
    tables = [line for line in lines if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)
