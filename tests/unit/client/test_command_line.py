"""The command line as far as it needs no service: names and letters, help, configuration."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from nearline_client.cli.main import nlds, run
from nearline_client.config import load_config

SELECTION = {"-u", "-g", "-A", "-l", "-i", "-n", "-t"}
LETTERS = {
    "init": {"-U", "-u", "-g"},
    "login": set(),
    "renew": set(),
    "logout": set(),
    "put": {"-u", "-g", "-l", "-i", "-t", "-b", "-j", "-w"},
    "putlist": {"-l", "-i", "-t", "-b", "-j", "-w", "--null"},
    "get": SELECTION | {"-r", "-x", "-b", "-j", "-w"},
    "getlist": SELECTION | {"-r", "-x", "-b", "-j", "-w", "--null"},
    "del": SELECTION | {"-y", "-j", "-w"},
    "dellist": SELECTION | {"-y", "-j", "-w", "--null"},
    "undelete": SELECTION | {"-j", "-w"},
    "list": SELECTION | {"-x", "-L", "-9", "-0", "-j"},
    "find": SELECTION | {"-p", "-1", "-U", "-x", "-L", "-9", "-0", "-j"},
    "stat": {"-u", "-g", "-A", "-l", "-i", "-n", "-b", "-S", "-E", "-F", "-L", "-9", "-0", "-j"},
    "meta": {"-l", "-i", "-L", "-T", "-D", "-j"},
    "watch": {"-j"},
    "cancel": {"-j"},
    "retry": {"-j", "-w"},
    "stage": SELECTION | {"--pin", "-j", "-w"},
    "usage": {"-g", "-j"},
    "system": {"-j"},
}


@pytest.fixture
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "nearline" / "config.toml"
    monkeypatch.setenv("NEARLINE_CONFIG", str(path))
    for name in ("URL", "TOKEN", "CA", "ISSUER"):
        monkeypatch.delenv(f"NEARLINE_{name}", raising=False)
    return path


def test_verbs_and_letters_of_the_contract() -> None:
    assert set(nlds.commands) == set(LETTERS)
    for name, letters in LETTERS.items():
        offered = {
            spelling
            for option in nlds.commands[name].params
            if isinstance(option, click.Option)
            for spelling in option.opts
        }
        assert letters | {"--verbose"} <= offered, name


@pytest.mark.parametrize("command", LETTERS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    assert "Usage: nlds" in capsys.readouterr().out


def test_help_needs_neither_grpc_nor_rich() -> None:
    script = (
        "import sys; from nearline_client.cli import nlds;"
        "print([m for m in ('grpc', 'rich', 'httpx', 'google.protobuf') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "[]\n"


def test_without_configuration(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list"]) == 1
    assert "run `nlds init -U URL`" in capsys.readouterr().err


def test_without_login(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", "-U", "http://127.0.0.1:1"]) == 0
    assert run(["list"]) == 3
    assert "run `nlds login`" in capsys.readouterr().err


def test_init_keeps_what_is_not_given(config_file: Path, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("certificate")
    issuer = "https://login.example.org"
    first = ["-U", "https://a.example.org", "--issuer", issuer, "--ca", str(ca), "-g", "climate"]
    assert run(["init", "--no-login", *first]) == 0
    assert run(["init", "--no-login", "-U", "https://b.example.org", "-u", "alice"]) == 0
    config = load_config(config_file)
    assert (config.url, config.issuer) == ("https://b.example.org", issuer)
    assert (config.ca_file, config.group, config.user) == (ca, "climate", "alice")


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["-U", "store.example.org"],
        ["-U", "http://store.example.org"],
        ["-U", "https://store.example.org", "--issuer", "http://login.example.org"],
        ["-U", "https://store.example.org", "--ca", "/no/such/file"],
    ],
)
def test_init_refuses(
    config_file: Path, args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["init", "--no-login", *args]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not config_file.exists()


def test_shell_completion(config_file: Path) -> None:
    env = {"_NLDS_COMPLETE": "bash_complete", "COMP_WORDS": "nlds put", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "nearline_client.cli"], env=env, capture_output=True, text=True
    )
    assert "plain,putlist" in done.stdout
