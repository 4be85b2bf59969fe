"""Where everything of one stack is: directories, ports, secrets, certificates."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

from deploy.local.certs import Authority
from deploy.local.files import make_directory
from deploy.local.idp.part import Idp
from deploy.local.people import test_users
from deploy.local.ports import Ports
from deploy.local.postgres import Postgres
from deploy.local.seaweed import Seaweed
from deploy.local.xrootd.rig import XrootdRig

HOST = "127.0.0.1"


def default_directory() -> Path:
    """$NEARLINE_LOCAL, else /var/lib/nearline-local for root and a directory at home for others."""
    if named := os.environ.get("NEARLINE_LOCAL"):
        return Path(named)
    if os.geteuid() == 0:
        return Path("/var/lib/nearline-local")
    return Path.home() / ".local/share/nearline-local"


class Site:
    """The files and addresses below one directory; making one starts nothing."""

    def __init__(self, directory: Path) -> None:
        # Users of the tests pass through to their homes, but cannot list what is here.
        self.directory = make_directory(directory.absolute(), 0o711)
        self.ports = Ports(self.directory / "ports.json")
        self.authority = Authority(self.directory / "certs")

    @cached_property
    def postgres(self) -> Postgres:
        """The PostgreSQL server of catalog and monitor."""
        return Postgres(self.directory / "postgres", self.ports.get("postgres"))

    @cached_property
    def seaweed(self) -> Seaweed:
        """The S3 cache."""
        return Seaweed(self.directory / "seaweed", self.ports)

    @cached_property
    def xrootd(self) -> XrootdRig:
        """The tape endpoint."""
        return XrootdRig(self.directory / "xrootd", self.ports.get("xrootd"))

    @cached_property
    def idp(self) -> Idp:
        """The OpenID provider, with the test users as this machine knows them."""
        return Idp(self.directory / "idp", self.ports, test_users())

    @property
    def homes(self) -> Path:
        """The directory with the homes of the test users."""
        return self.directory / "home"

    def address(self, service: str, purpose: str = "") -> str:
        """``host:port`` of a service; ``purpose`` is "ops", "metrics" or nothing for its RPCs."""
        name = f"{service}-{purpose}" if purpose else service
        return f"{HOST}:{self.ports.get(name)}"

    def config_path(self, part: str) -> Path:
        """The configuration file of a part."""
        return make_directory(self.directory / "config", 0o700) / f"{part}.toml"

    def secret_path(self, name: str) -> Path:
        """The file that holds a secret."""
        return self.directory / "secrets" / name
