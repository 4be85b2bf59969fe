"""The client's configuration file: where it is, what it may hold, what the environment changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from nearline_client.auth_errors import ConfigError
from nearline_client.config import ClientConfig, config_path, load_config, save_config

FULL = ClientConfig(
    url="https://nearline.example:7000",
    ca_file=Path("/etc/ssl/ca.pem"),
    user="alice",
    group="cmip6",
    issuer="https://idp.example",
    client_id="nlds",
    audience='od"d \\ nämé',
    scopes=("offline_access", "nearline"),
)


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    xdg = {"XDG_CONFIG_HOME": "/xdg"}
    assert config_path({}) == Path("/home/alice/.config/nearline/config.toml")
    assert config_path(xdg) == Path("/xdg/nearline/config.toml")
    assert config_path({"XDG_CONFIG_HOME": "relative"}) == config_path({})
    assert config_path({**xdg, "NEARLINE_CONFIG": "~/my.toml"}) == Path("/home/alice/my.toml")


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "new" / "config.toml"
    assert save_config(FULL, path) == path
    assert load_config(path, {}) == FULL
    assert path.stat().st_mode & 0o777 == 0o600
    save_config(ClientConfig(url="https://b.example"), path)
    assert load_config(path, {}) == ClientConfig(url="https://b.example")
    assert [file.name for file in path.parent.iterdir()] == ["config.toml"]


def test_the_environment_replaces_where_to_connect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.toml"
    url = {"NEARLINE_URL": "https://other.example"}
    assert load_config(path, url) == ClientConfig(url="https://other.example")
    save_config(FULL, path)
    assert load_config(path, url).url == "https://other.example"
    assert load_config(path, url).issuer == FULL.issuer
    monkeypatch.chdir("/")
    here = {"NEARLINE_CA": "ca.pem", "NEARLINE_ISSUER": "https://own.example"}
    changed = load_config(path, here)
    assert (changed.ca_file, changed.issuer) == (Path("/ca.pem"), "https://own.example")
    assert (changed.url, changed.group) == (FULL.url, FULL.group)


def test_a_relative_ca_file_is_beside_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('url = "https://a.example"\nca_file = "ca.pem"\n')
    assert load_config(path, {}).ca_file == tmp_path / "ca.pem"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "nlds init"),
        ("url = ", "cannot be read"),
        ('url = "https://a"\ncolour = 1', "unknown key 'colour'"),
        ("url = 1", "url must be a text"),
        ('url = "a.example:7000"', "not a URL"),
        ('url = "https://a"\nissuer = "http://idp.example"', "https"),
        ('url = "https://a"\nscopes = "x"', "scopes must be a list"),
        ('url = "https://a"\nuser = "a\\u0007"', "user must be a text"),
    ],
)
def test_a_bad_file_names_file_and_key(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=expected) as caught:
        load_config(path, {})
    assert str(path) in str(caught.value)


def test_without_a_file_there_is_advice(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nlds init -U URL"):
        load_config(tmp_path / "none.toml", {})
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        save_config(FULL, tmp_path / "file" / "config.toml")
