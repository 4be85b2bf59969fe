"""What all tests share: the fixtures of the real parts, and the order from fast to slow."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import settings

# The settings of a stack that somebody plays with in this shell are not those of the tests' own.
for name in [name for name in os.environ if name.startswith("NEARLINE_")]:
    del os.environ[name]

# Run in the background of a shell, all would ignore Ctrl-C, and so would the programs under test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests never judge how long something takes: the machine may be busy.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

pytest_plugins = [
    "tests.fixtures.parts",
    "tests.fixtures.stack",
    "tests.fixtures.store",
    "tests.fixtures.idp",
    "tests.fixtures.tape",
]

_ORDER = ("unit", "simulation", "contract", "service", "e2e", "robustness")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the fast tests first, so that a plain mistake shows before a stack is started."""

    def rank(item: pytest.Item) -> int:
        return next((n for n, name in enumerate(_ORDER) if name in item.path.parts), len(_ORDER))

    items.sort(key=rank)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what tests have recorded, whichever process they ran in."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties:
                terminalreporter.write_line(f"{name}: {value}")
