"""Configuration files are decoded strictly and complain with the key and the remedy."""

import os
from pathlib import Path

import pytest

from services.kit import config


class Sample(config.Section, frozen=True):
    """A service's configuration as a service would declare it."""

    server: config.ServerConfig
    database: config.DatabaseConfig
    catalog: config.PeerConfig | None = None
    log: config.LogConfig = config.LogConfig()


GOOD = """
[server]
listen = "127.0.0.1:7000"
ops_listen = "[::1]:7001"
grace_seconds = 3
[server.tls]
cert = "pki/cert.pem"
key = "pki/key.pem"
ca = "/etc/ca.pem"
[server.peers]
gateway = ["/nearline.catalog.v1.CatalogService/*"]
[database]
host = "localhost"
name = "catalog"
user = "catalog"
password = "secret"
"""


def decode(text: str) -> Sample:
    return config.loads(Sample, text, Path("/etc/nearline/catalog.toml"))


def test_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "catalog.toml"
    path.write_text(GOOD)
    got = config.load(Sample, path)
    assert got.server.grace_seconds == 3
    assert got.server.tls is not None
    assert got.server.tls.cert == tmp_path / "pki" / "cert.pem"
    assert got.server.tls.ca == Path("/etc/ca.pem")
    assert got.database.port == 5432
    assert got.log.format == "json"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ('host = "localhost"', 'hots = "localhost"', "database: Object contains unknown field"),
        ('host = "localhost"', "", "missing required field `host`; add it"),
        ("grace_seconds = 3", "grace_seconds = 0", "server.grace_seconds: "),
        ("grace_seconds = 3", 'grace_seconds = "3"', "server.grace_seconds: "),
        ('"127.0.0.1:7000"', '"7000"', "is not host:port"),
        ('"127.0.0.1:7000"', '"127.0.0.1:99999"', "is not host:port"),
        ("/nearline.catalog.v1.CatalogService/*", "catalog", "names no RPC"),
        ('"pki/cert.pem"', "7", "server.tls.cert: 7 is not a path"),
        ("[server]", "[server", "this is not TOML"),
        ("[database]", "[log]\nformat = 'xml'\n[database]", "log.format: Invalid enum value 'xml'"),
    ],
)
def test_a_bad_file_names_key_and_remedy(before: str, after: str, expected: str) -> None:
    assert before in GOOD
    with pytest.raises(config.ConfigError) as caught:
        decode(GOOD.replace(before, after))
    assert expected in str(caught.value)
    assert str(caught.value).startswith("/etc/nearline/catalog.toml: ")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match=r"nothing\.toml: No such file"):
        config.load(Sample, tmp_path / "nothing.toml")


def secret(path: Path, text: str, mode: int = 0o600) -> config.SecretFile:
    path.write_text(text)
    os.chmod(path, mode)
    return config.SecretFile(path)


def test_a_secret_loses_only_its_final_newline(tmp_path: Path) -> None:
    assert secret(tmp_path / "s", " pass word \n").read() == " pass word "


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o601])
def test_a_secret_open_to_everyone_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(config.ConfigError, match="chmod o="):
        secret(tmp_path / "s", "x", mode).read()


def test_an_empty_or_missing_secret_is_refused(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match="is empty"):
        secret(tmp_path / "s", "\n").read()
    with pytest.raises(config.ConfigError, match="No such file"):
        config.SecretFile(tmp_path / "none").read()


@pytest.mark.parametrize(
    ("address", "parts"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:0", ("::1", 0)), ("host:1", ("host", 1))],
)
def test_addresses(address: str, parts: tuple[str, int]) -> None:
    assert config.parse_address(address) == parts
