"""Logging in by the command line, at a real OpenID provider."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.fixtures.idp import RunningIdp
from tests.service.client.conftest import Nlds
from tests.service.client.gateway import Gateway


@pytest.fixture
def nobody(
    environment: str, idp: RunningIdp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """The options of `init` for somebody who has nothing yet."""
    for name in ("URL", "TOKEN", "ISSUER"):
        monkeypatch.delenv(f"NEARLINE_{name}", raising=False)
    monkeypatch.setenv("NEARLINE_CONFIG", str(tmp_path / "config.toml"))
    return ["-U", environment, "--issuer", idp.issuer]


def type_in(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def test_init_logs_in_and_commands_use_the_token(
    gateway: Gateway,
    nobody: list[str],
    nlds: Nlds,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    type_in(monkeypatch, "alice\n")
    done = nlds("init", *nobody, "-u", "alice", "--password-stdin")
    assert (done.code, done.out) == (0, "")
    assert nlds("list").code == 0
    assert nlds("renew").code == 0
    assert nlds("list").code == 0
    first, second = gateway.tokens
    assert first.startswith("Bearer ey")
    assert first != second
    assert (tmp_path / "tokens.json").stat().st_mode & 0o777 == 0o600

    assert nlds("logout").code == 0
    assert nlds("list").code == 3


def test_wrong_password(nobody: list[str], nlds: Nlds, monkeypatch: pytest.MonkeyPatch) -> None:
    type_in(monkeypatch, "guess\n")
    done = nlds("init", *nobody, "-u", "alice", "--password-stdin")
    assert done.code == 3
    assert "guess" not in done.err


def test_password_needs_a_user(nobody: list[str], nlds: Nlds) -> None:
    assert nlds("init", "--no-login", *nobody).code == 0
    assert nlds("login", "--password-stdin").code == 2
    assert nlds("login", "--password", "--browser").code == 2


def test_device_code_is_shown_to_a_person(idp: RunningIdp, nobody: list[str], nlds: Nlds) -> None:
    assert nlds("init", "--no-login", *nobody).code == 0
    with subprocess.Popen(
        [sys.executable, "-m", "nearline_client.cli", "login"], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        shown = process.stderr.readline() + process.stderr.readline()
        code = re.search(r"code (\S+)", shown)
        url = re.search(r"open (\S+)", shown)
        assert code is not None
        assert url is not None
        form = {"username": "bob", "password": "bob", "approve": "1"}
        answer = idp.post(urlsplit(url[1]).path, user_code=code[1], **form)
        assert answer.status_code == 200
        assert process.stderr.read().endswith("logged in\n")
    assert process.returncode == 0
    assert nlds("list").code == 0


def test_provider_that_is_away(nobody: list[str], nlds: Nlds) -> None:
    done = nlds("init", *nobody[:2], "--issuer", "http://127.0.0.1:1")
    assert done.code == 1
    assert done.err.count("\n") == 2  # the configuration is written, then the error
