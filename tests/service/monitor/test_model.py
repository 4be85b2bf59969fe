"""The store on PostgreSQL against the simulated ledger: any order of calls, the same rows.

What the simulation proves of the model (tests/simulation) thereby holds for the SQL, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from hypothesis.stateful import run_state_machine_as_test as run

from services.kit.config import DatabaseConfig
from services.kit.db import Database
from services.monitor import results, retries, submissions
from tests.service.monitor.modelrig import agree, simulated_clock
from tests.service.monitor.storepair import ACTIONS, CHUNK, StorePair

HISTORIES, LENGTH = 10, 80
RANDOMS = st.randoms(use_true_random=False)


@pytest.fixture
def database(
    database_config: DatabaseConfig, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Database]:
    """With small chunks, and without jitter."""
    for module in (submissions, retries):
        monkeypatch.setattr(module, "CHUNK", CHUNK)
    monkeypatch.setattr(results, "random", SimpleNamespace(random=lambda: 0.5))
    made = simulated_clock(database_config)
    yield made
    made.close()


class LedgerMachine(RuleBasedStateMachine):
    """Drives both; each answer and, after each step, all rows must agree."""

    database: Database

    def __init__(self) -> None:
        super().__init__()
        self.pair = StorePair(self.database)

    @rule(action=st.sampled_from(ACTIONS), random=RANDOMS)
    def act(self, action: str, random: Random) -> None:
        getattr(self.pair, action)(random)

    @rule(random=RANDOMS)
    def get_to_work(self, random: Random) -> None:
        self.pair.submit(random)
        self.pair.lease(random)

    @invariant()
    def all_rows_agree(self) -> None:
        agree(self.database, self.pair.model)


@pytest.mark.slow
def test_any_order_of_calls_agrees_with_the_simulated_ledger(database: Database) -> None:
    class Machine(LedgerMachine):
        pass

    Machine.database = database
    run(
        Machine,
        settings=settings(
            max_examples=20,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(HISTORIES))
def test_long_histories_agree_with_the_simulated_ledger(database: Database, seed: int) -> None:
    """Deeper than what Hypothesis comes to, and the same in every run."""
    random, pair = Random(seed), StorePair(database)
    for _ in range(LENGTH):
        getattr(pair, random.choice(ACTIONS))(random)
        agree(database, pair.model)
