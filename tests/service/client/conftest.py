"""A gateway on loopback, and an environment in which `nlds` and `connect()` find it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import nearline_client
from nearline_client.calls import Timing
from nearline_client.cli.main import run
from nearline_client.client import Client
from tests.service.client.gateway import Gateway, serving

QUICK = Timing(opening=1.0, interrupted=5.0, watching=5.0, pause=0.01, longest_pause=0.05)


@dataclass
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


Nlds = Callable[..., Outcome]


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


@pytest.fixture
def environment(gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of the gateway, which is also in the environment, with a token."""
    with serving(gateway) as port:
        url = f"http://127.0.0.1:{port}"
        monkeypatch.setenv("NEARLINE_URL", url)
        monkeypatch.setenv("NEARLINE_TOKEN", "good")
        monkeypatch.delenv("NEARLINE_CA", raising=False)
        monkeypatch.setenv("NEARLINE_CONFIG", str(tmp_path / "none" / "config.toml"))
        yield url


@pytest.fixture
def store(environment: str) -> Iterator[Client]:
    """A client with short pauses."""
    with nearline_client.connect(timing=QUICK) as client:
        yield client


@pytest.fixture
def nlds(environment: str, capfdbinary: pytest.CaptureFixture[bytes]) -> Nlds:
    """Runs a command line in this process."""

    def call(*args: str) -> Outcome:
        code = run(args)
        out, err = capfdbinary.readouterr()
        return Outcome(code, out.decode(), err.decode())

    return call
